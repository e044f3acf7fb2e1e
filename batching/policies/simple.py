"""The two rules every load balancer has: in turn, and where fewest requests are in flight."""

from collections.abc import Sequence

from batching.policies.base import Counting
from batching.policies.policy import Candidate
from batching.request import ReplicaId, Request


class RoundRobin(Counting):
    """In turn, whatever anybody does."""

    def choose(self, request: Request, candidates: Sequence[Candidate], now: float) -> ReplicaId | None:  # noqa: ARG002
        return self.least(candidates, lambda _: 0.0)


class LeastRequests(Counting):
    """Where fewest requests are in flight, in turn among equals; its count is exact and fresh."""

    def choose(self, request: Request, candidates: Sequence[Candidate], now: float) -> ReplicaId | None:  # noqa: ARG002
        return self.least(candidates, lambda c: self.in_flight[c.id])
