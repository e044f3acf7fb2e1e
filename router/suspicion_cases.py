"""What is held against each replica, and how replicas stand beside one another: which can be spared, and whether all are slow.

Decides nothing of its own: `batching.outliers` says what may go, `router.suspicion` what is done.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from backends.breaker import Breaker, BreakerState, Result, Trip
from backends.progress import Progress
from batching.outliers import Standing
from batching.replica import Lifecycle
from batching.request import ReplicaId
from batching.scheduler import Scheduler
from config.health import Health
from router.profiles import profile_of
from router.watched import Watched

# Where streams may run.
AT_WORK = frozenset({Lifecycle.READY, Lifecycle.SUSPECT, Lifecycle.DRAINING, Lifecycle.RECLAIMING})


@dataclass(slots=True, eq=False)
class Case:
    """What is held against one replica."""

    breaker: Breaker
    progress: Progress
    question: asyncio.Task[None] | None = None  # under way
    reason: str = ""  # of the question, while it is one of a doubt of our own
    by_hearsay: bool = False  # the question is asked only because another gateway doubts it
    asked_s: float = 0.0  # when it began
    held: bool = False  # it cannot be spared; the log has it

    def drop_question(self) -> None:
        """Unless it is the question itself that asks to."""
        if self.question is not None and self.question is not asyncio.current_task():
            self.question.cancel()
        self.question = None

    def finding(self) -> str | None:
        """What this gateway itself has against it; None: nothing."""
        if self.breaker.state is not BreakerState.CLOSED:
            return self.breaker.reason
        if self.question is not None and not self.by_hearsay and self.reason:
            return self.reason
        return None


class Cases(dict[ReplicaId, Case]):
    """One a watched replica; `fleet` is the watch's own table."""

    def __init__(self, scheduler: Scheduler, fleet: Mapping[ReplicaId, Watched], window_s: float) -> None:
        super().__init__()
        self._scheduler = scheduler
        self._fleet = fleet
        self._window_s = window_s  # an attempt that was slow counts so long

    def standings(self) -> dict[ReplicaId, Standing]:
        return {
            replica: Standing(
                frozenset(profile_of(watched.config, watched.known).models),
                watched.lifecycle,
                watched.lifecycle is Lifecycle.SUSPECT
                or (watched.lifecycle not in AT_WORK and self[replica].breaker.state is not BreakerState.CLOSED),
            )
            for replica, watched in self._fleet.items()
        }

    def all_are_slow(self, watched: Watched, now: float) -> bool:
        """Whether each other ready replica of its models keeps somebody waiting, or did just now.

        Then there is too much to do for all of them, and one replica less would make it worse.
        """
        models = profile_of(watched.config, watched.known).models.keys()
        others = [
            other
            for other in self._fleet.values()
            if other is not watched
            and other.lifecycle is Lifecycle.READY
            and models & profile_of(other.config, other.known).models.keys()
        ]
        return bool(others) and all(
            self._scheduler.overdue(other.id, now) > 0
            or (
                (latest := self[other.id].breaker.latest) is not None
                and latest[1] is Result.SLOW
                and now - latest[0] <= self._window_s
            )
            for other in others
        )


def said(trip: Trip, health: Health) -> str:
    """Why a breaker opened, for people."""
    if trip is Trip.FAILURES:
        return f"{health.failures} attempts in a row failed"
    if trip is Trip.SLOW:
        return f"the first bytes of {health.failures} attempts in a row came far too late"
    return f"{health.error_ratio:.0%} of its attempts within {health.error_window_s:g} s failed"
