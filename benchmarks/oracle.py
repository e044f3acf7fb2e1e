"""How far from knowing every answer's length: `python -m benchmarks.oracle RESULT.json ...`, of results that have an `oracle`.

Runs nothing. The oracle is our own scheduler, told what life does not tell; it is no bound on what a better rule could do.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.runs import Figures, columns, ratio, write
from benchmarks.tables import run_name
from router.simulation.simulate import ORACLE, OURS

# What a bar is about; other figures have no better and worse.
_FIGURES: Final = (
    "rate",
    "slo_attainment",
    "attainment",
    "ttft_p99_s",
    "ttft_ratio",
    "batch_throughput_ratio_while_idle",
    "prefix_hit_ratio",
    "highest_rate",
    "engine_preemptions",
    "usd_per_million_output_tokens",
    "drop_points_meanwhile",
    "gap_over_bound",
)


def distances(result: Mapping[str, Any], figures: Sequence[str]) -> dict[str, Figures]:
    """By `run: figure`: ours, the oracle's, ours over the oracle's. Nothing where the result lacks one of the two."""
    name, ours, oracle = _pair(result)
    return {
        f"{name}: {row}": {OURS: ours[row], ORACLE: oracle[row], "ratio": ratio(ours[row], oracle[row])}
        for row in ours
        if row.rpartition(": ")[2] in figures and isinstance(oracle.get(row), int | float)
    }


def _pair(result: Mapping[str, Any]) -> tuple[str, Figures, Figures]:
    """Name, our figures and the oracle's: of a benchmark, of ablations (a column a figure), or of `penstock simulate --policies`."""
    if "benchmark" not in result:
        ours, oracle = result.get(OURS, {}), result.get(ORACLE, {})
        return (run_name(ours["run"]) if ours else ""), ours, oracle
    by_run = result["figures"]
    if not {OURS, ORACLE} <= set(by_run):
        by_run = {
            run: {figure: column[run] for figure, column in by_run.items() if run in column} for run in (OURS, ORACLE)
        }
    return result["run"], by_run[OURS], by_run[ORACLE]


def collected(results: Iterable[Mapping[str, Any]], figures: Sequence[str]) -> dict[str, Figures]:
    """A column each for ours, the oracle's and their ratio."""
    rows = {name: row for result in results for name, row in distances(result, figures).items()}
    return {column: {name: row[column] for name, row in rows.items()} for column in (OURS, ORACLE, "ratio")}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oracle", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--figures", default=",".join(_FIGURES), help="[default: those that bars are about]")
    parser.add_argument("--json", type=Path)
    said = parser.parse_args(arguments)
    results = [json.loads(path.read_text("utf-8")) for path in said.results]
    figures = collected(results, said.figures.split(","))
    print(columns(figures))
    if said.json:
        write(said.json, "oracle", f"results={len(results)}", arguments, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
