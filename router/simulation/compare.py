"""Several policies over the same requests and machines, each run in a process of its own, and one table of them all."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, Final

from router.simulation.curves import Curves, sampled
from router.simulation.report import shown
from router.simulation.simulate import Options, Run

# What the table has room for, and its headings; the JSON has everything.
_COLUMNS: Final = {
    "completed": "done",
    "rejected": "rejected",
    "failed": "failed",
    "slo_attainment": "SLO",
    "goodput_rps": "goodput/s",
    "ttft_p50_s": "TTFT p50 s",
    "ttft_p99_s": "p99 s",
    "itl_p99_s": "ITL p99 s",
    "e2e_p99_s": "E2E p99 s",
    "engine_preemptions": "preempted",
    "prefix_hit_ratio": "hits",
    "usd_total": "USD",
    "usd_per_million_output_tokens": "USD/Mtok",
}

Result = tuple[dict[str, object], Curves | None]


def compare(runs: Sequence[Options], *, curves: bool, done: Callable[[int], None]) -> list[Result]:
    """Results in the order of `runs`, whichever ends first; `done` is told how many have. Raises what a run raises."""
    workers = min(len(runs), os.cpu_count() or 1)
    # Spawned, because a fork takes over the locks of the terminal bar's thread.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_one, options, curves) for options in runs]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                future.result()
                done(number)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def table(results: Sequence[Mapping[str, object]]) -> str:
    """A row a policy: boxed on a terminal, else aligned columns, which other programs read."""
    head = ["policy", *_COLUMNS.values()]
    rows = [[_policy(result), *(shown(result[name]) for name in _COLUMNS)] for result in results]
    if sys.stdout.isatty():
        return _boxed(head, rows)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in (head, *rows)
    )


def _one(options: Options, curves: bool) -> Result:
    run = Run(options)
    return sampled(run) if curves else (run.play(), None)


def _policy(result: Mapping[str, Any]) -> str:
    return str(result["run"]["policy"])


def _boxed(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from rich.console import Console  # noqa: PLC0415 - slow to load, and most runs have no terminal
    from rich.table import Table  # noqa: PLC0415

    drawn = Table()
    for number, name in enumerate(head):
        drawn.add_column(name, justify="right" if number else "left", no_wrap=number == 0)
    for row in rows:
        drawn.add_row(*row)
    console = Console()
    with console.capture() as capture:
        console.print(drawn)
    return capture.get().rstrip("\n")
