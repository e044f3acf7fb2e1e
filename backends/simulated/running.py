"""The sequences that run: what each computes in a step, which blocks that takes, who is preempted when none are left.

Most of them just get their next token and are kept in a `DecodeBatch`, so a step costs what happens in it (ends, prompt chunks,
block boundaries) and not its batch. Where the token budget runs out among them, or a step's tokens differ because they are
drafted, they are gone through one by one.
"""

from bisect import bisect_left, insort
from operator import attrgetter, itemgetter

from backends.simulated.decode_batch import DecodeBatch
from backends.simulated.kv_cache import KvCache
from backends.simulated.options import EngineOptions
from backends.simulated.sequence import EngineSequence
from backends.simulated.speculation import Speculation
from backends.simulated.statistics import Counters
from backends.simulated.step import Emission, Work
from backends.simulated.waiting import WaitingQueue

_BY_RANK = attrgetter("rank")
_BY_RANK_AND_KIND = itemgetter(0, 1)
_GROWS, _FILLS, _READS = range(3)  # what happens to a sequence in a step, in this order


class RunningSequences:
    """Each decodes, or reads its prompt, or is finishing. Takes blocks of `kv`, sends who is preempted back to `waiting`."""

    def __init__(self, kv: KvCache, waiting: WaitingQueue, counters: Counters, options: EngineOptions) -> None:
        self._kv = kv
        self._waiting = waiting
        self._counters = counters
        self._block_size = options.block_size
        self._speculation = options.speculation
        self._running: list[EngineSequence] = []  # by rank
        self._reading: list[EngineSequence] = []  # ... of which these are not done with their prompts
        self._batch = DecodeBatch(options.block_size)  # empty with speculation

    def __len__(self) -> int:
        return len(self._running)

    @property
    def ticks(self) -> int:
        """The decode clock."""
        return self._batch.clock.now

    def plan(self, work: Work) -> bool:
        """The next tokens of those that run; False: something was preempted."""
        preemptions = self._counters.preemptions
        if self._speculation is None and self._all_fit_the_budget(work.budget):
            self._continue_together(work)
        else:
            self._continue_in_order(work)
        work.ran = len(work.emitted)
        return self._counters.preemptions == preemptions

    def start(self, sequence: EngineSequence, tokens: int, work: Work) -> None:
        """Take in a sequence that has its blocks, and compute its first `tokens`."""
        insort(self._running, sequence, key=_BY_RANK)
        if sequence.read_tokens + tokens < sequence.total_tokens:
            insort(self._reading, sequence, key=_BY_RANK)
        self._compute(sequence, tokens, work)

    def close(self, work: Work) -> None:
        """The step is planned: whoever got a token decodes from now on."""
        if self._speculation is None:
            for sequence in work.ready:
                self._batch.join(sequence)

    def stop(self, sequence: EngineSequence) -> bool:
        """Take a sequence out and free what it holds; False: it does not run."""
        index = bisect_left(self._running, sequence.rank, key=_BY_RANK)
        if index == len(self._running) or self._running[index] is not sequence:
            return False
        self._stop(index)
        return True

    def preempt_last(self) -> EngineSequence:
        """The last in rank waits again and is recomputed later."""
        victim = self._running[-1]
        self._stop(-1)
        victim.lost_tokens = victim.read_tokens
        victim.read_tokens = 0
        victim.preemptions += 1
        self._counters.preemptions += 1
        self._waiting.push(victim)
        return victim

    def _all_fit_the_budget(self, budget: int) -> bool:
        """Whether every sequence that decodes gets its token, so that rank decides nothing among them."""
        left = budget - len(self._batch)
        if left < 0 or not self._reading:
            return left >= 0
        wanted = sum(sequence.total_tokens - sequence.read_tokens for sequence in self._reading)
        return wanted <= left or self._running[-len(self._reading) :] == self._reading

    def _continue_together(self, work: Work) -> None:
        """Everyone's next tokens: one for all that decode, chunks for those that read."""
        batch, kv = self._batch, self._kv
        work.budget -= len(batch)
        growing, filling = batch.growing(), batch.filling()
        # Order tells only where blocks run out, where an eviction may meet a block that becomes cached, and between prompts.
        if self._reading or len(growing) > (kv.free_blocks if filling else kv.available_blocks):
            self._cross_in_order(work)
        else:
            kv.take(len(growing))
            for sequence in sorted(filling, key=_BY_RANK):
                self._fill(sequence)
        work.grown += growing
        work.batch = batch.snapshot()
        finished = batch.tick()
        if finished:
            work.finished += finished
            work.finished.sort(key=_BY_RANK)
        self._counters.generation_tokens += len(batch)
        work.decoded += len(batch)
        work.decode_tokens += len(batch)
        work.sequences += len(batch)
        work.kv_tokens += batch.kv_tokens

    def _cross_in_order(self, work: Work) -> None:
        """The step's events by rank: new blocks, filled blocks, prompt chunks."""
        batch, running = self._batch, self._running
        events = [(sequence.rank, _GROWS, sequence) for sequence in batch.growing()]
        events += [(sequence.rank, _FILLS, sequence) for sequence in batch.filling()]
        events += [(sequence.rank, _READS, sequence) for sequence in self._reading]
        events.sort(key=_BY_RANK_AND_KIND)
        for rank, kind, sequence in events:
            if running[-1].rank < rank:
                return  # preempted meanwhile, as everyone behind it
            if kind == _FILLS:
                self._fill(sequence)
            elif kind == _GROWS:
                if not self._take(sequence, 1):
                    return
            elif work.budget > 0 and not self._read(sequence, work):
                return

    def _fill(self, sequence: EngineSequence) -> None:
        """The tick to come fills a block of a decoding sequence."""
        full_blocks = (sequence.computed_tokens + 1) // self._block_size
        if not self._kv.commit(sequence.table, full_blocks, sequence.block_hash):
            self._batch.uncacheable(sequence)

    def _continue_in_order(self, work: Work) -> None:
        """Give the running sequences their next tokens one by one, until the budget is spent."""
        for sequence in self._batch.members():
            self._batch.leave(sequence)
        self._reading.clear()
        index = 0
        while index < len(self._running) and work.budget > 0 and self._read(self._running[index], work):
            index += 1
        if self._speculation is not None:
            return
        done = {*work.finished, *work.ready}
        for sequence in self._running:
            if sequence in done:
                continue
            if sequence.generated_tokens and sequence.total_tokens == sequence.read_tokens + 1:
                work.ready.append(sequence)
            else:
                self._reading.append(sequence)

    def _read(self, sequence: EngineSequence, work: Work) -> bool:
        """Compute a sequence's next tokens, with what blocks that takes; False: it was preempted itself."""
        missing = sequence.total_tokens - sequence.read_tokens
        decodes = missing == 1 and sequence.generated_tokens > 0
        speculation = self._speculation if decodes else None
        tokens = min(missing + (speculation.drafts(sequence) if speculation else 0), work.budget)
        blocks = self._missing_blocks(sequence, tokens)
        if blocks > 0:
            if not self._take(sequence, blocks):
                return False
            sequence.table.blocks += blocks
            if decodes:
                work.grown.append(sequence)
        if speculation:
            self._verify(sequence, tokens - 1, speculation, work)
        else:
            self._compute(sequence, tokens, work)
        return True

    def _take(self, sequence: EngineSequence, blocks: int) -> bool:
        """Blocks for a running sequence, preempting from the end; False: it was preempted itself."""
        while not self._kv.take(blocks):
            if self.preempt_last() is sequence:
                return False
        return True

    def _missing_blocks(self, sequence: EngineSequence, tokens: int) -> int:
        return -(-(sequence.read_tokens + tokens) // self._block_size) - sequence.table.blocks

    def _compute(self, sequence: EngineSequence, tokens: int, work: Work) -> None:
        work.budget -= tokens
        work.sequences += 1
        computed = sequence.read_tokens = sequence.read_tokens + tokens
        if tokens == 1 and sequence.generated_tokens:
            work.decode_tokens += 1
            work.kv_tokens += computed
        else:
            work.prefill_tokens += tokens
            work.attention_pairs += tokens * (computed - tokens / 2)
        self._commit(sequence)
        if computed == sequence.total_tokens:
            self._emit(sequence, work)

    def _verify(self, sequence: EngineSequence, drafts: int, speculation: Speculation, work: Work) -> None:
        """Compute the newest token and drafts behind it; the right ones stay, and the first wrong one is replaced.

        A rejected draft's block is kept for what comes next, as in vLLM.
        """
        accepted = speculation.accepted(sequence, drafts)
        counters = self._counters
        counters.draft_tokens += drafts
        counters.accepted_tokens += accepted
        counters.generation_tokens += accepted + 1
        work.budget -= drafts + 1
        work.sequences += 1
        work.drafts = max(work.drafts, drafts)
        work.decode_tokens += drafts + 1
        work.kv_tokens += sequence.read_tokens + drafts + 1
        work.decoded += 1
        first = sequence.generated_tokens
        sequence.read_tokens += accepted + 1
        sequence.base_tokens += accepted + 1
        self._commit(sequence)
        ends = sequence.base_tokens >= sequence.limit_tokens
        if ends:
            work.finished.append(sequence)
        for index in range(first, first + accepted + 1):
            finish = sequence.finish_reason if ends and index == first + accepted else None
            work.emitted.append((sequence.rank, Emission(sequence.seq_id, index, finish)))

    def _commit(self, sequence: EngineSequence) -> None:
        full_blocks = sequence.read_tokens // self._block_size
        if full_blocks > sequence.table.committed:
            self._kv.commit(sequence.table, full_blocks, sequence.block_hash)

    def _emit(self, sequence: EngineSequence, work: Work) -> None:
        if sequence in self._reading:
            self._reading.remove(sequence)
        index = sequence.generated_tokens if sequence.limit_tokens else -1
        if index <= 0:
            self._counters.prompt_tokens += sequence.prompt_tokens
            work.first.append(sequence)
        else:
            work.decoded += 1
        if index >= 0:
            sequence.base_tokens += 1
            self._counters.generation_tokens += 1
        finish = sequence.finish_reason if index + 1 >= sequence.limit_tokens else None
        (work.ready if finish is None else work.finished).append(sequence)
        work.emitted.append((sequence.rank, Emission(sequence.seq_id, index, finish)))

    def _stop(self, index: int) -> None:
        sequence = self._running.pop(index)
        if sequence in self._batch:
            self._batch.leave(sequence)
        elif sequence in self._reading:
            self._reading.remove(sequence)
        self._kv.release(sequence.table)
