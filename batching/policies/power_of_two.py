"""SMG's `power_of_two`: the better of two replicas drawn at random."""

from collections.abc import Sequence

from batching.policies.least_load import LeastLoad
from batching.policies.policy import Candidate
from batching.request import ReplicaId, Request


class PowerOfTwo(LeastLoad):
    """`least_load` over two distinct candidates, each pair equally likely; one candidate alone is taken. Never holds.

    Source: SMG (smg-project/smg f8daa883, 2026-08-22), model_gateway/src/policies/power_of_two.rs; loads polled every 10 s.
    Whether a replica was heard of is judged within the pair: a pair of which nobody was heard goes by requests in flight.
    """

    def choose(self, request: Request, candidates: Sequence[Candidate], now: float) -> ReplicaId | None:  # noqa: ARG002
        return self.soonest(candidates if len(candidates) <= 2 else self._random.sample(candidates, 2))
