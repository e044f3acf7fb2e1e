"""Who has waited for a first token so long beyond what was predicted that another replica is asked, too - and which, and when.

Decides three things, purely. When: the prediction times `after_ratio`, wider the less such predictions have been right. Whether: only
where another replica, idle enough to take it at once, is expected to answer sooner than the first one is now, within the retry budget,
and while nobody waits for room. Where: as any placement, without the replicas that keep somebody waiting already.
What comes of the two - the first to give a token wins, the other is cancelled - is the caller's.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Final

from batching.audit import Audit, Tally, at_worst
from batching.filling import Filling
from batching.fleet import Fleet
from batching.lazy_heap import LazyHeap
from batching.ledger import LeaseRecord
from batching.live_replica import LiveReplica
from batching.placement import Placement, place
from batching.queue import WaitingQueue
from batching.request import ReplicaId, Request, ServiceTier
from batching.retry_budget import RetryBudget
from batching.ticket import LeaseId, Placed, Ticket, TicketState
from config.schema import Hedge

_UNKNOWN_ERROR: Final = 0.5  # of a replica whose predictions nobody has judged yet: it may take twice as long
_LONGEST_S: Final = 3600.0  # of an answer without a bound nobody can say that it is overdue
_AGAIN_S: Final = 0.5  # who could not be helped is looked at again so often


class Refusal(StrEnum):
    """Why a request that was overdue was not sent twice."""

    BUDGET = "refused_budget"
    NO_REPLICA = "refused_no_replica"  # none that would be sooner


class Hedging:
    """O(log n) a placement; nothing else while everybody answers in time."""

    def __init__(
        self,
        config: Hedge,
        fleet: Fleet,
        queue: WaitingQueue,
        filling: Filling,
        new_ticket: Callable[[Request, float], Ticket],
        budget: RetryBudget,
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._queue = queue
        self._filling = filling
        self._new_ticket = new_ticket
        self._due: LazyHeap[tuple[float, int], LeaseRecord] = LazyHeap(self._silent)
        self._overdue: dict[LeaseId, LeaseRecord] = {}
        self._firsts: dict[LeaseId, LeaseRecord] = {}  # by the second's lease
        self._budget = budget
        self.refused: Counter[tuple[str, Refusal]] = Counter()  # by model; each request once

    def watch(self, placed: Sequence[Placed]) -> None:
        """Those just placed, as far as their owners are ready for a second answer."""
        for one in placed:
            lease = one.lease
            if lease.request.may_hedge:
                record = self._fleet.leases[lease.id]
                patience_s = self._patience_s(record, self._fleet[lease.replica])
                if patience_s is not None:
                    self._due.push((record.placed_s + patience_s, lease.id), record)

    def advance(self, now: float) -> list[Placed]:
        """The second placements of those that are overdue; each says which lease it `hedges`."""
        placed: list[Placed] = []
        if not self._due.entries or self._due.entries[0][0][0] > now:  # not even one that has answered would be
            return placed
        while (entry := self._due.peek()) and entry[0][0] <= now:
            record = self._due.pop()
            news = record.lease.id not in self._overdue
            self._overdue[record.lease.id] = record
            filled = self._send_twice(record, now)
            if isinstance(filled, Refusal):
                if news:
                    self.refused[record.lease.request.model, filled] += 1
                self._due.push((now + _AGAIN_S, record.lease.id), record)
            else:
                placed += filled
        return placed

    def next_deadline(self) -> float | None:
        entry = self._due.peek()
        return None if entry is None else entry[0][0]

    def answered(self, record: LeaseRecord, now: float) -> None:
        """It gave its first token, or its whole answer. A first one that it has beaten is a bad sign of that one's replica."""
        self._fleet[record.lease.replica].spoke()
        first = self._firsts.pop(record.lease.id, None)
        if first is not None and first.first_token_s is None and first.lease.replica in self._fleet:
            self._fleet.fell_silent(first, now)

    def ended(self, record: LeaseRecord) -> None:
        """Its lease was given back."""
        self._overdue.pop(record.lease.id, None)
        self._firsts.pop(record.lease.id, None)

    def _silent(self, record: LeaseRecord) -> bool:
        return record.first_token_s is None and record.lease.id in self._fleet.leases

    def _patience_s(self, record: LeaseRecord, live: LiveReplica) -> float | None:
        """None: nobody knows yet what the replica's predictions are worth, so there is nothing to be late by."""
        streaming = record.lease.request.streaming
        tally = live.audit.ttft if streaming else live.audit.finish  # as `_telling`
        if not tally.known:
            return None
        # A document shows no first token. Only when the longest answer that it may be should have ended is it overdue.
        # Who tries a replica that has been silent is not to wait for it the longer.
        expected_s = max(record.prefill_s, record.ttft_s - max(0.0, live.silent_until_s - record.placed_s))
        if not streaming:
            expected_s += record.tpot_s * max(0, record.output_bound - 1)
        if expected_s > _LONGEST_S:
            return None
        return max(self._config.after_ratio * at_worst(expected_s, tally.error), self._config.floor_s)

    def _send_twice(self, record: LeaseRecord, now: float) -> list[Placed] | Refusal:
        """What was placed: its second, and whoever else there happened to be room for."""
        first = record.lease.request
        if self._queue.depth(first.model, ServiceTier.FLEX):
            return Refusal.NO_REPLICA  # what room there is belongs to those who have none
        request = replace(first, avoid=first.avoid | self._slow_replicas() | {record.lease.replica}, may_hedge=False)
        ticket = self._new_ticket(request, now)
        need = self._filling.need(request, ticket.id)
        placement = place(need, self._fleet.offers(request.model), now)
        if placement is None or not self._sooner(record, placement, need.expected_tokens, now):
            return Refusal.NO_REPLICA
        if not self._budget.take():
            return Refusal.BUDGET
        self._queue.add(ticket, need)
        filled = [replace(one, hedges=record.lease) if one.ticket is ticket else one for one in self._filling.fill(now)]
        self.watch(filled)
        for one in filled:
            if one.hedges is not None:
                self._firsts[one.lease.id] = record
        waiting = self._queue.get(ticket)
        if waiting is not None:  # it was taken for placeable and was not: what is tried at once may not wait
            self._queue.leave(waiting, TicketState.CANCELLED)
            self._budget.give_back()
            return filled or Refusal.NO_REPLICA
        return filled

    def _sooner(self, record: LeaseRecord, placement: Placement, expected_tokens: int, now: float) -> bool:
        """Whether it answers before the first is expected to: who has waited long is taken to wait as long again."""
        request, score = record.lease.request, placement.score
        tally = _telling(request, self._fleet[placement.replica].audit)
        seconds = score.ttft_s
        if not request.streaming:
            seconds += score.tpot_s * max(0, expected_tokens - 1)
        return at_worst(seconds, tally.error if tally.known else _UNKNOWN_ERROR) < now - record.placed_s

    def _slow_replicas(self) -> frozenset[ReplicaId]:
        """Where somebody is overdue: when everything is slow, that is everywhere, and nobody is sent twice."""
        for lease_id in [lease_id for lease_id, record in self._overdue.items() if not self._silent(record)]:
            del self._overdue[lease_id]
        return frozenset(record.lease.replica for record in self._overdue.values())

    def __repr__(self) -> str:
        return f"<Hedging {len(self._overdue)} overdue, {self._budget!r}>"


def _telling(request: Request, audit: Audit) -> Tally:
    """What is known of predictions of a request's first sign of life."""
    return audit.ttft if request.streaming else audit.finish
