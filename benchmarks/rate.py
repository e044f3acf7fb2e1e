"""The highest rate at which a share of the requests meets the objective: `python -m benchmarks.rate`.

For each policy: bisects `--rate-scale` of the trace between two bounds until they are `--tolerance` apart, every run a whole
trace in virtual time. README.md says what the figure does not show.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from math import sqrt

from benchmarks.runs import Figures, named, options_of, parser_of, play, tell, write
from router.simulation.simulate import Options, policies

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


def highest(
    options: Options,
    low: float,
    high: float,
    *,
    share: float,
    tolerance: float,
    play_one: Callable[[Options], Figures] = play,
) -> Figures:
    """`rate` (0: not even at `low`) and the figures there; `runs` holds every (rate, attainment) that was tried."""
    runs: list[tuple[float, float]] = []

    def tried(rate: float) -> tuple[bool, Figures]:
        figures = play_one(replace(options, rate_scale=rate))
        attained = figures["slo_attainment"]
        assert isinstance(attained, float)
        runs.append((rate, attained))
        tell(f"{_title(options)} x{rate:g}: {attained:.4f}")
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


def _one(job: tuple[Options, float, float, float, float]) -> Figures:
    options, low, high, share, tolerance = job
    return highest(options, low, high, share=share, tolerance=tolerance)


def _title(options: Options) -> str:
    return " without ".join([options.policy, *options.without])


def main(arguments: Sequence[str]) -> int:
    said = _parser().parse_args(arguments)
    jobs = []
    for entry in said.policies.split(","):
        name, *bounds = entry.split(":")
        low, high = map(float, bounds) if bounds else (said.low, said.high)
        jobs.append((replace(options_of(said), policy=name), low, high, said.share, said.tolerance))
    with ProcessPoolExecutor(said.jobs) as pool:
        results = dict(zip((job[0].policy for job in jobs), pool.map(_one, jobs), strict=True))
    print(f"highest rate with {said.share:.0%} in time, {named(said)}")
    for name, result in sorted(results.items(), key=lambda item: -float(str(item[1]["rate"]))):
        print(f"  {name:16} x{result['rate']:<6} " + " ".join(f"{key} {result[key]}" for key in _SHOWN))
    if said.json:
        figures = {
            name: {key: value for key, value in result.items() if key != "runs"} for name, result in results.items()
        }
        runs = {name: result["runs"] for name, result in results.items()}
        write(said.json, "rate", named(said, share=said.share), arguments, figures, runs=runs)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("benchmarks.rate", __doc__)
    parser.add_argument("--policies", default=",".join(policies()), help="NAME[:LOW:HIGH],...  [default: all]")
    parser.add_argument("--low", type=float, default=0.5)
    parser.add_argument("--high", type=float, default=32.0)
    parser.add_argument("--share", type=float, default=0.99, help="of all requests  [default: 0.99]")
    parser.add_argument("--tolerance", type=float, default=0.03, help="[default: 3 %%]")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
