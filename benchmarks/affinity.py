"""What prefix affinity is worth, beside the policy that lives by it: `python -m benchmarks.affinity --trace mooncake_conversation.jsonl`.

First the highest rate at which the reference (`cache_aware`) still meets the share; where it does not even at the lowest rate, the
share that it has there, rounded down to a whole percent, takes its place, and the result says so. Each policy is run at that rate.
Then the highest rates with and without our own affinity: it should never cost any.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import floor
from typing import Final

from benchmarks.rate import highest
from benchmarks.runs import Figures, columns, each, named, options_of, parser_of, play, ratio, tell, write
from config.schema import Mechanism
from router.simulation.simulate import ORACLE, OURS, Options

_SHOWN: Final = ("slo_attainment", "prefix_hit_ratio", "ttft_p50_s", "ttft_p99_s", "tpot_p99_s", "engine_preemptions")


def reference_rate(
    options: Options, low: float, high: float, *, share: float, tolerance: float
) -> tuple[float, float, Figures]:
    """(its highest rate, the share that it meets there, its figures there); the share is less where it never meets `share`."""
    played = cache(play)  # the same runs are looked at twice; each is minutes of work
    found = highest(options, low, high, share=share, tolerance=tolerance, play_one=played)
    if found["rate"]:
        return found["rate"], share, played(replace(options, rate_scale=found["rate"]))
    less = floor(100 * found["slo_attainment"]) / 100
    tell(
        f"{options.policy} has {found['slo_attainment']:.4f} at x{low:g}, so it never meets {share:g}: going by {less:g}"
    )
    found = highest(options, low, high, share=less, tolerance=tolerance, play_one=played)
    return found["rate"], less, played(replace(options, rate_scale=found["rate"]))


def against(reference: Figures, figures: Figures) -> Figures:
    """What is shown of a run, and its hits and tail over the reference's."""
    return {
        **{name: figures[name] for name in _SHOWN},
        "hits_over_reference": ratio(figures["prefix_hit_ratio"], reference["prefix_hit_ratio"]),
        "ttft_p99_over_reference": ratio(figures["ttft_p99_s"], reference["ttft_p99_s"]),
    }


def saturation(job: tuple[Options, float, float, float, float]) -> Figures:
    """The highest rate of one setting."""
    options, low, high, share, tolerance = job
    found = highest(options, low, high, share=share, tolerance=tolerance)
    return {
        "highest_rate": found["rate"],
        "hits_at_highest_rate": found["prefix_hit_ratio"],
        "ttft_p99_s_at_highest_rate": found["ttft_p99_s"],
    }


def main(arguments: Sequence[str]) -> int:
    said = _parser().parse_args(arguments)
    options = options_of(said)
    reference = replace(options, policy=said.reference)
    low, high = said.low, said.high
    rate, share, measure = reference_rate(reference, low, high, share=said.share, tolerance=said.tolerance)
    tell(f"{said.reference} has {share:g} in time up to x{rate:g}")
    alone = replace(options, without=(Mechanism.PREFIX,))
    runs = {name: replace(options, policy=name) for name in said.policies.split(",") if name != said.reference}
    runs[f"{OURS} without prefix"] = alone
    played = {said.reference: measure}
    played |= each(play, {name: replace(run, rate_scale=rate) for name, run in runs.items()}, said.jobs)
    figures = {name: against(measure, run) for name, run in played.items()}
    if not said.no_saturation:
        top = (said.saturation_low or rate, said.saturation_high or high, share, said.tolerance)
        pairs = {OURS: (options, *top), f"{OURS} without prefix": (alone, *top)}
        for name, found in each(saturation, pairs, said.jobs).items():
            figures.setdefault(name, {}).update(found)
    print(f"x{rate:g}, where {said.reference} has {share:g} in time")
    print(columns(figures))
    if said.json:
        run = named(said, share=share, rate_scale=rate)
        write(said.json, "affinity", run, arguments, figures, asked_share=said.share)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("benchmarks.affinity", __doc__)
    parser.add_argument("--reference", default="cache_aware", help="[default: cache_aware]")
    parser.add_argument(
        "--policies", default=f"{OURS},dynamo,llm_d,prefix_aware,{ORACLE}", help="[default: %(default)s]"
    )
    parser.add_argument("--share", type=float, default=0.99, help="of all requests  [default: 0.99]")
    parser.add_argument("--low", type=float, default=0.1, help="the reference's lowest rate scale  [default: 0.1]")
    parser.add_argument("--high", type=float, default=4.0, help="[default: 4]")
    parser.add_argument("--saturation-low", type=float, help="ours, known to be met  [default: the reference's rate]")
    parser.add_argument("--saturation-high", type=float, help="ours, known to be missed  [default: as --high]")
    parser.add_argument("--no-saturation", action="store_true", help="leave out the second part, which takes longest")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of a rate  [default: 5 %%]")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
