"""The engine's rules in their plainest form, one sequence after another in every step: what the fast one is compared with."""

import heapq
from bisect import insort
from dataclasses import dataclass, field
from operator import attrgetter

from backends.simulated.kv_cache import BlockHash, BlockTable, KvCache
from backends.simulated.options import EngineOptions
from backends.simulated.statistics import Counters, Statistics
from backends.simulated.step import Emission

_BY_RANK = attrgetter("rank")
_JITTER_RATIO = 0.05


@dataclass(slots=True, kw_only=True, eq=False)
class ReferenceSequence:
    """As EngineSequence, every figure written at every token."""

    seq_id: int
    prompt_tokens: int
    limit_tokens: int
    finish_reason: str
    block_hash: BlockHash
    priority: int = 0
    rank: tuple[int, int] = (0, 0)
    arrived_s: float = 0.0
    computed_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int | None = None
    preemptions: int = 0
    lost_tokens: int = 0
    table: BlockTable = field(default_factory=BlockTable)


@dataclass(slots=True)
class ReferenceStep:
    """A step's time and results."""

    duration_s: float
    emissions: list[Emission]


class _Work:
    """What a step computes, in the units of the roofline."""

    __slots__ = ("attention_pairs", "budget", "decode_seqs", "emissions", "kv_tokens", "prefill_tokens")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.prefill_tokens = 0
        self.decode_seqs = 0
        self.kv_tokens = 0
        self.attention_pairs = 0.0
        self.emissions: list[Emission] = []


