"""Other routers' rules, one file each, faithful to what was published; `build` makes one by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from batching.policies.policy import Policy
from batching.policies.simple import LeastRequests, RoundRobin

BASELINES: Mapping[str, Callable[[int], Policy]] = MappingProxyType(
    {
        "round_robin": lambda _seed: RoundRobin(),
        "least_requests": lambda _seed: LeastRequests(),
    }
)
"""By name; each is given a seed for what its original draws at random."""
