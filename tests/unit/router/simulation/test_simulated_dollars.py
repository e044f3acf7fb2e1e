"""The simulator's dollars and the gateway's: the same machines, the same seconds, the same price (docs/cost.md)."""

from pathlib import Path

import pytest

from batching.scheduler import Scheduler
from config.schema import Queue, Scheduling
from router.simulation.fleet import build_machines, model_of, read_fleet
from router.simulation.report import figures
from router.simulation.run import Simulation
from router.simulation.spot import read_spot, schedule, spot_replicas
from router.simulation.trace import synthetic_trace
from tests.support.simulation_files import FLEETS, written

# A spot machine that is taken away twice, in SkyPilot's form: 1 is there, 0 is not.
SPOT = '{"metadata": {"gap_seconds": 2}, "data": [1, 1, 1, 0, 0, 1, 0]}'


@pytest.mark.parametrize("spot", [False, True])
def test_a_meter_counts_what_the_simulator_pays(tmp_path: Path, spot: bool):
    """All seconds that machines are there; of them those in which a request was on them, no fewer than those in which they computed."""
    machines = build_machines(read_fleet(FLEETS / "mixed.yaml").replicas, 1)
    calls = synthetic_trace(1, 60)
    scheduler = Scheduler(Scheduling(), Queue())
    simulation = Simulation(calls, machines, scheduler, model=model_of(machines), max_wait_s=30.0)
    if spot:
        traces = [read_spot(written(tmp_path, "spot.json", SPOT))]
        spot_replicas(machines, traces)
        schedule(simulation, traces, notice_s=1.0)
    told = figures(simulation.run(), calls, machines)
    spent = scheduler.till.take(float(str(told["duration_s"])))
    busy, idle = sum(row.busy_usd for row in spent), sum(row.idle_usd for row in spent)
    assert busy + idle == pytest.approx(told["usd_fleet"], rel=1e-4)
    assert float(str(told["usd_busy"])) <= busy * 1.0001
    assert sum(usd for row in spent for usd in row.accounts.values()) == pytest.approx(busy)
