"""What the gateway costs: its CPU time per request and per relayed chunk, and the latency it adds to a fake engine.

Direct and gateway runs take turns, so that a machine's moods fall on both. README.md says what the figures do not show.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.overhead.measure import Figures, Shape, combine, measure
from benchmarks.overhead.targets import Running, cores, fake_engine, penstock, pin
from benchmarks.provenance import provenance, today

_EXAMPLES = """\
examples:
  python -m benchmarks.overhead
  python -m benchmarks.overhead --seconds 10 --rounds 3 --streams 200 --json overhead.json
"""
_RATIOS = ("c1_p50_ms", "cn_p50_ms", "cn_requests_per_s", "stream_ttft_p50_ms", "stream_gap_p99_ms", "chunks_per_s")
_ADDED = ("c1_p50_ms", "c1_p99_ms", "stream_ttft_p50_ms", "stream_ttft_p99_ms", "stream_gap_p99_ms")


def run(shape: Shape, rounds: int) -> dict[str, Figures]:
    """Figures by target. Raises RuntimeError where one does not start."""
    measured_cores, other_cores = cores()
    results: dict[str, list[Figures]] = {}
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        engine = fake_engine(shape.chunks, shape.gap_s * 1000)
        targets = (engine, penstock(engine.port, folder))
        running = [
            stack.enter_context(
                Running(target, cores=other_cores if target is engine else measured_cores, log=folder / target.name)
            )
            for target in targets
        ]
        pin(0, other_cores)
        for _ in range(rounds):
            for one in running:
                results.setdefault(one.target.name, []).append(measure(one, shape, other_cores))
    return {name: combine(figures) for name, figures in results.items()}


def main(arguments: Sequence[str]) -> int:
    """1 if an answer was not whole: figures of broken answers are worth nothing."""
    parser = _parser()
    said = parser.parse_args(arguments)
    shape = Shape(
        seconds=said.seconds,
        connections=said.connections,
        streams=said.streams,
        chunks=said.chunks,
        gap_s=said.gap_ms / 1000,
    )
    name = f"connections={shape.connections}/streams={shape.streams}/chunks={shape.chunks}/gap_ms={said.gap_ms:g}"
    try:
        figures = run(shape, said.rounds)
    except RuntimeError as error:
        parser.exit(1, f"{error}\n")
    print(name)
    _print(figures)
    if said.json is not None:
        document = {
            "benchmark": "overhead",
            "run": name,
            **provenance("benchmarks.overhead", arguments),
            "figures": {**figures, "added": _added(figures), "ratio": _ratio(figures)},
            "wall": {"date": today()},
        }
        said.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    broken = sum((f["requests_broken"] or 0) + (f["streams_broken"] or 0) for f in figures.values())
    return 1 if broken else 0


def _added(figures: Mapping[str, Figures]) -> Figures:
    return {name: _minus(figures["penstock"][name], figures["direct"][name]) for name in _ADDED}


def _ratio(figures: Mapping[str, Figures]) -> Figures:
    return {name: _over(figures["penstock"][name], figures["direct"][name]) for name in _RATIOS}


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else round(one - other, 3)


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else round(one / other, 3)


def _print(figures: Mapping[str, Figures]) -> None:
    columns = {**figures, "added": _added(figures), "ratio": _ratio(figures)}
    print(f"{'':<20}" + "".join(f"{name:>12}" for name in columns))
    for row in figures["direct"]:
        cells = (columns[name].get(row) for name in columns)
        print(f"{row:<20}" + "".join(f"{'-' if cell is None else format(cell, '.4g'):>12}" for cell in cells))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load  [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=2, help="direct and gateway in turn  [default: %(default)s]")
    parser.add_argument("--connections", type=int, default=32, help="for plain requests  [default: %(default)s]")
    parser.add_argument("--streams", type=int, default=100, help="at once  [default: %(default)s]")
    parser.add_argument("--chunks", type=int, default=100, help="a stream  [default: %(default)s]")
    parser.add_argument("--gap-ms", type=float, default=20.0, help="between chunks  [default: %(default)s]")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result here")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
