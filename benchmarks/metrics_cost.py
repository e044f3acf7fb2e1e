"""What the metrics cost on the hot path: `python -m benchmarks.metrics_cost`. CPU of the gateway's process, with them and with none, in turn.

The same engine, load and scenarios as `benchmarks.overhead`, over real sockets: `c64` is requests, the others events of streams. Rounds
alternate; medians, and the least of each, which a busy machine touches less. A page of metrics stands in the way of streams while it is
made: what it costs by its size is told, too. Nothing is scraped meanwhile. Figures: docs/benchmarks-overhead.md.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

from prometheus_client import CollectorRegistry

from benchmarks.overhead.measure import measure
from benchmarks.overhead.peers import Setup
from benchmarks.overhead.processes import Target
from benchmarks.overhead.programs import Programs
from benchmarks.overhead.scenarios import SCENARIOS
from benchmarks.overhead.targets import Contestant, penstock
from metrics.catalog import Metrics
from metrics.exposition import render
from router.cli import main as serve

_SILENT: Final = "serve-without-metrics"
_SCENARIOS: Final = ("c64", "s64_1ms", "s500")
_CACHE: Final = Path.home() / ".cache" / "penstock"


class Nothing:
    """An instrument that counts nothing."""

    def labels(self, *_: str) -> Self:
        return self

    def observe(self, _: float) -> None:
        pass

    def inc(self, _: float = 1) -> None:
        pass

    dec = set = inc

    def clear(self) -> None:
        pass

    def remove_by_labels(self, _: dict[str, str]) -> None:
        pass


@contextmanager
def no_instruments() -> Iterator[None]:
    """Gateways that are built meanwhile count nothing."""
    create = Metrics.create
    nothing: dict[str, Any] = dict.fromkeys((declared.name for declared in fields(Metrics)), Nothing())
    Metrics.create = lambda _registry: Metrics(**nothing)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Metrics.create = create  # type: ignore[method-assign]


def silent(setup: Setup) -> Target:
    """The gateway without them."""
    counting = penstock(setup)
    _, _, _, *arguments = counting.command
    return replace(counting, command=(sys.executable, "-m", "benchmarks.metrics_cost", _SILENT, *arguments))


def compare(rounds: int, scale: float) -> None:
    programs = Programs.compiled(_CACHE)
    both = (Contestant(name="with", version="", target=penstock), Contestant(name="without", version="", target=silent))
    for scenario in (one.scaled(scale) for one in SCENARIOS if one.name in _SCENARIOS):
        spent: defaultdict[str, list[float]] = defaultdict(list)
        for number in range(rounds):
            for one in both if number % 2 else reversed(both):
                outcome = measure(one, scenario, programs, grace_s=20.0)
                if (cpu_us := outcome.figures.get("cpu_us")) is not None:
                    spent[one.name].append(cpu_us)
        told = []
        for how, figure in (("median", median), ("least", min)):
            on, off = figure(spent["with"]), figure(spent["without"])
            told.append(f"{how} {on:.2f} us with, {off:.2f} without: {100 * (on / off - 1):+.1f} %")
        print(f"{scenario.name:8} {'; '.join(told)}", flush=True)


def page_us(replicas: int) -> tuple[int, float]:
    """Lines of a page of so many replicas that all have answered, and microseconds of CPU for it."""
    registry = CollectorRegistry()
    metrics = Metrics.create(registry)
    for number in range(replicas):
        machine = (f"r{number}", "H100-80G", "spot")
        stream = ("m", "default", *machine)
        metrics.time_to_first_token_seconds.labels(*stream).observe(0.1)
        metrics.inter_token_latency_seconds.labels(*stream).observe(0.1)
        metrics.time_per_output_token_seconds.labels(*stream).observe(0.1)
        metrics.request_duration_seconds.labels("m", "default", "true", *machine).observe(1)
        metrics.batch_fill_ratio.labels(machine[0]).observe(1)
        metrics.batch_tokens.labels(machine[0]).observe(1)
        for signal in ("ttft", "tpot", "output_tokens", "finish"):
            metrics.prediction_error_ratio.labels(machine[0], signal).observe(0.1)
        metrics.tokens_total.labels(*stream, "input", "reported").inc()
    began_s = time.process_time()
    body, _ = render(registry)
    return body.count(b"\n"), (time.process_time() - began_s) * 1e6


def main() -> None:
    if sys.argv[1:2] == [_SILENT]:
        del sys.argv[1]
        with no_instruments():
            sys.exit(serve())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--scale", type=float, default=1.0, help="smaller: a quick look")
    asked = parser.parse_args()
    for replicas in (3, 100):
        lines, spent_us = page_us(replicas)
        print(f"a page of {replicas} replicas: {lines} lines, {spent_us / 1e3:.1f} ms", flush=True)
    compare(asked.rounds, asked.scale)


if __name__ == "__main__":
    main()