class ReferenceEngine:
    """Driven as Engine is; takes every sequence that is added."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.kv = KvCache(options.total_blocks)
        self.asleep = False
        self._model = options.step_model()
        self._block_size = options.block_size
        self._counters = Counters()
        self._sequences: dict[int, ReferenceSequence] = {}
        self._running: list[ReferenceSequence] = []  # by rank
        self._waiting: list[tuple[tuple[int, int], ReferenceSequence]] = []  # heap by rank; ranks are unique
        self._finishing: list[ReferenceSequence] = []  # they hold their blocks until the step that ends them is over
        self._arrivals = 0
        self._jitter = options.seed

    def add(self, sequence: ReferenceSequence, now: float) -> None:
        self._arrivals += 1
        sequence.rank = (sequence.priority if self.options.priority_scheduling else 0, self._arrivals)
        sequence.arrived_s = now
        self._sequences[sequence.seq_id] = sequence
        heapq.heappush(self._waiting, (sequence.rank, sequence))

    def abort(self, seq_id: int) -> None:
        """Forget a sequence and free what it holds; one that is unknown or ended is ignored."""
        sequence = self._sequences.pop(seq_id, None)
        if sequence is None:
            return
        self._counters.count_end("abort")
        if sequence in self._running:
            self._running.remove(sequence)
            self.kv.release(sequence.table)
        else:
            self._waiting.remove((sequence.rank, sequence))
            heapq.heapify(self._waiting)

    def step(self, now: float) -> ReferenceStep | None:
        """Start the next step; None: nothing to do, or asleep. The step before it is over when this is called."""
        self._settle()
        if self.asleep or not self._sequences:
            return None
        work = _Work(self.options.max_num_batched_tokens)
        if not self._continue_running(work):
            self._admit_waiting(work, now)
        self._counters.steps += 1
        self._counters.step_tokens += work.prefill_tokens + work.decode_seqs
        return ReferenceStep(self._duration_s(work), work.emissions)

    def sleep(self) -> None:
        """Give up all KV memory and stop stepping; what ran waits and is recomputed after `wake`."""
        self._settle()
        self.asleep = True
        while self._running:
            self._preempt(self._running[-1])
        self.kv.forget()

    def wake(self) -> None:
        self.asleep = False

    def statistics(self) -> Statistics:
        return self._counters.statistics(
            running=len(self._running),
            waiting=len(self._waiting),
            waiting_tokens=sum(s.prompt_tokens + s.generated_tokens for _, s in self._waiting),
            kv=self.kv,
        )

    def _settle(self) -> None:
        for sequence in self._finishing:
            if self._sequences.pop(sequence.seq_id, None) is not None:
                self._running.remove(sequence)
                self.kv.release(sequence.table)
                self._counters.count_end(sequence.finish_reason)
        self._finishing.clear()

    def _continue_running(self, work: _Work) -> bool:
        """Give every running sequence its next tokens, preempting from the end; True: something was preempted."""
        preempted = False
        running = self._running
        index = 0
        while index < len(running) and work.budget > 0:
            sequence = running[index]
            tokens = min(
                sequence.prompt_tokens + sequence.generated_tokens - sequence.computed_tokens,
                work.budget,
            )
            blocks = self._missing_blocks(sequence, tokens)
            while blocks > 0 and not self.kv.allocate(sequence.table, blocks):
                victim = running[-1]
                self._preempt(victim)
                preempted = True
                if victim is sequence:
                    return True
            self._compute(sequence, tokens, work)
            index += 1
        return preempted

    def _admit_waiting(self, work: _Work, now: float) -> None:
        while self._waiting and work.budget > 0 and len(self._running) < self.options.max_num_seqs:
            if not self.kv.available_blocks:
                return
            sequence = self._waiting[0][1]
            total = sequence.prompt_tokens + sequence.generated_tokens
            # The last token is always computed: its logits are what the next token is sampled from.
            hits = self.kv.match(sequence.block_hash, (total - 1) // self._block_size)
            self.kv.claim(sequence.table, hits)
            sequence.computed_tokens = len(hits) * self._block_size
            tokens = min(total - sequence.computed_tokens, work.budget)
            if not self.kv.allocate(sequence.table, self._missing_blocks(sequence, tokens)):
                self.kv.release(sequence.table)
                sequence.computed_tokens = 0
                return
            heapq.heappop(self._waiting)
            insort(self._running, sequence, key=_BY_RANK)
            if sequence.cached_tokens is None:
                self._count_admission(sequence, now)
            else:
                self._counters.recomputed_tokens += max(sequence.lost_tokens - sequence.computed_tokens, 0)
            self._compute(sequence, tokens, work)

    def _count_admission(self, sequence: ReferenceSequence, now: float) -> None:
        sequence.cached_tokens = sequence.computed_tokens
        self._counters.prefix_queries += sequence.prompt_tokens
        self._counters.prefix_hits += sequence.cached_tokens
        self._counters.admissions += 1
        self._counters.queue_time_s += now - sequence.arrived_s

    def _missing_blocks(self, sequence: ReferenceSequence, tokens: int) -> int:
        return -(-(sequence.computed_tokens + tokens) // self._block_size) - sequence.table.blocks

    def _compute(self, sequence: ReferenceSequence, tokens: int, work: _Work) -> None:
        work.budget -= tokens
        computed = sequence.computed_tokens = sequence.computed_tokens + tokens
        generated = sequence.generated_tokens
        if tokens == 1 and generated:
            work.decode_seqs += 1
            work.kv_tokens += computed
        else:
            work.prefill_tokens += tokens
            work.attention_pairs += tokens * (computed - tokens / 2)
        full_blocks = computed // self._block_size
        if full_blocks > sequence.table.committed:
            self.kv.commit(sequence.table, full_blocks, sequence.block_hash)
        if computed == sequence.prompt_tokens + generated:
            self._emit(sequence, work)

    def _emit(self, sequence: ReferenceSequence, work: _Work) -> None:
        index = sequence.generated_tokens if sequence.limit_tokens else -1
        if index <= 0:
            self._counters.prompt_tokens += sequence.prompt_tokens
        if index >= 0:
            sequence.generated_tokens += 1
            self._counters.generation_tokens += 1
        finish = sequence.finish_reason if index + 1 >= sequence.limit_tokens else None
        if finish is not None:
            self._finishing.append(sequence)
        work.emissions.append(Emission(sequence.seq_id, index, finish))

    def _preempt(self, victim: ReferenceSequence) -> None:
        self._running.remove(victim)
        self.kv.release(victim.table)
        victim.lost_tokens = victim.computed_tokens
        victim.computed_tokens = 0
        victim.preemptions += 1
        self._counters.preemptions += 1
        heapq.heappush(self._waiting, (victim.rank, victim))

    def _duration_s(self, work: _Work) -> float:
        model = self._model
        duration = model.step_s(
            prefill_tokens=work.prefill_tokens, decode_seqs=work.decode_seqs, kv_tokens=work.kv_tokens
        )
        # `step_s` knows one prompt's context; a step may hold chunks of many, so their attention is summed here.
        duration += model.attention_s * work.attention_pairs
        if not self.options.seed:
            return duration
        self._jitter = (self._jitter * 6364136223846793005 + 1442695040888963407) % 2**64  # Knuth's MMIX generator
        return duration * (1 + _JITTER_RATIO * (self._jitter / 2**63 - 1))
