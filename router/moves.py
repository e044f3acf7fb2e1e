"""Answers that have begun and go on at another replica: when that is tried, with what request, and who goes first.

Three reasons: the replica failed; it is dead or frozen, and is left at once; it will be taken away, and whoever would not be done by
then leaves in time - each only when its next place is found, so that its client waits for a prefill and no queue.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from batching.request import NOWHERE, Outcome, Reason, Rejected, ReplicaId, Request, ServiceTier
from batching.ticket import Placed
from config.migration import Migration
from router.admission import Admission, EvictedError
from router.exchange import Exchange
from router.failed import AttemptFailed

log = logging.getLogger("penstock.move")

_LOOK_AGAIN_S: Final = 0.1  # for a replica to come back, while a client waits in the middle of its answer
# Nobody watches those: they wait in their own line wherever they go on.
_UNWATCHED: Final = frozenset({ServiceTier.FLEX, ServiceTier.BATCH})


class Moves:
    """`running`: who may be cut, by where it runs."""

    def __init__(self, admission: Admission, running: Mapping[ReplicaId, set[Exchange]]) -> None:
        self._admission = admission
        self._running = running
        self._leaving: dict[ReplicaId, asyncio.Task[None]] = {}

    def configure(self, config: Migration, attempts: int) -> None:
        """`attempts`: in a row that may bring nothing."""
        self._config = config
        self._attempts = attempts

    # -- one answer --------------------------------------------------------------------------------------------------

    def go_on(self, exchange: Exchange, failed: AttemptFailed, here: frozenset[ReplicaId]) -> Request:
        """What is to be placed next; raises the failure where the answer ends with it. `here`: where it was."""
        journal, move = exchange.journal, exchange.move
        assert journal is not None
        now = asyncio.get_running_loop().time()
        exchange.failures += failed.reached and not failed.moved  # what was refused a connection killed nobody
        move.count += not failed.lapsed
        why = self._why_not(exchange, failed)
        if why is not None:
            log.warning("request %s ends in the middle: %s", exchange.inbound.request_id, why)
            raise failed.error from failed
        if not journal.empty and move.since_s is None:
            last_s = exchange.timeline.last_token_s
            move.since_s = now if last_s is None else last_s
        if move.until_s is None:
            move.until_s = now + self._config.max_wait_s
        if not failed.lapsed:
            move.avoid |= here
        return replace(continuing(exchange, now, move.until_s), avoid=move.avoid)

    def _why_not(self, exchange: Exchange, failed: AttemptFailed) -> str | None:
        journal = exchange.journal
        assert journal is not None
        if not failed.repeatable:
            return "no other engine would do better"
        if exchange.failures >= self._attempts:
            return f"{exchange.failures} attempts in a row brought nothing"
        if exchange.move.count > self._config.max_moves:
            return f"it has moved {self._config.max_moves} times (migration.max_moves)"
        if not can_move(exchange):
            return f"it can't go on elsewhere: {journal.reason}"
        return None

    def may_wait(self, request: Request, reason: Reason) -> bool:
        """Whether a refusal is only for now: somebody waits in the middle of an answer for a replica to come back."""
        now = asyncio.get_running_loop().time()
        hopeful = reason is Reason.NO_REPLICA and request.deadline_s is not None and now < request.deadline_s
        return request.resumes and hopeful

    async def wait(self, request: Request) -> Request:
        """For a moment; then any replica will do, the one that failed included."""
        await asyncio.sleep(_LOOK_AGAIN_S)
        return replace(request, avoid=NOWHERE)

    # -- a replica ---------------------------------------------------------------------------------------------------

    def on(self, replica: ReplicaId) -> tuple[Exchange, ...]:
        """Who has an attempt under way there."""
        return tuple(self._running.get(replica, ()))

    def requests_on(self, replica: ReplicaId) -> int:
        """Attempts under way there that are not done with their engine."""
        return len(self._running.get(replica, ()))

    def last_bytes_s(self, replica: ReplicaId) -> float | None:
        """When something came last of any stream there that has had its first token; None: there is none whose client reads."""
        times = [
            exchange.move.silence.last_s
            for exchange in self.on(replica)
            if exchange.phase == "streaming" and exchange.move.silence is not None and not exchange.client.full
        ]
        return max(times, default=None)

    def move_off(self, replica: ReplicaId, *, by_s: float | None) -> None:
        """Everybody leaves. `by_s` None: now, whatever comes of it; else those who will not be done by then, as they find a place."""
        self._stop_leaving(replica)  # a later word counts
        if by_s is None:
            for exchange in self.on(replica):
                cut_loose(exchange)
        else:
            task = asyncio.get_running_loop().create_task(self._leave(replica, by_s), name=f"leave-{replica}")
            self._leaving[replica] = task
            task.add_done_callback(lambda done: self._left(replica, done))

    def prepared(self, exchange: Exchange) -> Placed | None:
        """The place that was found before it was cut; the caller owns the lease."""
        placed, exchange.move.next = exchange.move.next, None
        return placed

    def over(self, exchange: Exchange) -> None:
        """The answer has ended."""
        placed = self.prepared(exchange)
        if placed is not None:
            self._admission.finish(placed.lease, outcome=Outcome.CANCELLED)

    def close(self) -> None:
        for replica in tuple(self._leaving):
            self._stop_leaving(replica)

    def _stop_leaving(self, replica: ReplicaId) -> None:
        task = self._leaving.pop(replica, None)
        if task is not None:
            task.cancel()

    def _left(self, replica: ReplicaId, task: asyncio.Task[None]) -> None:
        if self._leaving.get(replica) is task:
            del self._leaving[replica]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("leaving %s failed", replica, exc_info=error)

    async def _leave(self, replica: ReplicaId, by_s: float) -> None:
        """The cheapest prefill first. As many look for a place at once as there are other replicas: the queue paces them, and keeps others' objectives."""
        loop = asyncio.get_running_loop()
        scheduler = self._admission.scheduler
        staying = [
            exchange
            for exchange in self.on(replica)
            if exchange.placed is not None and scheduler.predicted_end_s(exchange.placed.lease.id, loop.time()) > by_s
        ]
        staying.sort(key=lambda exchange: continuing(exchange, 0.0, 0.0).prompt_tokens)
        models = {exchange.placed.lease.request.model for exchange in staying if exchange.placed is not None}
        others = max([len(scheduler.replica_ids(model) - {replica}) for model in models], default=0)
        if staying:
            log.info(
                "replica %s: %d requests will not be done in time and look for another place", replica, len(staying)
            )
        staying.reverse()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(others, len(staying))):
                tasks.create_task(self._leave_in_turn(replica, staying, by_s))

    async def _leave_in_turn(self, replica: ReplicaId, staying: list[Exchange], by_s: float) -> None:
        while staying:
            exchange = staying.pop()
            if exchange.move.cut is not None and exchange in self.on(replica):
                await self._find_place(replica, exchange, by_s)

    async def _find_place(self, replica: ReplicaId, exchange: Exchange, by_s: float) -> None:
        now = asyncio.get_running_loop().time()
        before = exchange.placed
        assert before is not None
        if not can_move(exchange):
            return  # it stays as long as it may
        if exchange.journal is not None and not exchange.journal.empty:
            request = continuing(exchange, now, max(now, by_s))
        else:
            request = replace(before.lease.request, deadline_s=by_s, resumes=True, may_hedge=False)
        try:
            placed = await self._admission.place(replace(request, avoid=request.avoid | {replica}))
        except (Rejected, EvictedError):
            return  # it stays; perhaps it is done in time after all
        still_there = exchange.placed is before and exchange.move.cut is not None and exchange.move.next is None
        if still_there and can_move(exchange):  # it may have said something meanwhile that nobody can go on with
            exchange.move.next = placed
            cut_loose(exchange)
        else:
            self._admission.finish(placed.lease, outcome=Outcome.CANCELLED)


