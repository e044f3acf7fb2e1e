"""Tuna's rule: all traffic to spot machines while one is ready, else all of it elsewhere."""

from collections.abc import Sequence

from batching.policies.base import Counting
from batching.policies.policy import Candidate
from batching.request import ReplicaId, Request
from config.schema import CostTier


class SpotFirst(Counting):
    """A spot replica is ready: the one with the fewest requests in flight; none is: the same among the others. Never holds.

    Source: Tuna (Tandemn-Labs/tandemn-tuna 6f9326b, 2026-03-14), tuna/router/meta_lb.py: spot is COLD, WARMING or READY, and
    READY takes 100 % of the requests. Its documentation: "No awareness of saturation, queue depth, or latency."

    Tuna forwards to one spot endpoint and one serverless endpoint; which replica behind it serves is SkyServe's (least load
    by default) or the provider's matter: requests in flight here, in turn among equals. Its serverless side is our reserved and
    on-demand replicas alike, and it knows no third tier. That a spot replica is ready is the scheduler's finding.
    """

    def choose(self, request: Request, candidates: Sequence[Candidate], now: float) -> ReplicaId | None:  # noqa: ARG002
        spot = [c for c in candidates if c.profile.cost_tier is CostTier.SPOT]
        return self.least(spot or candidates, lambda c: self.in_flight[c.id])
