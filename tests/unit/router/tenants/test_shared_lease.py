"""What processes let in by leases of one tenant's limits, against the book they share; no loop, no line, time is a number."""

from collections import deque
from datetime import UTC, datetime

import pytest

from config.tenants import Limits
from router.tenants.account import Hold
from router.tenants.shared_lease import Reach, SharedLease
from router.tenants.shared_limit_book import Call, SharedLimitBook, Status, Terms
from router.tenants.window import SPAN_S

WALL = datetime(2026, 11, 30, tzinfo=UTC)
TERMS = Terms(1500, 1000)
STEP_S = 0.05


class Process:
    """One that hears the book's answer at once."""

    def __init__(self, name: str, limits: Limits, book: SharedLimitBook) -> None:
        self.lease = SharedLease(limits, Reach(0.0))
        self._name = name
        self._book = book
        self._number = 0
        self._epoch = ""
        self._offset_ms = 0.0

    def ask(self, waiting: list[int], now: float) -> None:
        """As often as it takes."""
        for _ in range(3):
            self._number += 1
            claim = self.lease.claim(waiting, now, self._offset_ms)
            call = Call(self._name, self._number, self._epoch, TERMS, [("t", "", claim)])
            reply = self._book.call(round(now * 1000), "s", call)
            self._offset_ms = reply.now_ms - 1000 * now
            if reply.status is Status.OK:
                self.lease.take(claim, reply.grants[0], "", now, now, TERMS.lease_ms / 1000)
                return
            self._epoch = reply.epoch
            self.lease.all_again(now)

    def enter(self, tokens: int, now: float) -> Hold | None:
        """Asks once for what is missing."""
        self.lease.lapse(now)
        outcome = self.lease.account.enter(tokens, now, WALL)
        if not isinstance(outcome, Hold) and not self.lease.refused(now):
            self.ask([tokens], now)
            outcome = self.lease.account.enter(tokens, now, WALL)
        return outcome if isinstance(outcome, Hold) else None


@pytest.mark.parametrize("number", [1, 2])
def test_no_minute_holds_more_where_requests_use_half_of_what_they_reserve(number: int):
    """Three minutes under pressure, each request settled while those of a minute ago come free: what came free by itself is not given back, too.

    Each minute still holds 90 % of the limit.
    """
    limit, reserved, used, runs_s, ends_s = 30_000, 1000, 500, 2.0, 3 * SPAN_S
    book = SharedLimitBook()
    processes = [Process(f"p{i}", Limits(tokens_per_minute=limit), book) for i in range(number)]
    running: deque[tuple[float, Hold]] = deque()
    let_in: list[float] = []
    for step in range(int(ends_s / STEP_S)):
        now = 1000.0 + step * STEP_S
        while running and running[0][0] <= now:
            _, hold = running.popleft()
            hold.account.settle(hold, now, WALL, tokens=used, usd=None)
        process = processes[step % number]
        if (entered := process.enter(reserved, now)) is not None:
            let_in.append(now)
            running.append((now + runs_s, entered))
        if process.lease.due(now):
            process.ask([], now)
    minutes = [sum(used for at in let_in if begin <= at < begin + SPAN_S) for begin in let_in]
    assert max(minutes) <= limit
    assert len(let_in) * used >= 0.9 * limit * ends_s / SPAN_S
