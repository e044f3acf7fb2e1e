"""The highest rate at which a share of the requests meets the objective: `python -m benchmarks.rate`.

For each policy: bisects `--rate-scale` of the trace between two bounds until they are `--tolerance` apart, every run a whole
trace in virtual time. README.md says what the figure does not show.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from math import sqrt
from pathlib import Path

from benchmarks.provenance import provenance, today
from router.simulation.simulate import Options, Run, policies

_SHOWN = (
    "slo_attainment",
    "ttft_p99_s",
    "tpot_p99_s",
    "itl_p99_s",
    "queue_p99_s",
    "engine_preemptions",
    "kv_usage_p50",
    "prefix_hit_ratio",
    "usd_per_million_output_tokens",
)


def at_rate(options: Options, rate: float) -> dict[str, object]:
    """The figures of one run."""
    named = {name: getattr(options, name) for name in ("fleet", "trace", "policy", "seed", "limit")}
    return Run(Options(**named, rate_scale=rate)).play()


def highest(options: Options, low: float, high: float, *, share: float, tolerance: float) -> dict[str, object]:
    """`rate` (0: not even at `low`) and the figures there; `runs` holds every (rate, attainment) that was tried."""
    runs: list[tuple[float, float]] = []

    def tried(rate: float) -> tuple[bool, dict[str, object]]:
        figures = at_rate(options, rate)
        attained = figures["slo_attainment"]
        assert isinstance(attained, float)
        runs.append((rate, attained))
        print(f"{options.policy} x{rate:g}: {attained:.4f}", file=sys.stderr, flush=True)
        return attained >= share, figures

    met, figures = tried(low)
    if not met:
        return {"rate": 0.0, "runs": runs, **{name: figures[name] for name in _SHOWN}}
    while high / low > 1 + tolerance:
        middle = float(f"{sqrt(low * high):.3g}")
        if middle in {low, high}:
            break
        met, found = tried(middle)
        if met:
            low, figures = middle, found
        else:
            high = middle
    return {"rate": low, "runs": runs, **{name: figures[name] for name in _SHOWN}}


def _one(job: tuple[Options, float, float, float, float]) -> dict[str, object]:
    options, low, high, share, tolerance = job
    return highest(options, low, high, share=share, tolerance=tolerance)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate", description=__doc__)
    parser.add_argument("--fleet", type=Path, required=True)
    parser.add_argument("--trace", type=Path, help="[default: synthetic]")
    parser.add_argument("--policies", default=",".join(policies()), help="NAME[:LOW:HIGH],...  [default: all]")
    parser.add_argument("--low", type=float, default=0.5)
    parser.add_argument("--high", type=float, default=32.0)
    parser.add_argument("--share", type=float, default=0.99, help="of all requests  [default: 0.99]")
    parser.add_argument("--tolerance", type=float, default=0.03, help="[default: 3 %%]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path)
    said = parser.parse_args(arguments)
    jobs = []
    for entry in said.policies.split(","):
        name, *bounds = entry.split(":")
        low, high = map(float, bounds) if bounds else (said.low, said.high)
        options = Options(fleet=said.fleet, trace=said.trace, policy=name, seed=said.seed, limit=said.limit)
        jobs.append((options, low, high, said.share, said.tolerance))
    with ProcessPoolExecutor(said.jobs) as pool:
        results = dict(zip((job[0].policy for job in jobs), pool.map(_one, jobs), strict=True))
    trace = said.trace.stem if said.trace else "synthetic"
    print(f"highest rate with {said.share:.0%} in time, {said.fleet.stem}, {trace}")
    for name, result in sorted(results.items(), key=lambda item: -float(str(item[1]["rate"]))):
        print(f"  {name:16} x{result['rate']:<6} " + " ".join(f"{key} {result[key]}" for key in _SHOWN))
    if said.json:
        document = {
            "benchmark": "rate",
            "run": f"rate/fleet={said.fleet.stem}/trace={trace}/share={said.share:g}/seed={said.seed}",
            **provenance("benchmarks.rate", arguments),
            "figures": {
                name: {key: value for key, value in result.items() if key != "runs"} for name, result in results.items()
            },
            "runs": {name: result["runs"] for name, result in results.items()},
            "wall": {"date": today()},
        }
        said.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
