"""What each mechanism of the scheduler is worth: `python -m benchmarks.ablations --fleet FLEET --trace TRACE --rate X`.

The same requests with everything on, without each mechanism in turn, and with answers' lengths known beforehand. At a rate that
is far below the highest nothing matters, and far above it nothing helps: choose one near it.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from benchmarks.runs import Figures, columns, each, named, options_of, parser_of, play, transposed, write
from config.schema import Mechanism
from router.simulation.simulate import ORACLE, OURS, Options

_SHOWN: Final = (
    "slo_attainment",
    "ttft_p99_s",
    "tpot_p99_s",
    "engine_preemptions",
    "prefix_hit_ratio",
    "usd_per_million_output_tokens",
)


def settings(options: Options, mechanisms: Sequence[Mechanism]) -> dict[str, Options]:
    """By the names of their rows."""
    return {
        OURS: options,
        **{f"without {mechanism}": replace(options, without=(mechanism,)) for mechanism in mechanisms},
        ORACLE: replace(options, policy=ORACLE),
    }


def compared(played: dict[str, Figures]) -> dict[str, Figures]:
    """With what each costs in points of attainment (of a hundred) against everything on; below 0 it would be better off."""
    whole = played[OURS]["slo_attainment"]
    return {
        name: {
            **{figure: run[figure] for figure in _SHOWN},
            "cost_points": round(100 * (whole - run["slo_attainment"]), 3),
        }
        for name, run in played.items()
    }


def main(arguments: Sequence[str]) -> int:
    parser = parser_of("benchmarks.ablations", __doc__)
    parser.add_argument("--rate", type=float, default=1.0, help="rate scale  [default: 1]")
    parser.add_argument("--mechanisms", default=",".join(Mechanism), help="[default: all]")
    said = parser.parse_args(arguments)
    runs = settings(
        replace(options_of(said), rate_scale=said.rate), [Mechanism(name) for name in said.mechanisms.split(",")]
    )
    figures = transposed(compared(each(play, runs, said.jobs)))
    print(columns(figures))
    if said.json:
        write(said.json, "ablations", named(said, rate_scale=said.rate), arguments, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
