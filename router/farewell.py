"""Empties replicas that are drained or will be taken away, each by its deadline, and says when one may go.

Decides when a replica stops taking what, when its streams are moved, and that nothing of ours is there any more. What two words about
one replica come to is `router.standing`'s; what still fits before a deadline the scheduler's; how a stream is moved the dispatcher's.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from batching.replica import Lifecycle
from batching.request import ReplicaId
from batching.window import Window
from config.spot import Spot
from metrics.catalog import Metrics
from router.admission import Admission
from router.fleet_watch import FleetWatch
from router.standing import Kind, Left, Standing, joined
from router.streams import Streams

log = logging.getLogger("penstock.fleet")

_LOOK_S: Final = 0.1  # how often it is seen whether the last stream has ended: what it adds to an early release


@dataclass(slots=True, eq=False)
class _Farewell:
    """How far one replica is."""

    standing: Standing
    began_s: float
    counts: bool  # this process was told: with several workers one of them counts
    asked_by_s: float | None = None  # by when what will not have ended was last asked to move
    emptied: bool = False  # what still ran when it was to be empty was cut loose
    overdue: bool = False  # something ran even at the deadline
    released: bool = False
    removed: bool = False  # from the configuration
    of_next: bool = False  # it was down when it was said: the machine that comes next is meant


class Farewells:
    """`run` inside the gateway's task group. All else is synchronous, and may come before the replicas do."""

    def __init__(self, spot: Spot, admission: Admission, streams: Streams, metrics: Metrics) -> None:
        self._spot = spot
        self._admission = admission
        self._streams = streams
        self._metrics = metrics
        self._watch: FleetWatch | None = None
        self._standing: dict[ReplicaId, _Farewell] = {}
        self._news = asyncio.Event()
        self.on_over: Callable[[ReplicaId, str], None] | None = None  # a notice ended by itself, and why

    # -- what is said ------------------------------------------------------------------------------------------------

    def told(
        self, replica: ReplicaId, standing: Standing | None, *, counts: bool = False, why: str = "restored"
    ) -> None:
        """What stands from now on, joined with nothing; None: it may work again, and `why`. `counts`: this process was told first."""
        farewell = self._standing.get(replica)
        if standing is None:
            if farewell is not None:
                self._end(replica, farewell, why)
            return
        if farewell is None or (standing.empties and not farewell.standing.empties):
            farewell = self._standing[replica] = _Farewell(
                standing, self._now(), counts, of_next=self._is_down(replica)
            )
        farewell.standing = standing
        self._begin(replica, farewell)

    def join(self, replica: ReplicaId, word: Standing) -> None:
        """One more word about it; where there are several workers it is their hub that joins, in one order for all."""
        before = self.standing(replica)
        if before is not None and before.ends_with_the_machine and self._is_down(replica):
            over_s = before.deadline_s
            if over_s is not None and over_s <= self._now():  # that machine is gone: this is said of the next one
                del self._standing[replica]
                before = None
        self.told(replica, joined(before, word), counts=True)

    def standing(self, replica: ReplicaId) -> Standing | None:
        """What stands against it, on this loop's clock."""
        farewell = self._standing.get(replica)
        return None if farewell is None else farewell.standing

    def requests_on(self, replica: ReplicaId) -> int:
        """Of ours: attempts under way, and what was placed and is not sent yet."""
        return max(self._streams.requests_on(replica), self._admission.scheduler.leases_on(replica))

    def left(self) -> Left:
        """On every replica; released are those where nothing of ours runs, and where nothing will be sent."""
        replicas = () if self._watch is None else self._watch.replicas
        return Left(
            requests={replica: self.requests_on(replica) for replica in replicas},
            released={replica for replica, farewell in self._standing.items() if farewell.released},
        )

    # -- what the fleet does -----------------------------------------------------------------------------------------

    def begin(self, watch: FleetWatch) -> None:
        """Before the first replica is added."""
        self._watch = watch
        watch.on_return = self._returned

    def added(self, replica: ReplicaId) -> None:
        """It is watched now; what was said of it before holds."""
        farewell = self._standing.get(replica)
        if farewell is not None and farewell.removed:
            self._end(replica, farewell, "removed")
        elif farewell is not None:
            self._begin(replica, farewell)

    def removed(self, replica: ReplicaId) -> None:
        """By a reload. What still runs there is moved by the deadline all the same; another machine of its name owes nothing."""
        farewell = self._standing.get(replica)
        if farewell is None:
            return
        farewell.removed = True
        if self.on_over is not None:
            self.on_over(replica, "removed")
        if self.requests_on(replica) == 0:
            self._end(replica, farewell, "removed")

    def _returned(self, replica: ReplicaId) -> None:
        """It was down and is there again: it is another machine, or this one after all."""
        farewell = self._standing.get(replica)
        if farewell is None or not farewell.standing.ends_with_the_machine:
            return
        deadline_s = farewell.standing.deadline_s
        if farewell.of_next and deadline_s is not None and self._now() < deadline_s:
            farewell.of_next = False
        else:
            self._end(replica, farewell, "vanished")
            if self.on_over is not None:
                self.on_over(replica, "vanished")

    # -- what is done ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(self._pause_s(loop.time())):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            self.look()

    def look(self) -> None:
        """At all that are not empty yet."""
        for replica, farewell in tuple(self._standing.items()):
            if not farewell.removed and not self._is_watched(replica):
                continue  # one that a reload is about to bring; others have heard of it already
            try:
                self._settle(replica, farewell, self._now())
            except Exception:  # one replica's trouble must not keep the others from their deadlines
                log.exception("replica %s cannot be emptied", replica)

    def _pause_s(self, now: float) -> float | None:
        """None: there is nothing to wait for."""
        pause_s: float | None = None
        for farewell in self._standing.values():
            if farewell.released or not farewell.standing.empties:
                continue
            pause_s = _LOOK_S if pause_s is None else pause_s
            for due_s, done in (
                (self._leave_s(farewell), farewell.emptied),
                (farewell.standing.deadline_s, farewell.overdue),
            ):
                if due_s is not None and not done and due_s > now:
                    pause_s = min(pause_s, due_s - now)
        return pause_s

    def _begin(self, replica: ReplicaId, farewell: _Farewell) -> None:
        """Its lifecycle and what it still takes, at once; its streams, too."""
        if self._watch is None or replica not in self._watch.replicas:
            return
        standing = farewell.standing
        if standing.empties:
            reclaims = standing.kind is Kind.RECLAIM
            self._watch.leave(replica, Lifecycle.RECLAIMING if reclaims else Lifecycle.DRAINING)
        self._set_window(replica, farewell)
        self._settle(replica, farewell, self._now())
        self._news.set()

    def _set_window(self, replica: ReplicaId, farewell: _Farewell) -> None:
        now, window = self._now(), None
        if farewell.standing.kind is Kind.REBALANCE:
            window = Window(longest_s=self._spot.rebalance_longest_s)
        elif farewell.standing.kind is Kind.RECLAIM:
            leave_s = self._leave_s(farewell)
            window = Window(now if leave_s is None or farewell.released else leave_s)
        self._admission.scheduler.set_window(replica, window, now)
        self._admission.soon()

    def _settle(self, replica: ReplicaId, farewell: _Farewell, now: float) -> None:
        """Whatever is due."""
        standing, leave_s = farewell.standing, self._leave_s(farewell)
        if not standing.empties or farewell.released:
            return
        if leave_s is not None and now >= leave_s:
            if not farewell.emptied:
                farewell.emptied = True
                self._cut(replica, f"must be empty {self._spot.margin_s:g} s before its deadline")
        elif standing.kind is Kind.RECLAIM and leave_s is not None and farewell.asked_by_s != leave_s:
            farewell.asked_by_s = leave_s
            self._streams.move_off(replica, by_s=leave_s)
        if self.requests_on(replica) == 0:
            if leave_s is None or now >= leave_s or not self._is_needed(replica):
                self._release(replica, farewell, now)
        elif standing.deadline_s is not None and now >= standing.deadline_s and not farewell.overdue:
            farewell.overdue = True
            self._cut(replica, "is past its deadline")

    def _cut(self, replica: ReplicaId, why: str) -> None:
        left = self.requests_on(replica)
        if left:
            log.warning("replica %s %s: %d requests still there go on elsewhere now", replica, why, left)
            self._streams.move_off(replica, by_s=None)

    def _release(self, replica: ReplicaId, farewell: _Farewell, now: float) -> None:
        farewell.released = True
        if self._is_watched(replica):
            self._set_window(replica, farewell)
        took_s = now - farewell.began_s
        log.info(
            "replica %s is released (%s) after %.1f s: nothing of ours is there",
            replica,
            farewell.standing.kind,
            took_s,
        )
        if farewell.counts:
            standing = farewell.standing
            self._metrics.spot_drain_seconds.labels(standing.provider, standing.kind.value).observe(took_s)
            outcome = "overdue" if farewell.overdue else "cut" if farewell.emptied else "released"
            self._metrics.replica_drains_total.labels(replica, standing.kind.value, outcome).inc()
        if not self._is_watched(replica):
            del self._standing[replica]

    def _end(self, replica: ReplicaId, farewell: _Farewell, outcome: str) -> None:
        """It works again, or is another one."""
        del self._standing[replica]
        log.info(
            "replica %s: %s of %s is over (%s)", replica, farewell.standing.kind, farewell.standing.provider, outcome
        )
        if farewell.counts and farewell.standing.empties and not farewell.released:
            self._metrics.replica_drains_total.labels(replica, farewell.standing.kind.value, outcome).inc()
        if self._watch is not None and self._is_watched(replica):
            self._admission.scheduler.set_window(replica, None, self._now())
            self._watch.stay(replica)

    def _is_needed(self, replica: ReplicaId) -> bool:
        """Whether it still takes work, and some model would have no other replica that does."""
        states = {state.profile.id: state for state in self._admission.scheduler.states(self._now())}
        own = states.get(replica)
        if own is None or own.lifecycle is not Lifecycle.RECLAIMING:
            return False
        served: set[str] = set()
        for state in states.values():
            if state.lifecycle is Lifecycle.READY:
                served.update(state.profile.models)
        return not served.issuperset(own.profile.models)

    def _leave_s(self, farewell: _Farewell) -> float | None:
        """By when it is to be empty."""
        deadline_s = farewell.standing.deadline_s
        return None if deadline_s is None else deadline_s - self._spot.margin_s

    def _is_down(self, replica: ReplicaId) -> bool:
        watched = None if self._watch is None else self._watch.replicas.get(replica)
        return watched is not None and watched.lifecycle is Lifecycle.DOWN

    def _is_watched(self, replica: ReplicaId) -> bool:
        return self._watch is not None and replica in self._watch.replicas

    def refresh_gauges(self, now: float) -> None:
        """Before a scrape."""
        gauge = self._metrics.replica_deadline_seconds
        gauge.clear()
        for replica, farewell in self._standing.items():
            if farewell.standing.deadline_s is not None:
                gauge.labels(replica).set(max(0.0, farewell.standing.deadline_s - now))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def __repr__(self) -> str:
        return f"<Farewells {len(self._standing)}, {sum(f.released for f in self._standing.values())} released>"
