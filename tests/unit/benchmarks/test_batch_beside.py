"""Batch beside interactive work in waves: the shape of the load, and a short run of it."""

from dataclasses import replace
from typing import Any

import pytest

from batching.request import ServiceTier
from benchmarks.batch_beside import Waves, batch, batch_beside_interactive, chat
from tests.support.simulation_files import FLEETS

SHORT = Waves(burst_rps=4.0, idle_rps=0.5, phase_s=6.0, cycles=1, job_requests=8)


def test_bursts_and_pauses_take_turns():
    """Arrivals follow the phase, for each replica, and none comes after the last cycle."""
    waves = Waves(burst_rps=8.0, idle_rps=1.0, phase_s=50.0, cycles=2)
    calls = chat(waves, replicas=2, seed=1)
    in_phase = [sum(number == call.arrival_s // 50 for call in calls) for number in range(5)]
    assert in_phase == [
        pytest.approx(800, rel=0.15),
        pytest.approx(100, rel=0.4),
        pytest.approx(800, rel=0.15),
        pytest.approx(100, rel=0.4),
        0,
    ]
    assert list(waves.idle_spans()) == [(50.0, 100.0), (150.0, 200.0)]


def test_three_jobs_are_there_from_the_start():
    """Each has the same number of requests for each replica, and its own time to be done."""
    calls = batch(Waves(job_requests=5), replicas=2)
    assert {(c.arrival_s, c.service_tier) for c in calls} == {(0.0, ServiceTier.BATCH)}
    assert sorted((c.tenant, c.max_wait_s) for c in calls) == sorted(
        [("bulk-30min", 1800.0), ("bulk-2h", 7200.0), ("bulk-24h", 86_400.0)] * 10
    )


def test_ratios_stay_below_what_is_left():
    """Batch takes longer than alone, by what interactive requests cost: no ratio is far beyond its cap, which tails blur."""
    waves = replace(SHORT, phase_s=10.0, job_requests=60)
    told: Any = batch_beside_interactive(FLEETS / "homogeneous.yaml", "penstock", waves, seed=1)
    assert told["batch_completed"] == "1440/1440"
    assert 0.6 < told["cap"] < told["cap_while_idle"] < 1
    assert 0.5 < told["batch_throughput_ratio"] < told["cap"] + 0.06
    assert 0.5 < told["batch_throughput_ratio_while_idle"] < told["cap_while_idle"] + 0.06


def test_batch_may_come_evenly():
    """At a rate for each replica, the jobs in turn."""
    calls = batch(Waves(job_requests=2, batch_rps=0.5), replicas=2)
    assert [call.arrival_s for call in calls] == list(range(12))
    assert [call.tenant for call in calls[:4]] == ["bulk-30min", "bulk-2h", "bulk-24h", "bulk-30min"]


def test_a_run_is_a_function_of_its_seed():
    """The same seed gives the same figures, another seed others."""
    runs = [batch_beside_interactive(FLEETS / "homogeneous.yaml", "least_requests", SHORT, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
