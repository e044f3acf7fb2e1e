"""Who suffers from whom: batch beside interactive work, a greedy tenant beside light ones: `python -m benchmarks.shared_fleet`.

Each scenario is run alone and together on one fleet in virtual time, under each policy. README.md says what it does not show.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.batch_beside import Waves, batch_beside_interactive
from benchmarks.runs import columns, tell, write
from benchmarks.tenants import greedy_tenant
from router.simulation.simulate import ORACLE, OURS

_BATCH, _TENANTS = "batch", "tenants"


def main(arguments: Sequence[str]) -> int:
    said = _parser().parse_args(arguments)
    waves = Waves(
        burst_rps=said.burst,
        idle_rps=said.idle,
        phase_s=said.phase,
        cycles=said.cycles,
        job_requests=said.job_requests,
        batch_rps=said.batch_rps,
    )
    scenarios = said.scenarios.split(",")
    results: dict[str, dict[str, object]] = {}
    for policy in said.policies.split(","):
        figures = results[policy] = {}
        if _BATCH in scenarios:
            beside = batch_beside_interactive(said.fleet, policy, waves, said.seed)
            figures |= {f"batch: {name}": value for name, value in beside.items()}
            tell(f"{policy}: batch beside interactive")
        if _TENANTS in scenarios:
            tenants = greedy_tenant(said.fleet, policy, said.rate, said.seconds, said.greed, said.seed)
            figures |= {f"tenants: {name}": value for name, value in tenants.items()}
            tell(f"{policy}: greedy tenant")
    print(columns(results))
    if said.json:
        paced = "" if waves.batch_rps is None else f"/batch_rps={waves.batch_rps:g}"
        run = f"fleet={said.fleet.stem}/burst={waves.burst_rps:g}{paced}/rate={said.rate:g}/greed={said.greed:g}/seed={said.seed}"
        write(said.json, "shared_fleet", run, arguments, results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_fleet", description=__doc__)
    parser.add_argument("--fleet", type=Path, default=Path("benchmarks/fleets/homogeneous.yaml"))
    parser.add_argument("--policies", default=f"{OURS},least_requests,llm_d,dynamo,{ORACLE}")
    parser.add_argument("--scenarios", default=f"{_BATCH},{_TENANTS}", help=f"[default: {_BATCH},{_TENANTS}]")
    waves = Waves()
    parser.add_argument(
        "--burst", type=float, default=waves.burst_rps, help="batch: requests a second and replica  [default: 8]"
    )
    parser.add_argument(
        "--idle", type=float, default=waves.idle_rps, help="batch: the same, between bursts  [default: 8/15]"
    )
    parser.add_argument("--phase", type=float, default=waves.phase_s, help="batch: seconds of each  [default: 60]")
    parser.add_argument("--cycles", type=int, default=waves.cycles, help="batch: of a burst and a pause  [default: 3]")
    parser.add_argument(
        "--job-requests", type=int, default=waves.job_requests, help="batch: a replica, of 3 jobs  [default: 500]"
    )
    parser.add_argument(
        "--batch-rps", type=float, help="batch: its requests a second and replica, evenly  [default: all at once]"
    )
    parser.add_argument("--rate", type=float, default=8.0, help="tenants: light requests a second  [default: 8]")
    parser.add_argument("--seconds", type=float, default=120.0, help="tenants: [default: 120]")
    parser.add_argument(
        "--greed", type=float, default=8.0, help="tenants: the greedy one's rate over all others'  [default: 8]"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
