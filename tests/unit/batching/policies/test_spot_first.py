"""`spot_first` (Tuna): a ready spot replica takes all; only without one the others."""

from batching.policies.spot_first import SpotFirst
from config.schema import CostTier
from tests.support.scheduling import request
from tests.unit.batching.policies.candidates import A, B, C, candidate, load, place

RESERVED = candidate("a", cost_tier=CostTier.RESERVED)
ON_DEMAND = candidate("b", cost_tier=CostTier.ON_DEMAND)
SPOT = candidate("c", load(waiting=500, kv=1.0), cost_tier=CostTier.SPOT)


def test_spot_takes_everything_however_full_it_is():
    """A hundred requests, a full cache and a queue of 500: still all to c, while reserved and on-demand idle."""
    policy = SpotFirst()
    assert [place(policy, request(str(n)), [RESERVED, ON_DEMAND, SPOT]) for n in range(100)] == [C] * 100


def test_without_spot_the_others_share_it():
    """Reserved and on demand are one tier to it: fewest in flight, in turn: a, b, a; a's end, then a again."""
    policy = SpotFirst()
    requests = [request(str(n)) for n in range(4)]
    pool = [RESERVED, ON_DEMAND]
    assert [place(policy, r, pool) for r in requests[:3]] == [A, B, A]
    policy.finished(requests[0], A, 1.0)
    policy.finished(requests[2], A, 1.0)
    assert place(policy, requests[3], pool) == A


def test_among_spot_replicas_the_fewest_in_flight():
    """c, d, c, d."""
    policy = SpotFirst()
    pool = [RESERVED, SPOT, candidate("d", cost_tier=CostTier.SPOT)]
    assert [place(policy, request(str(n)), pool) for n in range(4)] == [C, "d", C, "d"]


def test_back_to_spot_as_soon_as_it_is_ready():
    """What is in flight elsewhere stays there."""
    policy = SpotFirst()
    assert place(policy, request("1"), [RESERVED, ON_DEMAND]) == A
    assert place(policy, request("2"), [RESERVED, ON_DEMAND, SPOT]) == C


def test_scrapes_nobody():
    """No awareness of saturation, queue depth or latency."""
    assert SpotFirst().scrape_interval_s is None
