"""The seam for other routers' rules: what a baseline is told, and the one question it is asked.

A baseline runs inside the same `Scheduler` as our own rule does - in the gateway (`scheduling.policy`) and in the offline
simulator - so that a comparison changes the rule and nothing else. It keeps its own counters, as its original does, and
sees the engine's figures only as old as its original would: whoever drives it calls `observe` every `scrape_interval_s`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from batching.replica import EngineLoad, ReplicaProfile
from batching.request import ReplicaId, Request


@dataclass(frozen=True, slots=True)
class Candidate:
    """One ready replica that serves the model and could ever hold the request."""

    profile: ReplicaProfile
    load: EngineLoad | None  # as last scraped; None: never, or nothing was said

    @property
    def id(self) -> ReplicaId:
        return self.profile.id


class Policy(Protocol):
    """Answers `choose`; the other calls tell it what became of its answers. All times are the caller's clock, seconds."""

    scrape_interval_s: float | None
    """How often the original reads the engines' metrics; None: it never does."""

    def choose(self, request: Request, candidates: Sequence[Candidate], now: float) -> ReplicaId | None:
        """One of `candidates` (never empty), or None to hold the request: it is asked again after every event.

        Held requests wait in order of arrival and nobody overtakes them, as in the queues of the originals.
        """

    def placed(self, request: Request, replica: ReplicaId, now: float) -> None: ...

    def first_token(self, request: Request, replica: ReplicaId, now: float) -> None: ...

    def finished(self, request: Request, replica: ReplicaId, now: float) -> None:
        """However it ended; follows every `placed` exactly once."""

    def answered(self, request: Request, output_tokens: int, now: float) -> None:
        """It was answered in full, with so many tokens (all sequences together); comes before its `finished`."""

    def forget(self, replica: ReplicaId) -> None:
        """It is gone, or its cache is: nothing that was believed of it holds. What is in flight still finishes."""
