"""What most baselines have in common: requests in flight, counted exactly, and how a tie is broken."""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

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
        if not self.in_flight[replica]:
            del self.in_flight[replica]  # replicas come and go for months

    def answered(self, request: Request, output_tokens: int, now: float) -> None:
        """Most routers do not count."""

    def forget(self, replica: ReplicaId) -> None:
        """Requests in flight end by themselves; most routers remember nothing else."""
        self._last_turn.pop(replica, None)

    def least(self, candidates: Sequence[Candidate], score: Callable[[Candidate], float]) -> ReplicaId:
        """The least score; among equals whoever was chosen longest ago, then by id."""
        return min(candidates, key=lambda c: (score(c), self._last_turn[c.id], c.id)).id


def any_least(candidates: Sequence[Candidate], scores: Sequence[float], random: Random) -> Candidate:
    """The least score; among equals any, with equal chances. `scores` stand beside `candidates`, of which there is one at least."""
    lowest = min(scores)
    equals = [candidate for candidate, score in zip(candidates, scores, strict=True) if score == lowest]
    return equals[0] if len(equals) == 1 else random.choice(equals)
