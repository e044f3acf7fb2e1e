"""AIBrix's `slo-pack-load`: the fullest replica that still fits the request inside its objective, else the queue."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from batching.blocks import DEFAULT_BLOCK_SIZE
from batching.policies.base import Counting
from batching.policies.output_histogram import OutputHistogram, bucket
from batching.policies.policy import Candidate
from batching.replica import ReplicaProfile
from batching.request import ReplicaId, Request, RequestId
from config.gpus import gpu_table, step_model

CAP: Final = 1.0
TPOT_OBJECTIVE_S: Final = 0.1  # of the profiles; the gateway's own default objective
_ROUNDING: Final = 1e-9  # ten tenths are one
_MAX_PROFILED: Final = 8192  # cells: twenty kinds of replica at 400 kinds of request


@dataclass(frozen=True, slots=True)
class _Cell:
    """One cell of an offline profile: requests of one size on one kind of replica."""

    gpu: str
    gpu_count: int
    speed: float
    kv_tokens: int | None
    max_num_seqs: int | None
    prompt: int  # log2 of tokens, as the original's grid
    output: int


class SloPackLoad(Counting):
    """`utilization + consumption <= 1`, of those the greatest sum, else held; the least id among equals.

    Source: vllm-project/aibrix (e3e10f9e, 2026-08-22), pkg/plugins/gateway/algorithms/pack_load.go and slo.go,
    pkg/cache/pending_load_provider.go. A request consumes `1 / (throughput * latency)` of a replica - by Little's law
    one over the requests in flight it sustains inside the objective - as told by an offline profile of the GPU for such a
    prompt and output (powers of two); the output is drawn from recent answers. A replica's utilization is the sum of
    what is in flight there: the gateway's own count, exact and fresh, so nothing is scraped.

    Profiles here are not measured: they are `config.gpus.step_model` of the candidate's GPU (8B model), the very model that
    the simulated engines run on, which flatters this baseline. Objective: 0.1 s per output token. A GPU that is not in that
    table has no profile and gets nothing; if none has, or none can meet the objective at all (the original refuses then), the
    fewest requests in flight decide: its fallback.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._outputs: defaultdict[str, OutputHistogram] = defaultdict(lambda: OutputHistogram(Random(seed)))
        self._sustained: dict[_Cell, int] = {}
        self._utilization: dict[ReplicaId, float] = {}
        self._consumed: dict[tuple[RequestId, ReplicaId], float] = {}
        self._chosen: tuple[RequestId, ReplicaId, float] | None = None

    def choose(self, request: Request, candidates: Sequence[Candidate], now: float) -> ReplicaId | None:  # noqa: ARG002
        self._chosen = None
        output_tokens = self._outputs[request.model].predict(request.prompt_tokens)
        fullest, reached = 0.0, False
        for candidate in sorted(candidates, key=lambda c: c.id):
            sustained = self._sustains(candidate.profile, request.prompt_tokens, output_tokens)
            if not sustained:
                continue
            reached = True
            filled = self._utilization.get(candidate.id, 0.0) + 1 / sustained
            if fullest < filled <= CAP + _ROUNDING:
                fullest = filled
                self._chosen = request.id, candidate.id, 1 / sustained
        if self._chosen is not None:
            return self._chosen[1]
        return None if reached else self.least(candidates, lambda c: self.in_flight[c.id])

    def placed(self, request: Request, replica: ReplicaId, now: float) -> None:
        super().placed(request, replica, now)
        if self._chosen is not None and self._chosen[:2] == (request.id, replica):
            consumption = self._chosen[2]
            self._consumed[request.id, replica] = consumption
            self._utilization[replica] = self._utilization.get(replica, 0.0) + consumption

    def finished(self, request: Request, replica: ReplicaId, now: float) -> None:
        super().finished(request, replica, now)
        consumption = self._consumed.pop((request.id, replica), 0.0)
        if replica in self.in_flight:
            self._utilization[replica] = self._utilization.get(replica, 0.0) - consumption
        else:
            self._utilization.pop(replica, None)  # exactly zero, whatever the sums were rounded to

    def answered(self, request: Request, output_tokens: int, now: float) -> None:
        self._outputs[request.model].add(request.prompt_tokens, output_tokens, now)

    def _sustains(self, profile: ReplicaProfile, prompt_tokens: int, output_tokens: int) -> int:
        """Requests in flight; 0: no profile, or not even one inside the objective."""
        if profile.gpu not in gpu_table():
            return 0
        kv_tokens = (
            None if profile.kv_blocks is None else profile.kv_blocks * (profile.block_size or DEFAULT_BLOCK_SIZE)
        )
        cell = _Cell(
            gpu=profile.gpu,
            gpu_count=profile.gpu_count,
            speed=profile.speed,
            kv_tokens=kv_tokens,
            max_num_seqs=profile.max_num_seqs,
            prompt=bucket(prompt_tokens),
            output=bucket(output_tokens),
        )
        if cell not in self._sustained:
            if len(self._sustained) >= _MAX_PROFILED:
                self._sustained.clear()
            self._sustained[cell] = _profiled(cell)
        return self._sustained[cell]


def _profiled(cell: _Cell) -> int:
    """The most requests B whose steady state keeps `step(B) <= objective` and fits the KV cache and the sequence slots.

    Each step decodes one token for all B and, as each lives for `output` steps, prefills B * prompt / output tokens:
    step(B) = overhead + max(weights, B * token * (1 + prompt / output)) + B * (attention * prompt/output * prompt/2 + kv * held),
    with held = prompt + output / 2 tokens of context on average.
    """
    step = step_model(cell.gpu, count=cell.gpu_count, speed=cell.speed)
    prompt, output = 2**cell.prompt, 2**cell.output
    held = prompt + output / 2
    if step.step_s(decode_seqs=1, kv_tokens=prompt + output) > TPOT_OBJECTIVE_S:
        return 0
    each_s = step.attention_s * prompt / output * prompt / 2 + step.kv_token_s * held
    left_s = TPOT_OBJECTIVE_S - step.overhead_s
    sustained = min((left_s - step.weights_s) / each_s, left_s / (each_s + step.token_s * (1 + prompt / output)))
    if cell.kv_tokens is not None:
        sustained = min(sustained, cell.kv_tokens / held)
    if cell.max_num_seqs is not None:
        sustained = min(sustained, cell.max_num_seqs)
    return max(1, int(sustained))  # alone, a request's own prefill is not between its tokens
