"""What the programs that compare simulated runs share: playing them, telling how far they are, writing what came out."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.provenance import provenance, today
from router.simulation.simulate import Options, Run

Job = TypeVar("Job")
Figures = dict[str, Any]


def play(options: Options) -> Figures:
    """The figures of one run."""
    return Run(options).play()


def each(play_one: Callable[[Job], Figures], jobs: Mapping[str, Job], processes: int = 1) -> dict[str, Figures]:
    """The figures of each job by its name, in the jobs' order whichever ends first; stderr is told of every end."""
    results: dict[str, Figures] = {}
    if processes == 1:
        for number, (name, job) in enumerate(jobs.items(), 1):
            results[name] = play_one(job)
            tell(f"{number}/{len(jobs)} {name}")
        return results
    with ProcessPoolExecutor(processes) as pool:
        for number, (name, figures) in enumerate(zip(jobs, pool.map(play_one, jobs.values()), strict=True), 1):
            results[name] = figures
            tell(f"{number}/{len(jobs)} {name}")
    return results


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def parser_of(program: str, about: str | None) -> argparse.ArgumentParser:
    """With the flags that say what every run is of."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about)
    parser.add_argument("--fleet", type=Path, default=Path("benchmarks/fleets/homogeneous.yaml"))
    parser.add_argument("--trace", type=Path, help="[default: synthetic]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, help="the first N requests: quick, and no figure to publish")
    parser.add_argument("--jobs", type=int, default=1, help="processes  [default: 1]")
    parser.add_argument("--json", type=Path)
    return parser


def options_of(said: argparse.Namespace) -> Options:
    return Options(fleet=said.fleet, trace=said.trace, seed=said.seed, limit=said.limit)


def named(said: argparse.Namespace, **more: object) -> str:
    """What a table is called: fleet, trace, whatever else tells it from others."""
    words = {"fleet": said.fleet.stem, "trace": said.trace.stem if said.trace else "synthetic", **more}
    words |= {"seed": said.seed, **({} if said.limit is None else {"limit": said.limit})}
    return "/".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in words.items()
    )


def write(
    path: Path, benchmark: str, run: str, arguments: Sequence[str], figures: Mapping[str, object], **more: object
) -> None:
    """As `benchmarks.tables` reads it."""
    document = {
        "benchmark": benchmark,
        "run": f"{benchmark}/{run}",
        **provenance(f"benchmarks.{benchmark}", arguments),
        "figures": figures,
        **more,
        "wall": {"date": today()},
    }
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def columns(figures: Mapping[str, Figures]) -> str:
    """Aligned: a line a figure, a column a run."""
    rows = list(dict.fromkeys(row for run in figures.values() for row in run))
    cells = [["", *figures], *([row, *(_cell(run.get(row)) for run in figures.values())] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells
    )


def transposed(figures: Mapping[str, Figures]) -> dict[str, Figures]:
    """A column a figure, a row a run: where runs are many and figures few."""
    rows = dict.fromkeys(row for run in figures.values() for row in run)
    return {row: {name: run.get(row) for name, run in figures.items()} for row in rows}


def ratio(part: object, whole: object) -> float | None:
    """To four digits; None where either is unknown, or the whole is nothing."""
    if not (isinstance(part, int | float) and isinstance(whole, int | float)) or not whole:
        return None
    return round(part / whole, 4)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
