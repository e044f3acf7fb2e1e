"""The scheduler's async shell: callers wait here for a placement; one timer, no polling.

Decides nothing: it feeds events and the loop's clock to the pure core and hands its decisions to those who wait.
Invariant: every ticket's future is resolved once; a lease whose waiter has gone is given back at once.
"""

import asyncio
from collections.abc import Callable, Sequence
from math import inf
from time import perf_counter

from batching.request import Outcome, Reason, Request
from batching.scheduler import Scheduler
from batching.ticket import Decision, Evicted, Lease, LeaseId, Placed, TicketId


class EvictedError(Exception):
    """The request was queued and then removed."""

    def __init__(self, reason: Reason, retry_after_s: float | None) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.retry_after_s = retry_after_s


class LapsedError(Exception):
    """What a request was placed on is others' by now: nothing may be sent for it, it is to be placed anew."""


class Admission:
    """Owns the scheduler on one event loop; every method but `place` is a plain state transition."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        on_pass: Callable[[float], None] = lambda _seconds: None,
        on_route: Callable[[float], None] = lambda _seconds: None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Told, in seconds of `clock`: `on_pass` how long each pass over the queue took, `on_route` what each placement did (metrics.overhead)."""
        self.scheduler = scheduler
        self._waiters: dict[TicketId, asyncio.Future[tuple[Placed, float]]] = {}
        self._seconds: dict[LeaseId, Callable[[Placed], None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0  # when it is to wake us; uvloop's handles do not always tell
        self._on_pass = on_pass
        self._on_route = on_route
        self._clock = clock
        self._began = 0.0  # the last pass, on `clock`
        self.on_waiting: Callable[[], None] | None = None  # called after a pass that leaves somebody waiting
        self._advance_soon = False
        # Less may be placed from then on; a process that was stopped may place before any timer tells it so.
        self.expires_s = inf
        self.on_expired: Callable[[float], None] = lambda _now: None
        self.lapsed_s = -inf  # when it was last noticed that less may be placed than before

    async def place(self, request: Request) -> Placed:
        """Wait for a placement; the caller then owns its lease and must `finish` it.

        Raises `Rejected` (never queued) or `EvictedError` (queued, then removed). Cancelling the wait leaves the queue.
        """
        loop, came = asyncio.get_running_loop(), self._clock()
        ticket = self.scheduler.submit(request, loop.time())
        future: asyncio.Future[tuple[Placed, float]] = loop.create_future()
        self._waiters[ticket.id] = future
        self.advance()
        waits = not future.done()
        try:
            placed, began = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.finish(future.result()[0].lease, outcome=Outcome.CANCELLED)
            else:
                self.scheduler.cancel(ticket, loop.time())
                self.soon()
            raise
        else:
            self._on_route(self._clock() - (began if waits else came))
            return placed
        finally:
            self._waiters.pop(ticket.id, None)

    def must_hold(self, placed: Placed) -> None:
        """Raises LapsedError where a lease has ended since the decision: of a process that was stopped between the two, others have the room."""
        now = self._now()
        if now >= self.expires_s:
            self.on_expired(now)
        if placed.decided_s < self.lapsed_s:
            raise LapsedError

    def offer_second(self, lease: Lease, take: Callable[[Placed], None]) -> None:
        """Until `lease` is given back: `take` is called with a second placement for its request; whoever takes it must `finish` it."""
        self._seconds[lease.id] = take

    def first_token(self, lease: Lease) -> None:
        self.scheduler.on_first_token(lease.id, self._now())
        self.soon()

    def tokens(self, lease: Lease, emitted: int) -> None:
        self.scheduler.on_tokens(lease.id, emitted, self._now())

    def finish(
        self,
        lease: Lease,
        *,
        outcome: Outcome,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        """Give the lease back; safe to call again."""
        self._seconds.pop(lease.id, None)
        self.scheduler.finish(
            lease.id,
            self._now(),
            outcome=outcome,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            output_tokens=output_tokens,
        )
        self.soon()

    def soon(self) -> None:
        """Advance once at the end of this loop turn, however many events it brings; where nobody waits, room interests nobody."""
        if not self._advance_soon and self.scheduler.queued:
            self._advance_soon = True
            asyncio.get_running_loop().call_soon(self.advance)

    def advance(self) -> None:
        self._advance_soon = False
        now = self._now()
        if now >= self.expires_s:
            self.on_expired(now)
        began = self._began = self._clock()
        decisions = self.scheduler.advance(now)
        self._on_pass(self._clock() - began)
        self._settle(decisions)
        self._rearm()
        if self.on_waiting is not None and self.scheduler.queued:
            self.on_waiting()

    def drain(self) -> None:
        """Refuse what is queued and what comes; leases run on."""
        self._settle(self.scheduler.drain(self._now()))

    def _settle(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            waiter = self._waiters.get(decision.ticket.id)
            if isinstance(decision, Placed) and decision.hedges is not None:
                self._seconds.get(decision.hedges.id, self._unwanted)(decision)
            elif isinstance(decision, Evicted):
                if waiter is not None and not waiter.done():
                    waiter.set_exception(EvictedError(decision.reason, decision.retry_after_s))
            elif waiter is None or waiter.done():
                self._unwanted(decision)
            else:
                waiter.set_result((decision, self._began))

    def _unwanted(self, placed: Placed) -> None:
        self.finish(placed.lease, outcome=Outcome.CANCELLED)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __repr__(self) -> str:
        return f"<Admission {len(self._waiters)} waiting, {self.scheduler!r}>"

    def _rearm(self) -> None:
        """A timer that is early enough stays: waking once for nothing costs less than moving it at every event."""
        deadline = self.scheduler.next_deadline()
        if deadline is None or (self._timer is not None and self._due_s <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = deadline
        self._timer = asyncio.get_running_loop().call_at(deadline, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.advance()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
