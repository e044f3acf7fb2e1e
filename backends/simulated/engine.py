"""One engine step after another: who is in the batch, how long the step takes, who gets a token. Pure; time is an argument.

vLLM V1's scheduler in outline: running sequences first, then waiting ones, under one token budget per step (so prompts are
prefilled in chunks beside decodes); when KV blocks run out the last in rank is preempted and recomputed later. Counts only:
words, stops and wire shapes are made by those who read the steps.
"""

from typing import NamedTuple

from backends.simulated.kv_cache import KvCache
from backends.simulated.options import EngineOptions
from backends.simulated.running import RunningSequences
from backends.simulated.sequence import EngineSequence
from backends.simulated.speculation import DRAFT_RATIO
from backends.simulated.statistics import Counters, Statistics
from backends.simulated.step import Emission, StepResult, Work
from backends.simulated.waiting import WaitingQueue

__all__ = ["Emission", "Engine", "EngineBusy", "StepResult", "TooLarge"]

_JITTER_RATIO = (
    0.05  # of a step's time, uniform; only with a seed: about what kernels and clocks vary from step to step
)


class TooLarge(Exception):
    """The sequence could never fit the KV cache, even alone."""


class EngineBusy(Exception):
    """As many requests wait as may."""


class _Blocked(NamedTuple):
    """The first in the queue did not fit; it will not either while nothing that its attempt read has changed for the better."""

    sequence: EngineSequence
    changes: int  # of the KV cache
    tokens: int
    available_blocks: int
    idle_hits: int  # its cached blocks that nobody holds: last to be evicted, because the attempt touched them


class Engine:
    """A replica's engine. Drive it with `step` until that returns None, again after every `add` or `wake`."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.kv = KvCache(options.total_blocks)
        self.asleep = False
        self._model = options.step_model()
        self._block_size = options.block_size
        self._counters = Counters()
        self._sequences: dict[int, EngineSequence] = {}
        self._waiting = WaitingQueue()
        self._blocked: _Blocked | None = None
        self._running = RunningSequences(self.kv, self._waiting, self._counters, options)
        self._finishing: list[EngineSequence] = []  # they hold their blocks until the step that ends them is over
        self._arrivals = 0
        self._jitter = options.seed

    def add(self, sequence: EngineSequence, now: float) -> None:
        """Queue a sequence; raises `TooLarge` or `EngineBusy`."""
        blocks = -(-(sequence.prompt_tokens + sequence.limit_tokens) // self._block_size)
        if blocks > self.kv.total_blocks:
            raise TooLarge(f"needs {blocks} KV blocks, the engine has {self.kv.total_blocks}")
        if len(self._waiting) >= self.options.max_queued:
            raise EngineBusy
        self._arrivals += 1
        sequence.rank = (sequence.priority if self.options.priority_scheduling else 0, self._arrivals)
        sequence.arrived_s = now
        self._sequences[sequence.seq_id] = sequence
        self._waiting.push(sequence)

    def abort(self, seq_id: int) -> None:
        """Forget a sequence and free what it holds; one that is unknown or ended is ignored."""
        sequence = self._sequences.pop(seq_id, None)
        if sequence is None:
            return
        self._counters.count_end("abort")
        if not self._running.stop(sequence):
            self._waiting.discard(sequence)

    def step(self, now: float) -> StepResult | None:
        """Start the next step; None: nothing to do, or asleep. The step before it is over when this is called."""
        self._settle()
        if self.asleep or not self._sequences:
            return None
        work = Work(self.options.max_num_batched_tokens)
        if self._running.plan(work) and len(self._waiting):
            self._admit_waiting(work, now)
        self._running.close(work)
        self._finishing = work.finished
        self._counters.steps += 1
        self._counters.step_tokens += work.prefill_tokens + work.decode_tokens
        return StepResult(
            self._duration_s(work), work.first, work.finished, work.grown, work.decoded, work, self._running.ticks
        )

    def sleep(self) -> None:
        """Give up all KV memory and stop stepping; what ran waits and is recomputed after `wake`."""
        self._settle()
        self.asleep = True
        while len(self._running):
            self._running.preempt_last()
        self.kv.forget()

    def wake(self) -> None:
        self.asleep = False

    def reset_prefix_cache(self) -> None:
        self.kv.forget()

    def statistics(self) -> Statistics:
        return self._counters.statistics(
            running=len(self._running), waiting=len(self._waiting), waiting_tokens=self._waiting.tokens, kv=self.kv
        )

    def _settle(self) -> None:
        for sequence in self._finishing:
            if self._sequences.get(sequence.seq_id) is sequence:
                del self._sequences[sequence.seq_id]
                self._running.stop(sequence)
                self._counters.count_end(sequence.finish_reason)
        self._finishing = []

    def _admit_waiting(self, work: Work, now: float) -> None:
        while len(self._waiting) and work.budget > 0 and len(self._running) < self.options.max_num_seqs:
            if not self.kv.available_blocks:
                return
            sequence = self._waiting.first()
            if self._is_blocked(sequence, work.budget):
                return
            total = sequence.total_tokens
            available_blocks, idle_blocks = self.kv.available_blocks, self.kv.idle_blocks
            # The last token is always computed: its logits are what the next token is sampled from.
            hits = self.kv.match(sequence.block_hash, (total - 1) // self._block_size)
            self.kv.claim(sequence.table, hits)
            idle_hits = idle_blocks - self.kv.idle_blocks
            sequence.read_tokens = len(hits) * self._block_size
            tokens = min(total - sequence.read_tokens, work.budget)
            blocks = -(-(sequence.read_tokens + tokens) // self._block_size) - len(hits)
            if not self.kv.allocate(sequence.table, blocks):
                self.kv.release(sequence.table)
                sequence.read_tokens = 0
                self._blocked = _Blocked(sequence, self.kv.changes, tokens, available_blocks, idle_hits)
                return
            self._blocked = None
            self._waiting.pop()
            if sequence.cached_tokens is None:
                self._count_admission(sequence, now)
            else:
                self._counters.recomputed_tokens += max(sequence.lost_tokens - sequence.read_tokens, 0)
            self._running.start(sequence, tokens, work)

    def _is_blocked(self, sequence: EngineSequence, budget: int) -> bool:
        """Whether an attempt to admit it would fail as its last one did, and leave the cache as it is."""
        blocked, kv = self._blocked, self.kv
        return (
            blocked is not None
            and blocked.sequence is sequence
            and blocked.changes == kv.changes
            and blocked.tokens <= budget
            and blocked.available_blocks >= kv.available_blocks
            and blocked.idle_hits <= kv.idle_blocks
        )

    def _count_admission(self, sequence: EngineSequence, now: float) -> None:
        sequence.cached_tokens = sequence.read_tokens
        self._counters.prefix_queries += sequence.prompt_tokens
        self._counters.prefix_hits += sequence.cached_tokens
        self._counters.admissions += 1
        self._counters.queue_time_s += now - sequence.arrived_s

    def _duration_s(self, work: Work) -> float:
        duration = self._model.step_s(
            prefill_tokens=work.prefill_tokens,
            decode_seqs=work.decode_tokens,
            kv_tokens=work.kv_tokens,
            attention_pairs=work.attention_pairs,
            sequences=work.sequences,
        )
        duration += DRAFT_RATIO * self._model.weights_s * work.drafts
        if not self.options.seed:
            return duration
        self._jitter = (self._jitter * 6364136223846793005 + 1442695040888963407) % 2**64  # Knuth's MMIX generator
        return duration * (1 + _JITTER_RATIO * (self._jitter / 2**63 - 1))
