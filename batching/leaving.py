"""Who leaves the queue without a place, why, and what each is told: deadlines, models without replicas, floods, whoever makes way.

All that leave at one moment are gone before the first of them is told when to come back: nobody waits behind one that goes with it.
"""

from collections.abc import Iterable

from batching.dispatching import Dispatching
from batching.estimators import Estimators
from batching.filling import Filling
from batching.fleet import Fleet
from batching.lane import Waiting
from batching.overload import Overload
from batching.queue import WaitingQueue
from batching.request import Reason
from batching.ticket import Decision, Evicted, TicketState


class Leaving:
    """O(1) for each that goes; a model that was lost or flooded costs a look at the whole queue."""

    def __init__(
        self,
        queue: WaitingQueue,
        fleet: Fleet,
        filling: Filling | Dispatching,
        overload: Overload,
        estimators: Estimators,
    ) -> None:
        self._queue = queue
        self._fleet = fleet
        self._filling = filling
        self._overload = overload
        self._estimators = estimators

    def remove(self, waiting: Waiting, state: TicketState) -> None:
        """It leaves without being placed."""
        lane = self._queue.lanes[waiting.ticket.request.model]
        self._filling.release(waiting)
        self._queue.leave(waiting, state)
        if not lane.size:
            self._overload.emptied(lane)

    def send(self, leaving: Iterable[Waiting], reason: Reason, now: float) -> list[Decision]:
        """They are evicted."""
        gone = list(leaving)
        for waiting in gone:
            self.remove(waiting, TicketState.EVICTED)
        return self._told([(waiting, reason) for waiting in gone], now)

    def due(self, now: float) -> list[Decision]:
        """Those whose time is over, or whose last replica has gone; those who can no longer be in time make way, or go in a flood."""
        queue, fleet, overload, gone = self._queue, self._fleet, self._overload, list[tuple[Waiting, Reason]]()

        def go(waiting: Waiting, reason: Reason) -> None:
            self.remove(waiting, TicketState.EVICTED)
            gone.append((waiting, reason))

        due = queue.soonest_s <= now
        if due:
            for waiting in queue.expired(now):
                go(waiting, Reason.DEADLINE)
        for model in fleet.lost_models:
            if not fleet.serves(model):
                for waiting in [w for w in queue if w.ticket.request.model == model]:
                    go(waiting, Reason.NO_REPLICA)
        fleet.lost_models.clear()
        if due:
            for waiting in queue.turn_late(now):
                if overload.in_flood(waiting.ticket.request.model, now):
                    go(waiting, Reason.OVERLOAD)
            queue.let_go(now)
        for model in overload.take_flooded(now):
            for waiting in queue.turned_late(model):
                go(waiting, Reason.OVERLOAD)
        if due:
            queue.next_deadline()  # when to look again
        return self._told(gone, now)

    def _told(self, gone: Iterable[tuple[Waiting, Reason]], now: float) -> list[Decision]:
        return [
            Evicted(ticket=waiting.ticket, reason=reason, retry_after_s=self._return_s(waiting, reason, now))
            for waiting, reason in gone
        ]

    def _return_s(self, waiting: Waiting, reason: Reason, now: float) -> float | None:
        rate = self._estimators.drain_rate(waiting.ticket.request.model, now)
        return self._overload.left(waiting, reason, now, rate)
