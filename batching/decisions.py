"""The decision ledger: the last placements, each with its inputs, its candidates, the choice and - later - what came of it.

Bounded, and only a spectator: nothing in the scheduler depends on it. A record is a few tuples taken while the decision is
made (`python -m benchmarks.ledger` measures it); names, JSON and files are made by whoever reads, elsewhere.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import Final

from batching.audit import Sample
from batching.decision_record import (
    DecisionRecord,
    Ended,
    need_values,
    request_values,
    samples,
    survival_asked,
    thinned,
    told,
)
from batching.ledger import LeaseRecord
from batching.offer import Offer
from batching.placement import Need, Placement
from batching.request import Outcome
from batching.ticket import LeaseId

RING: Final = 4096  # records: minutes of a busy gateway; some 4 kB each with eight candidates
CANDIDATES: Final = 32
_UNSETTLED: Final = 256  # then they are settled at once: nothing is kept without bound where nobody calls

# Where more were tested than are kept: by what the rule that decided looks at first.
_CHEAP: Final = attrgetter("usd_per_s", "prefill_end_s")
_EARLY: Final = attrgetter("prefill_end_s", "usd_per_s")

Done = Callable[[DecisionRecord, Sequence[Sample]], None]


class Decisions:
    """Told of every placement and of its end.

    `on_done` is given each record that has ended and what its predictions were worth, by `settle`, which somebody calls now and
    then: whoever waits for a decision or for the end of an answer does not wait for that.
    """

    def __init__(self, *, ring: int = RING, candidates: int = CANDIDATES, on_done: Done | None = None) -> None:
        self._ring: deque[DecisionRecord] = deque(maxlen=ring)
        self._candidates = candidates
        self._open: dict[LeaseId, DecisionRecord] = {}  # as many as there are leases
        self._unsettled: deque[DecisionRecord] = deque()
        self._on_done = on_done
        self.total = 0

    def placed(
        self,
        lease: LeaseRecord,
        need: Need,
        offers: Collection[Offer],
        placement: Placement,
        queued_s: float,
        *,
        hold: bool = False,
        by_cost: bool = True,
    ) -> None:
        """Before the lease changes what its replica offers: offers are read now, and change at once."""
        request = need.request
        kept = offers if len(offers) <= self._candidates else self._narrowed(offers, placement)
        values = told(kept)
        record = DecisionRecord(
            queued_s,
            lease.placed_s,
            None,
            thinned(request.prefix_hashes, request.prefix_chunk_tokens),
            need_values(need),
            need.cached_tokens,
            survival_asked(need, values),
            values,
            len(offers) - len(kept),
            hold,
            by_cost,
            placement,
            lease.forecast,
            lease,
        )
        self._ring.append(record)
        self._open[lease.lease.id] = record
        self.total += 1

    def finished(
        self,
        lease: LeaseRecord,
        now: float,
        outcome: Outcome,
        *,
        prompt_tokens: int | None,
        cached_tokens: int | None,
        output_tokens: int | None,
    ) -> None:
        """However it ended; a lease that was never told of is nobody's."""
        record = self._open.pop(lease.lease.id, None)
        if record is None:
            return
        record.asked_for = request_values(lease.lease.request)
        record.lease = None
        record.ended = Ended(
            outcome, now, lease.first_token_s, lease.last_token_s, lease.emitted_tokens,
            prompt_tokens, cached_tokens, output_tokens,
        )  # fmt: skip
        self._unsettled.append(record)
        if len(self._unsettled) >= _UNSETTLED:
            self.settle()

    def settle(self) -> None:
        """Passes on what has ended since the last call, with what its predictions were worth."""
        while self._unsettled:
            record = self._unsettled.popleft()
            if self._on_done is not None:
                self._on_done(record, samples(record))

    def recent(
        self, *, limit: int, request_id: str | None = None, replica: str | None = None, model: str | None = None
    ) -> list[DecisionRecord]:
        """Newest first; those that match all that is given. O(ring)."""
        return list(islice(self._matching(request_id, replica, model), limit))

    def unfinished(self) -> list[DecisionRecord]:
        """Those that run."""
        return list(self._open.values())

    def __len__(self) -> int:
        return len(self._ring)

    def __repr__(self) -> str:
        return f"<Decisions {len(self)} of {self._ring.maxlen} kept, {self.total} seen, {len(self._open)} run>"

    def _matching(self, request_id: str | None, replica: str | None, model: str | None) -> Iterator[DecisionRecord]:
        for record in reversed(self._ring):
            if (
                (request_id is None or record.request_id == request_id)
                and (replica is None or record.replica == replica)
                and (model is None or record.asked("model") == model)
            ):
                yield record

    def _narrowed(self, offers: Collection[Offer], placement: Placement) -> list[Offer]:
        """The choice, its runner-up, and the likeliest of the others that have a slot free."""
        shown = {score.replica for score in placement.candidates} | {placement.replica}
        first = [offer for offer in offers if offer.replica in shown]
        able = [offer for offer in offers if (offer.empty or offer.free_sequences > 0) and offer.replica not in shown]
        able.sort(key=_EARLY if placement.reason == "fallback" else _CHEAP)
        return (first + able)[: self._candidates]
