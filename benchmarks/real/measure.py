"""One policy over one workload: a fresh gateway before the running engines, warmed up, loaded, and given up. Figures by name."""

import asyncio
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import yaml

from benchmarks.overhead.processes import Running, Target, free_port
from benchmarks.real.client import Answer, send_all
from benchmarks.real.engines import Engine, Seen, Watch, counters
from benchmarks.real.gateway import EVERY_S
from benchmarks.real.workload import Ask

Figures = dict[str, Any]
_MAX_WAIT_S: Final = 600.0  # nobody is sent away: a policy that makes clients wait shows it in its times

_CANARY_S: Final = 0.05
_PROBE_TIMEOUT_S: Final = (
    10.0  # engines that get no core for 6 s are not down, and availability is not the question here
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What one run left behind; several of the same policy can be put together."""

    answers: list[Answer]
    seen: Mapping[str, Seen]
    queued: list[float]
    client_lag_s: float  # the longest that our own loop, which has little to do, got no core
    gateway_lag_s: float  # the longest that its loop was held up, or got no core
    gateway_cpu_s: float
    grown: Mapping[str, float]  # counters of the engines, over the run
    loads: list[float] = field(default_factory=list)  # the machine's load average before and after
    learned: list[dict[str, Any]] = field(default_factory=list)


def config_of(engines: Sequence[Engine], *, policy: str, port: int, objectives: Mapping[str, float]) -> dict[str, Any]:
    """The gateway's configuration: equal but for `policy`."""
    return {
        "server": {"port": port},
        "log_level": "warning",
        "replicas": [engine.replica() for engine in engines],
        "queue": {"max_wait_s": _MAX_WAIT_S},
        "probe": {"timeout_s": _PROBE_TIMEOUT_S},
        "scheduling": {"policy": policy, **({"objectives": dict(objectives)} if objectives else {})},
    }


def run_policy(
    engines: Sequence[Engine],
    policy: str,
    *,
    asks: Sequence[Ask],
    first: Sequence[Ask],
    folder: Path,
    objectives: Mapping[str, float],
) -> Observed:
    """`first` is sent and forgotten before `asks`. Raises RuntimeError where the gateway does not start."""
    port = free_port()
    config, learned = folder / "penstock.yaml", folder / "learned.jsonl"
    learned.unlink(missing_ok=True)
    config.write_text(yaml.safe_dump(config_of(engines, policy=policy, port=port, objectives=objectives)))
    for engine in engines:
        engine.forget_prefixes()
    command = (sys.executable, "-m", "benchmarks.real.gateway", "--config", str(config), "--learned", str(learned))
    target = Target(name=policy, command=command, port=port, ready_path="/readyz")
    with Running(target, cores=frozenset(), log=folder / "gateway.log"):
        loads = [os.getloadavg()[0]]
        answers, watch, grown, lag_s = asyncio.run(_load(engines, port, asks, first))
        loads.append(os.getloadavg()[0])
    lines = [json.loads(line) for line in learned.read_text().splitlines()]
    return Observed(
        answers=answers,
        seen=watch.seen,
        queued=watch.queued,
        client_lag_s=lag_s,
        gateway_lag_s=max((after["at_s"] - before["at_s"] - EVERY_S for before, after in pairwise(lines)), default=0.0),
        gateway_cpu_s=lines[-1]["cpu_s"] - lines[0]["cpu_s"],
        grown=grown,
        loads=loads,
        learned=_settling(lines),
    )


async def _load(
    engines: Sequence[Engine], port: int, asks: Sequence[Ask], first: Sequence[Ask]
) -> tuple[list[Answer], Watch, dict[str, float], float]:
    await send_all(port, first)
    before, watch, lags = counters(engines), Watch(engines, port), [0.0]
    loop = asyncio.get_running_loop()
    watching, canary = loop.create_task(watch.run()), loop.create_task(_canary(lags))
    answers = await send_all(port, asks)
    watching.cancel()
    canary.cancel()
    await asyncio.gather(watching, canary, return_exceptions=True)
    await asyncio.sleep(1)  # an engine counts what it has just done with its next step
    return answers, watch, {name: value - before[name] for name, value in counters(engines).items()}, max(lags)


async def _canary(lags: list[float]) -> None:
    """How late one is woken who wants next to nothing: what no policy can do anything about."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + _CANARY_S
        await asyncio.sleep(_CANARY_S)
        lags.append(loop.time() - due_s)


def _settling(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first line after each doubling of the requests placed, and the last."""
    kept, due = [], 1
    for line in lines:
        if line["placed"] >= due:
            kept.append(line)
            due = 2 * line["placed"]
    return [*kept, *(line for line in lines[-1:] if line not in kept)]


def together(runs: Sequence[Observed]) -> Figures:
    """One column: counts are sums over the runs, times are quantiles of all their answers."""
    answers = [answer for run in runs for answer in run.answers]
    whole = [answer for answer in answers if answer.error is None]
    waiting = [value for run in runs for seen in run.seen.values() for value in seen.waiting]
    output = sum(answer.output_tokens or 0 for answer in whole)
    spans = [max(a.end_s for a in run.answers) - min(a.due_s for a in run.answers) for run in runs]
    names = list(runs[0].seen)
    return {
        "requests": len(answers),
        "completed": len(whole),
        "errors": dict(Counter(answer.error for answer in answers if answer.error is not None)),
        "engine_preemptions": int(sum(run.grown["preemptions"] for run in runs)),
        "ttft_p50_s": quantile([a.ttft_s for a in whole], 0.5),
        "ttft_p99_s": quantile([a.ttft_s for a in whole], 0.99),
        "tpot_p50_s": quantile([a.tpot_s for a in whole], 0.5),
        "tpot_p99_s": quantile([a.tpot_s for a in whole], 0.99),
        "e2e_p50_s": quantile([a.end_s - a.due_s for a in whole], 0.5),
        "e2e_p99_s": quantile([a.end_s - a.due_s for a in whole], 0.99),
        "kv_usage_p50": {name: round(median(v for run in runs for v in run.seen[name].kv_usage), 2) for name in names},
        "kv_usage_max": {name: round(max(v for run in runs for v in run.seen[name].kv_usage), 2) for name in names},
        "engine_waiting_max": int(max(waiting)),
        "engine_waiting_mean": fmean(waiting),
        "gateway_queue_max": int(max(value for run in runs for value in run.queued)),
        "client_lag_max_s": max(run.client_lag_s for run in runs),
        "gateway_lag_max_s": max(run.gateway_lag_s for run in runs),
        "gateway_cpu_s": sum(run.gateway_cpu_s for run in runs),
        "output_tokens": output,
        "output_tokens_per_s": output / sum(spans),
        "prefix_hit_tokens": int(sum(run.grown["prefix_hit_tokens"] for run in runs)),
        "machine_load": fmean(value for run in runs for value in run.loads),
    }


def quantile(values: Sequence[float | None], share: float) -> float | None:
    """The smallest value that `share` of those known do not exceed; None of none."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    return known[math.ceil(share * len(known)) - 1]
