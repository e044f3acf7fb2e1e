"""What happens where more comes than can be served: who is refused at once, who makes way, and when they may come back.

Three measures, each of its own: the queue's bounds (`crowd`), the deadline of one that would wait in vain (`drain`, `backlog`), and in a
flood (`strain`) the objective of one that would come too late. Nothing was measured: nobody is refused for what may be.
"""

from collections import Counter
from typing import Final, NamedTuple

from batching.admission import RECOVERY_S, retry_after_s
from batching.backlog import work_of
from batching.crowd import Held
from batching.drain import Drain
from batching.lane import BATCH, LATE, Lane, Waiting
from batching.placement import Need
from batching.promises import Promises
from batching.queue import WaitingQueue, leave_time
from batching.request import Reason, Rejected, Request, ServiceTier
from batching.strain import Strain
from config.schema import Queue as QueueConfig

_NEWCOMERS_RATIO: Final = (
    0.5  # of the time to the objective, for those who come anew while others were told to come now
)
_SPREAD_RATIO: Final = 0.5  # of a time that is a guess: not everybody is told the same
_GOLDEN: Final = 0.618033988749895  # its multiples fill an interval evenly, however many there are


class _Model:
    """What is known of one model."""

    __slots__ = ("drain", "promises", "strain")

    def __init__(self) -> None:
        self.drain = Drain()
        self.promises = Promises()
        self.strain = Strain()


class Refused(NamedTuple):
    """What a counter of refusals is of."""

    model: str
    service_tier: ServiceTier
    reason: Reason


