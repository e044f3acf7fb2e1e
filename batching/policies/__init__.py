"""Other routers' rules, one file each, faithful to what was published; `BASELINES` makes one by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from batching.policies.cache_aware import CacheAware
from batching.policies.dynamo import Dynamo
from batching.policies.least_load import LeastLoad
from batching.policies.llm_d import LlmD
from batching.policies.llm_d_sticky import LlmDSticky
from batching.policies.policy import Policy
from batching.policies.power_of_two import PowerOfTwo
from batching.policies.prefix_aware import PrefixAware
from batching.policies.simple import LeastRequests, RoundRobin
from batching.policies.slo_pack_load import SloPackLoad
from batching.policies.spot_first import SpotFirst

BASELINES: Mapping[str, Callable[[int], Policy]] = MappingProxyType(
    {
        "round_robin": lambda _seed: RoundRobin(),
        "least_requests": lambda _seed: LeastRequests(),
        "power_of_two": PowerOfTwo,
        "least_load": LeastLoad,
        "cache_aware": CacheAware,
        "llm_d": LlmD,
        "llm_d_sticky": LlmDSticky,
        "dynamo": Dynamo,
        "slo_pack_load": SloPackLoad,
        "prefix_aware": PrefixAware,
        "spot_first": lambda _seed: SpotFirst(),
    }
)
"""By name; each is given a seed for what its original draws at random."""
