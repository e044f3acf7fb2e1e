"""A greedy tenant beside light ones, in short."""

import pytest

from benchmarks.mixes import played
from benchmarks.tenants import LIGHT, greedy_tenant, interactive
from router.simulation.simulate import ORACLE
from tests.support.simulation_files import FLEETS

HOMOGENEOUS = FLEETS / "homogeneous.yaml"


def tenants(policy: str) -> dict[str, object]:
    return greedy_tenant(HOMOGENEOUS, policy, rate_per_s=8.0, seconds=15.0, greed=20.0, seed=1)


def test_ours_keeps_the_service_of_tenants_together():
    """Under a crowd that no fleet could serve, those that wait stay within the theorem's bound."""
    told = tenants("penstock")
    assert isinstance(told["service_gap_tokens"], int)
    assert 0 < told["service_gap_tokens"] <= told["vtc_bound_tokens"]  # type: ignore[operator]


def test_who_never_holds_has_no_gap_to_show():
    """Where everything is sent on at once nobody waits in the gateway: there is nothing that a bound speaks of."""
    told = tenants("least_requests")
    assert (told["service_gap_tokens"], told["gap_over_bound"]) == (None, None)


def test_the_oracle_is_told_lengths_here_as_well():
    """Its run on made-up requests differs from ours, by nothing but what it knows."""
    calls = interactive(60.0, 10.0, seed=1)
    ours, oracle = (played(HOMOGENEOUS, calls, policy, 1) for policy in ("penstock", ORACLE))
    assert ours.figures["output_tokens"] == oracle.figures["output_tokens"]
    assert ours.figures["ttft_p99_s"] != oracle.figures["ttft_p99_s"]


@pytest.mark.parametrize("policy", ["penstock", "llm_d"])
def test_every_end_is_known(policy: str):
    """Each request has one, not before it came."""
    run = played(HOMOGENEOUS, interactive(20.0, 5.0, seed=1), policy, 1)
    assert len(run.requests) == run.figures["requests"] == 100
    assert all(ended.end_s > ended.call.arrival_s for ended in run.requests)
    assert len(LIGHT) == 9