class Overload:
    """`early`: False leaves nothing but the queue's bounds, and a Retry-After that is the same for all."""

    def __init__(self, config: QueueConfig, queue: WaitingQueue, *, early: bool) -> None:
        self._config = config
        self._queue = queue
        self._early = early
        self._models: dict[str, _Model] = {}
        self._guesses = 0
        self.flooded: list[str] = []  # models for which a flood has begun, and whose late ones are to leave now
        self.refused: Counter[Refused] = Counter()

    # -- who comes ---------------------------------------------------------------------------------------------------

    def room_for(self, request: Request, now: float, drain_rate: float | None) -> list[Waiting]:
        """Who must leave the queue for it, as it breaks a bound. Raises `Rejected` where nobody need."""
        queue = self._queue
        total = Held(len(queue), queue.tokens, queue.bytes)
        victims = queue.crowd.victims(request, total)
        if isinstance(victims, int):
            retry_s = self.return_s(request, now, drain_rate)
            self._note(request, Reason.QUEUE_FULL, now)
            raise Rejected(Reason.QUEUE_FULL, retry_after_s=retry_s, limit=victims)
        return victims

    def refuse_vain(self, need: Need, lane: Lane, late_at_s: float | None, now: float) -> bool:
        """Raises `Rejected` for one that cannot be placed in time, whatever else comes. `late_at_s`: as `Filling.late_at_s`.

        Else: whether it was told to come now.
        """
        request = need.request
        if not self._early:
            return False
        model = self._model(request.model)
        kept = model.promises.kept(request.tenant, request.fingerprint, now)
        if kept:
            model.strain.returned(now)
        flooded = model.strain.look(now)
        rate = model.drain.at_most()
        if rate is None:
            return kept
        if flooded:
            rate = model.drain.per_s(now) or rate
        rank, work, backlog = _rank(request), work_of(need), lane.backlog
        better = sum(backlog.work[:rank])
        if late_at_s is not None and late_at_s > now:
            patience_s = late_at_s - now
            if flooded and not kept and model.promises.due(now):
                patience_s *= _NEWCOMERS_RATIO
            due_s = now if kept else need.first_token_due_s
            if better + backlog.before(rank, request.tenant, work, due_s, request.weight) <= rate * patience_s:
                return kept
            if flooded:
                raise self._vain(request, work, now)
        ahead = better + backlog.before(rank, request.tenant, work, weight=request.weight)
        if rank < LATE:
            ahead += backlog.before(LATE, request.tenant, work, weight=request.weight)
        if ahead > rate * (leave_time(request, now, self._config.max_wait_s) - now):
            raise self._vain(request, work, now)
        return kept

    def _vain(self, request: Request, work: int, now: float) -> Rejected:
        retry_s = self.return_s(request, now, None, work)
        self._note(request, Reason.OVERLOAD, now)
        return Rejected(Reason.OVERLOAD, retry_after_s=retry_s)

    # -- who leaves --------------------------------------------------------------------------------------------------

    def in_flood(self, model: str, now: float) -> bool:
        """Whether those that turn late are to leave."""
        known = self._models.get(model)
        return known is not None and known.strain.look(now)

    def take_flooded(self, now: float) -> list[str]:
        """Each once; whom it sends away comes back before those who were told of the time when these would have been served."""
        taken, self.flooded = self.flooded, []
        for model in taken:
            self._model(model).promises.advance(now)
        return taken

    def left(self, waiting: Waiting, reason: Reason, now: float, drain_rate: float | None) -> float | None:
        """It is evicted: when it may come back. It has left the queue."""
        request = waiting.ticket.request
        if reason is Reason.DRAINING:
            return None
        retry_s = self.return_s(request, now, drain_rate, waiting.work)
        self._note(request, reason, now)
        return max(RECOVERY_S, retry_s) if reason is Reason.NO_REPLICA and retry_s is not None else retry_s

    def _note(self, request: Request, reason: Reason, now: float) -> None:
        self.refused[Refused(request.model, request.service_tier, reason)] += 1
        model = self._model(request.model)
        if self._early and model.drain.moving(now) and model.strain.refused(now):
            self.flooded.append(request.model)

    # -- how fast ----------------------------------------------------------------------------------------------------

    def placed(self, waiting: Waiting, lane: Lane, now: float) -> None:
        """Others wait for its model, or did so when the one before it was placed."""
        lane.draining = lane.size > 0
        self._model(lane.model).drain.note(waiting.work or work_of(waiting.need), now, behind=lane.draining)

    def emptied(self, lane: Lane) -> None:
        """The last one that waited has left without being placed."""
        lane.draining = False
        self._model(lane.model).drain.idle()

    def grown(self, model: str) -> None:
        """One more replica serves it: what was measured says too little."""
        if (known := self._models.get(model)) is not None:
            known.drain.grown()
            known.strain.relieved()

    # -- when to come back -------------------------------------------------------------------------------------------

    def return_s(self, request: Request, now: float, drain_rate: float | None, work: int | None = None) -> float | None:
        """Seconds until there will be room for it. `drain_rate`: requests a second, for where nothing better is to be had."""
        if not self._early:
            depth = self._queue.depth(request.model, request.service_tier)
            predicted_s = 0.0 if not depth else depth / drain_rate if drain_rate else None
            return retry_after_s(predicted_s, unknown_s=self._config.max_wait_s)
        model = self._model(request.model)
        rate = model.drain.per_s(now)
        lane = self._queue.lanes.get(request.model)
        if not rate or lane is None:
            self._guesses += 1
            less = _SPREAD_RATIO * ((self._guesses - 1) * _GOLDEN % 1.0)
            return retry_after_s(None, unknown_s=self._config.max_wait_s * (1 - less))
        waits = lane.backlog.work
        ahead = sum(waits[: BATCH + 1] if _rank(request) == BATCH else waits[: LATE + 1])
        own = sum(waits) / max(1, lane.size) if work is None else work  # as those who wait
        told_s = model.promises.give(
            request.tenant,
            request.fingerprint,
            wait_s=min(ahead / rate, self._config.max_wait_s),
            work_s=own / rate,
            now=now,
        )
        return None if told_s is None else max(1.0, told_s)

    def promised(self) -> int:
        """Requests that were told when to come back and have not come."""
        return sum(len(model.promises) for model in self._models.values())

    def _model(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _Model()
        return model


def _rank(request: Request) -> int:
    return BATCH if request.service_tier is ServiceTier.BATCH else int(request.service_tier)
