"""The figures an engine reports, under the names our probes use; vLLM's names are in `exposition.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from backends.simulated.kv_cache import KvCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """One look at an engine. Totals count since it was made."""

    running: int
    waiting: int
    waiting_tokens: int  # prompt and generated tokens of those that wait, cached ones included
    kv_usage_ratio: float
    preemptions_total: int
    recomputed_tokens_total: (
        int  # computed again after a preemption or a sleep; what the prefix cache still held is not
    )
    prefix_queries_total: int  # prompt tokens looked up
    prefix_hits_total: int  # ... and found
    prompt_tokens_total: int
    generation_tokens_total: int
    draft_tokens_total: int  # of speculative decoding
    accepted_tokens_total: int  # ... that were right
    iteration_total: int
    iteration_tokens_total: int
    queue_time_s_total: float
    admissions_total: int
    finished_total: Mapping[str, int]  # by finish reason


@dataclass(slots=True)
class Counters:
    """What an engine counts as it steps."""

    preemptions: int = 0
    recomputed_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0
    step_tokens: int = 0
    queue_time_s: float = 0.0
    admissions: int = 0
    ends: dict[str, int] = field(default_factory=dict)  # keys: stop, length, abort

    def count_end(self, reason: str) -> None:
        self.ends[reason] = self.ends.get(reason, 0) + 1

    def statistics(self, *, running: int, waiting: int, waiting_tokens: int, kv: KvCache) -> Statistics:
        return Statistics(
            running=running,
            waiting=waiting,
            waiting_tokens=waiting_tokens,
            kv_usage_ratio=kv.used_blocks / kv.total_blocks,
            preemptions_total=self.preemptions,
            recomputed_tokens_total=self.recomputed_tokens,
            prefix_queries_total=self.prefix_queries,
            prefix_hits_total=self.prefix_hits,
            prompt_tokens_total=self.prompt_tokens,
            generation_tokens_total=self.generation_tokens,
            draft_tokens_total=self.draft_tokens,
            accepted_tokens_total=self.accepted_tokens,
            iteration_total=self.steps,
            iteration_tokens_total=self.step_tokens,
            queue_time_s_total=self.queue_time_s,
            admissions_total=self.admissions,
            finished_total=dict(self.ends),
        )
