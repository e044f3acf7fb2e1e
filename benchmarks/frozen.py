"""What becomes of a fleet whose engines' metrics stop for a minute under load: `python -m benchmarks.frozen --trace ...`.

Each policy is run with fresh metrics, with none (`silent`) and with the last ones repeated as if they were new; in the middle of
the run. Those that arrive in that time are counted on their own as well: in the whole run they are few.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from benchmarks.runs import Figures, columns, each, named, options_of, parser_of, write
from router.simulation.freeze import Freeze, FreezeMode
from router.simulation.report import meets
from router.simulation.run import Life, Watcher
from router.simulation.simulate import ORACLE, OURS, Options, Run

_FRESH: Final = "fresh"


class _Lives(Watcher):
    def __init__(self) -> None:
        self.of: dict[int, Life] = {}

    def ended(self, number: int, life: Life, now: float) -> None:  # noqa: ARG002
        self.of[number] = life


def middle(options: Options, seconds: float) -> Freeze:
    """In the middle of the arrivals, from a whole second on."""
    last_s = Run(options).calls[-1].arrival_s
    if last_s <= seconds:
        raise ValueError(f"the requests arrive within {last_s:.0f} s; {seconds:g} s have no middle there")
    return Freeze(float(round((last_s - seconds) / 2)), seconds)


def watched(job: tuple[Options, Freeze]) -> Figures:
    """A run's figures and, of those that arrived while metrics were (or might have been) frozen, the share in time."""
    options, window = job
    run, lives = Run(options), _Lives()
    figures = run.play(lives)
    meanwhile = [number for number, call in enumerate(run.calls) if window.covers(call.arrival_s)]
    in_time = sum(meets(lives.of[number], run.calls[number]) for number in meanwhile)
    return {**figures, "attainment_meanwhile": round(in_time / len(meanwhile), 6)}


def compared(rate: float, runs: dict[str, Figures]) -> Figures:
    """One policy's column: drops are in points, of a hundred."""
    fresh = runs[_FRESH]
    column: Figures = {
        "rate_scale": rate,
        "attainment": fresh["slo_attainment"],
        "attainment_meanwhile": fresh["attainment_meanwhile"],
        "ttft_p99_s": fresh["ttft_p99_s"],
    }
    for mode, run in runs.items():
        if mode != _FRESH:
            column |= {
                f"{mode}: drop_points": _points(fresh["slo_attainment"], run["slo_attainment"]),
                f"{mode}: drop_points_meanwhile": _points(fresh["attainment_meanwhile"], run["attainment_meanwhile"]),
                f"{mode}: ttft_p99_s": run["ttft_p99_s"],
                f"{mode}: not_completed": run["rejected"] + run["failed"],
            }
    return column


def main(arguments: Sequence[str]) -> int:
    said = _parser().parse_args(arguments)
    modes = [FreezeMode(mode) for mode in said.modes.split(",")]
    jobs: dict[str, tuple[Options, Freeze]] = {}
    rates: dict[str, float] = {}
    for entry in said.policies.split(","):
        policy, _, rate = entry.partition(":")
        rates[policy] = float(rate or said.rate)
        options = replace(options_of(said), policy=policy, rate_scale=rates[policy])
        window = middle(options, said.seconds)
        jobs[f"{policy} {_FRESH}"] = options, window
        for mode in modes:
            jobs[f"{policy} {mode}"] = replace(options, freeze_metrics=replace(window, mode=mode)), window
    played = each(watched, jobs, said.jobs)
    figures = {
        policy: compared(rate, {mode: played[f"{policy} {mode}"] for mode in (_FRESH, *modes)})
        for policy, rate in rates.items()
    }
    print(columns(figures))
    if said.json:
        write(said.json, "frozen", named(said, seconds=said.seconds), arguments, figures)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("benchmarks.frozen", __doc__)
    default = f"{OURS},llm_d,least_load,least_requests,{ORACLE}"
    parser.add_argument("--policies", default=default, help="NAME[:RATE],...  [default: %(default)s]")
    parser.add_argument("--rate", type=float, default=1.0, help="rate scale of those without their own  [default: 1]")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long metrics stop  [default: 60]")
    parser.add_argument("--modes", default=",".join(FreezeMode), help="[default: %(default)s]")
    return parser


def _points(before: float, after: float) -> float:
    return round(100 * (before - after), 3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
