"""Batch beside interactive work in waves, after llm-d-batch-gateway#491 (its benchmark's README, revision 22b5ac7).

There: one or two replicas, bursts of 15 requests a second and an idle 1, 60 to 120 s each, 3 to 5 times, 512 tokens in and 128
out; three batch jobs of 1,000 requests, all there before, to be done within 30 min, 2 h and 24 h; one replica did some 4 batch
requests a second while it was idle. Here everything is a replica's share. An A100 of the simulator does at most 13 such
interactive requests a second, so bursts are 8 (60 %, the ratio of 15 to 1 is kept); batch prompts are longer (1,500 in, 300 out),
so that a replica does 4 a second as well; 500 requests a replica and job outlast three cycles of 60 s phases. There a processor
sends batch with bounded concurrency; here the gateway gets all of it at once, which only a gateway with tiers can bear, or at an
even `batch_rps`, which is kinder to the others.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

import numpy as np

from batching.queue import OUTPUT_TOKEN_WEIGHT
from batching.request import ServiceTier
from benchmarks.mixes import Ended, Played, played, replicas_of
from benchmarks.service import service
from router.simulation.report import percentile
from router.simulation.run import End
from router.simulation.trace import Call

_CHAT_TOKENS: Final = (512, 128)  # in, out
_BATCH_TOKENS: Final = (1500, 300)
_JOBS_WAIT_S: Final = {"bulk-30min": 1800.0, "bulk-2h": 7200.0, "bulk-24h": 86_400.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Waves:
    """Rates and requests are for each replica; bursts and idle times take turns, a burst first."""

    burst_rps: float = 8.0
    idle_rps: float = 8.0 / 15
    phase_s: float = 60.0
    cycles: int = 3
    job_requests: int = 500  # of each of the three jobs
    batch_rps: float | None = None  # None: batch is all there at once

    @property
    def seconds(self) -> float:
        return 2 * self.cycles * self.phase_s

    def in_burst(self, time_s: float) -> bool:
        return time_s < self.seconds and time_s // self.phase_s % 2 == 0

    def idle_spans(self) -> Iterator[tuple[float, float]]:
        for cycle in range(self.cycles):
            yield (2 * cycle + 1) * self.phase_s, (2 * cycle + 2) * self.phase_s


def chat(waves: Waves, replicas: int, seed: int) -> list[Call]:
    """Poisson arrivals, by thinning those of the bursts."""
    random, calls, now_s = Random(seed), [], 0.0
    while (now_s := now_s + random.expovariate(waves.burst_rps * replicas)) < waves.seconds:
        if waves.in_burst(now_s) or random.random() < waves.idle_rps / waves.burst_rps:
            calls.append(Call(arrival_s=now_s, prompt_tokens=_CHAT_TOKENS[0], output_tokens=_CHAT_TOKENS[1]))
    return calls


def batch(waves: Waves, replicas: int) -> list[Call]:
    """Three jobs, in turn; each may wait as long as its window."""
    apart_s = 0.0 if waves.batch_rps is None else 1 / (waves.batch_rps * replicas)
    jobs = list(_JOBS_WAIT_S.items()) * (waves.job_requests * replicas)
    return [
        Call(
            arrival_s=number * apart_s,
            prompt_tokens=_BATCH_TOKENS[0],
            output_tokens=_BATCH_TOKENS[1],
            service_tier=ServiceTier.BATCH,
            max_wait_s=wait_s,
            tenant=job,
        )
        for number, (job, wait_s) in enumerate(jobs)
    ]


def batch_beside_interactive(fleet: Path, policy: str, waves: Waves, seed: int) -> dict[str, object]:
    """What interactive requests notice of batch in the bursts, and what batch can do meanwhile and while they are few.

    A `cap` is the throughput ratio that is left to batch if interactive requests cost no more than they would as batch.
    """
    replicas = replicas_of(fleet)
    asked, bulk = chat(waves, replicas, seed), batch(waves, replicas)
    alone_s = _burst_ttft_p95_s(played(fleet, asked, policy, seed).requests, waves)
    bulk_alone_s = _last_s(played(fleet, bulk, policy, seed))
    both = played(fleet, [*asked, *bulk], policy, seed)
    together_s, bulk_s = _burst_ttft_p95_s(both.requests, waves), _last_s(both)
    jobs = [ended for ended in both.requests if ended.call.service_tier is ServiceTier.BATCH]
    done = [ended for ended in jobs if ended.life.end is End.COMPLETED]
    while_idle = _served_while_idle(done, waves, bulk_s) / (_tokens(bulk) / bulk_alone_s) if done else 0.0
    packed_s = _packed_s(fleet, policy, asked, bulk_s, seed)
    idle_share = waves.idle_rps * replicas * packed_s / sum(call.arrival_s < bulk_s for call in asked)
    return {
        "interactive_ttft_p95_alone_s": alone_s,
        "interactive_ttft_p95_with_batch_s": together_s,
        "ttft_ratio": _ratio(together_s, alone_s),
        "interactive_attainment": both.figures["by_service_tier"]["default"]["slo_attainment"],
        "batch_completed": f"{len(done)}/{len(jobs)}",
        "batch_seconds_alone": bulk_alone_s,
        "batch_seconds_with_interactive": bulk_s,
        "batch_throughput_ratio_while_idle": round(while_idle, 3),
        "cap_while_idle": round(1 - idle_share, 3),
        "batch_throughput_ratio": _ratio(bulk_alone_s, bulk_s),
        "cap": round(bulk_alone_s / (bulk_alone_s + packed_s), 3),
    }


def _burst_ttft_p95_s(requests: Iterable[Ended], waves: Waves) -> float | None:
    """Of completed interactive requests that arrived in a burst."""
    return percentile(
        sorted(
            ended.life.first_s - ended.call.arrival_s
            for ended in requests
            if ended.call.service_tier is not ServiceTier.BATCH
            and ended.life.end is End.COMPLETED
            and ended.life.first_s is not None
            and waves.in_burst(ended.call.arrival_s)
        ),
        0.95,
    )


def _last_s(run: Played) -> float:
    return float(run.figures["by_service_tier"]["batch"]["last_s"])


def _tokens(calls: Sequence[Call]) -> float:
    """Weighted as `service` does."""
    return float(sum(call.prompt_tokens + OUTPUT_TOKEN_WEIGHT * call.output_tokens for call in calls))


def _served_while_idle(done: Sequence[Ended], waves: Waves, bulk_s: float) -> float:
    """Weighted tokens a second in the idle phases that the batch lived to see."""
    spans = [(start, min(end, bulk_s)) for start, end in waves.idle_spans() if start < bulk_s]
    seconds = sum(end - start for start, end in spans)
    if not seconds:
        return 0.0
    curve = service(done)
    tokens = sum(float(np.diff(curve.at(np.array(span)))[0]) for span in spans)
    return tokens / seconds


def _packed_s(fleet: Path, policy: str, asked: Sequence[Call], bulk_s: float, seed: int) -> float:
    """Seconds of the whole fleet that the interactive requests of the batch's time cost if served as batch, all at once."""
    meanwhile = [
        replace(call, arrival_s=0.0, service_tier=ServiceTier.BATCH, max_wait_s=86_400.0)
        for call in asked
        if call.arrival_s < bulk_s
    ]
    return _last_s(played(fleet, meanwhile, policy, seed)) if meanwhile else 0.0


def _ratio(part: float | None, whole: float | None) -> float | None:
    return round(part / whole, 3) if part is not None and whole else None
