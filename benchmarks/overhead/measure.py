"""One contestant in one scenario: engines, gateway and load started, watched and ended. Figures are in the units their names end in."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import httpx

from benchmarks.overhead.peers import Setup
from benchmarks.overhead.processes import Running, cores, free_port, started, stop
from benchmarks.overhead.programs import Load, Programs, Seen, Times
from benchmarks.overhead.scenarios import Scenario
from benchmarks.overhead.targets import Contestant, engine

Figures = dict[str, float | None]
COUNTS: Final = ("whole", "not_whole", "errors", "unfinished")

_ENGINES: Final = 2
_FIRST_ANSWER_S: Final = 60.0  # routers answer 503 until their first probe of an engine
_WARM_S: Final = 0.4
_SAMPLE_S: Final = 0.1
_STOP_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`problem`: what a reader of the figures has to know; empty where all went well."""

    figures: Figures
    problem: str


def measure(contestant: Contestant, scenario: Scenario, programs: Programs, *, grace_s: float) -> Outcome:
    """Everything afresh. RuntimeError if something does not start, UnsupportedError where there is no such mode."""
    measured_cores, other_cores = cores()
    with TemporaryDirectory(prefix="overhead-") as name, ExitStack() as stack:
        folder = Path(name)
        engines = [
            stack.enter_context(Running(target, cores=other_cores, log=folder / f"engine-{n}.log", stop_s=_STOP_S))
            for n, target in enumerate(engine(programs, free_port(), scenario.gap_ms) for _ in range(_ENGINES))
        ]
        gateway = None
        if contestant.target is not None:
            (folder / "own").mkdir()
            setup = Setup(
                port=free_port(),
                spare_port=free_port(),
                engines=[one.target.port for one in engines],
                model=programs.model,
                folder=folder / "own",
                workers=scenario.workers,
            )
            target = contestant.target(setup)
            gateway = stack.enter_context(
                Running(target, cores=measured_cores, log=folder / "gateway.log", stop_s=_STOP_S)
            )
        loader = _Loader(programs, other_cores, folder)
        return _watched(scenario, engines, gateway, loader, grace_s)


def _watched(
    scenario: Scenario, engines: Sequence[Running], gateway: Running | None, loader: "_Loader", grace_s: float
) -> Outcome:
    port = (gateway or engines[0]).target.port
    _first_answer(port, loader.programs.model, gateway)
    load = Load(
        port=port,
        connections=scenario.connections,
        seconds=scenario.seconds,
        events=scenario.events,
        ramp_s=scenario.ramp_s,
        grace_s=grace_s,
    )
    loader.warm_up(load)
    idle_mb = gateway.memory_mb() if gateway else None
    before = [one.cpu_s() for one in (*engines, *([gateway] if gateway else []))]
    seen, peak_mb = loader.run(load, gateway)
    used = [one.cpu_s() - at for one, at in zip((*engines, *([gateway] if gateway else [])), before, strict=True)]
    figures = _figures(scenario, seen)
    figures["engines_core_share"] = sum(used[:_ENGINES]) / seen.seconds
    if gateway and idle_mb is not None:
        figures["cpu_us"] = _each(used[_ENGINES] * 1e6, seen.events if scenario.events else seen.whole)
        figures["core_share"] = used[_ENGINES] / seen.seconds
        figures["rss_idle_mb"] = idle_mb
        figures["rss_kb_per_connection"] = (peak_mb - idle_mb) * 1000 / scenario.connections
    problem = seen.complaint
    if gateway and not gateway.alive:
        problem = f"died under the load; {problem}"
    return Outcome(figures=figures, problem=problem)


def combine(rounds: Sequence[Mapping[str, float | None]]) -> Figures:
    """Medians over the rounds; sums of what counts answers."""
    combined: Figures = {}
    for name in dict.fromkeys(name for one in rounds for name in one):
        values = [value for one in rounds if (value := one.get(name)) is not None]
        combined[name] = (sum(values) if name in COUNTS else median(values)) if values else None
    return combined


class _Loader:
    """The load generator's process, on the engines' cores."""

    def __init__(self, programs: Programs, on: frozenset[int], folder: Path) -> None:
        self.programs = programs
        self._on = on
        self._folder = folder

    def warm_up(self, load: Load) -> None:
        """Connections to engines, caches, what is imported late. Nothing of it is counted."""
        connections = min(8, load.connections)
        self.run(Load(port=load.port, connections=connections, seconds=_WARM_S, grace_s=5), None)
        if load.events is not None:
            self.run(Load(port=load.port, connections=connections, seconds=_WARM_S, events=4, grace_s=5), None)

    def run(self, load: Load, watched: Running | None) -> tuple[Seen, float]:
        """(what it saw, the most memory that `watched` had meanwhile in MB). RuntimeError if it hangs or fails."""
        out = self._folder / "load.json"
        process = started((str(self.programs.load), *load.arguments()), cores=self._on, log=out)
        peak_mb, until = 0.0, time.monotonic() + load.at_most_s
        try:
            while True:
                try:
                    process.wait(_SAMPLE_S)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > until:
                        raise RuntimeError("the load generator hangs") from None
                    if watched is not None:
                        peak_mb = max(peak_mb, watched.memory_mb())
        finally:
            stop(process, 1.0)
        if process.returncode:
            raise RuntimeError(f"the load generator failed: {out.read_text('utf-8', 'replace')[-500:]}")
        return Seen.parse(out.read_text("utf-8")), peak_mb


def _first_answer(port: int, model: str, gateway: Running | None) -> None:
    """Ready is who has answered a request, whatever a health check says."""
    asked = {"model": model, "messages": [{"role": "user", "content": "Ready?"}], "max_tokens": 1}
    until, said = time.monotonic() + _FIRST_ANSWER_S, ""
    with httpx.Client(timeout=10, trust_env=False) as client:
        while time.monotonic() < until and (gateway is None or gateway.alive):
            try:
                answer = client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=asked)
            except httpx.TransportError as error:
                said = repr(error)
            else:
                if answer.is_success:
                    return
                said = answer.text[:300]
            time.sleep(0.1)
    raise RuntimeError(f"it never answered: {said}\n{gateway.log_end() if gateway else ''}")


def _figures(scenario: Scenario, seen: Seen) -> Figures:
    figures: Figures = {
        "whole": seen.whole,
        "not_whole": seen.broken,
        "errors": seen.errors,
        "unfinished": seen.unfinished,
        "load_core_share": seen.cpu_s / seen.seconds,
    }
    if scenario.events is None:
        return figures | {"requests_per_s": seen.whole / seen.seconds, **_times("latency", seen.latency)}
    return figures | {
        "events_per_s": seen.events / seen.seconds,
        "coalesced_share": _each(seen.coalesced, seen.events),
        **_times("ttft", seen.ttft),
        **_times("itl", seen.itl),
    }


def _times(name: str, times: Times | None) -> Figures:
    return {
        f"{name}_p50_ms": None if times is None else times.p50,
        f"{name}_p99_ms": None if times is None else times.p99,
    }


def _each(total: float, number: int) -> float | None:
    return total / number if number else None
