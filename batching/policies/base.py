"""What most baselines have in common: requests in flight, counted exactly, and turns among equals."""

from collections import Counter
from collections.abc import Callable, Sequence

from batching.policies.policy import Candidate
from batching.request import ReplicaId, Request


class Counting:
    """Requests in flight by replica, from `placed` and `finished`: what a proxy knows without asking anybody."""

    scrape_interval_s: float | None = None

    def __init__(self) -> None:
        self.in_flight: Counter[ReplicaId] = Counter()
        self._last_turn: Counter[ReplicaId] = Counter()
        self._turn = 0

    def placed(self, request: Request, replica: ReplicaId, now: float) -> None:  # noqa: ARG002
        self.in_flight[replica] += 1
        self._turn += 1
        self._last_turn[replica] = self._turn

    def first_token(self, request: Request, replica: ReplicaId, now: float) -> None:
        """Most routers do not look."""

    def finished(self, request: Request, replica: ReplicaId, now: float) -> None:  # noqa: ARG002
        self.in_flight[replica] -= 1

    def forget(self, replica: ReplicaId) -> None:
        """Requests in flight end by themselves; most routers remember nothing else."""

    def least(self, candidates: Sequence[Candidate], score: Callable[[Candidate], float]) -> ReplicaId:
        """The least score; among equals whoever was chosen longest ago, then by id."""
        return min(candidates, key=lambda c: (score(c), self._last_turn[c.id], c.id)).id