def can_move(exchange: Exchange) -> bool:
    """Whether another engine can go on with what was said, if anything was."""
    journal = exchange.journal
    return journal is None or journal.empty or journal.exact or journal.by_text


def cut_loose(exchange: Exchange) -> None:
    """End its attempt; it goes on elsewhere. No effect between attempts."""
    if exchange.move.cut is not None:
        exchange.move.cut.reschedule(0.0)  # long past on any clock


def continuing(exchange: Exchange, now: float, deadline_s: float) -> Request:
    """The rest of an answer as the scheduler sees it: what was said is prompt now, and its client has waited long enough."""
    request, journal = exchange.request, exchange.journal
    assert request is not None
    if journal is None or journal.empty:
        return replace(request, deadline_s=deadline_s, may_hedge=False, resumes=True)
    said = journal.id_count if journal.exact else exchange.timeline.output_tokens
    prompt = request.prompt_tokens if journal.prompt_ids is None else journal.prompt_ids.count(b",") + 1
    most = request.max_output_tokens
    return replace(
        request,
        arrived_s=now,
        deadline_s=deadline_s,
        prompt_tokens=prompt + said,
        prompt_chars=None,  # nothing is to be learned of a prompt that was not the client's
        max_output_tokens=None if most is None else max(1, most - said),
        service_tier=request.service_tier if request.service_tier in _UNWATCHED else ServiceTier.PRIORITY,
        may_hedge=False,
        resumes=True,
    )
