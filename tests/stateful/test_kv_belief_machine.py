"""Belief against a model of an engine's prefix cache, under any interleaving of storing, evicting, clearing, losing and restarting."""

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batching.kv_belief import Change, KvBelief
from batching.prefix_index import PrefixIndex
from batching.request import ReplicaId

BLOCK = 4
ENGINE = ReplicaId("engine")
Tokens = tuple[int, ...]
# Prompts of up to 40 tokens in which every 10 tokens are one of two texts: most share a beginning with many others.
PROMPTS = st.lists(st.sampled_from((1, 2)), min_size=1, max_size=4).map(
    lambda texts: tuple(10 * text + n for text in texts for n in range(10))
)
INDEX = st.integers(0, 10_000)


class KvBeliefMachine(RuleBasedStateMachine):
    """The engine keeps copies of blocks, known by all tokens up to their end; it finds them as vLLM does, from the first on."""

    def __init__(self) -> None:
        super().__init__()
        self.belief = KvBelief(max_blocks=500)
        self.index = PrefixIndex()
        self.copies: Counter[Tokens] = Counter()
        self.learned: set[Tokens] = set()
        self.whole = True  # all of the engine's cache is known
        self.doubled = False  # some block has had two copies
        self.deaf = False  # batches are being lost
        self.heard = True
        self.sized = False  # a block was told since all was forgotten

    @initialize(chunk=st.sampled_from((4, 6, 8, 9)))
    def chunk_size(self, chunk: int) -> None:
        self.chunk = chunk

    # -- the engine --------------------------------------------------------------------------------------------------

    @rule(prompt=PROMPTS)
    def other_traffic(self, prompt: Tokens) -> None:
        self._run(prompt)

    @precondition(lambda self: self.copies)
    @rule(which=INDEX)
    def evict(self, which: int) -> None:
        block = sorted(self.copies)[which % len(self.copies)]
        self.copies[block] -= 1
        self.copies += Counter()
        self._tell(lambda: self.belief.removed(ENGINE, [hash(block)]))

    @rule()
    def clear(self) -> None:
        self.copies.clear()
        if not self.deaf:
            self._begin()
            self.belief.cleared(ENGINE)
            self.index.forget(ENGINE)
            self.whole, self.doubled = True, False

    @rule()
    def restart(self) -> None:
        self.copies.clear()
        self._forget(complete=True)

    @rule()
    def lose_batches(self) -> None:
        self.deaf = True

    @precondition(lambda self: self.deaf)
    @rule()
    def notice_the_gap(self) -> None:
        self._forget(complete=False)

    # -- the gateway -------------------------------------------------------------------------------------------------

    @rule(prompt=PROMPTS)
    def learn(self, prompt: Tokens) -> None:
        changes = self.belief.learn(ENGINE, self._chunks(prompt), prompt, chunk_tokens=self.chunk)
        if not self.belief.lacks(ENGINE, self._chunks(prompt)) and self.belief.blocks(ENGINE):
            self.learned.add(prompt)
        for change in changes.values():
            self._apply(change)

    # Where the engine was heard from the middle, a placement is believed without evidence, as without events.
    @precondition(lambda self: self.whole and not self.deaf)
    @rule(prompt=PROMPTS, served=st.booleans())
    def place(self, prompt: Tokens, served: bool) -> None:
        self.index.record(ENGINE, self._chunks(prompt))
        if served:
            self._run(prompt)
        self.learn(prompt)
        self._apply(self.belief.settle(ENGINE, self._chunks(prompt)))
        if prompt not in self.learned or not self.sized:  # nothing was told of its blocks: take the placement back
            self.index.forget(ENGINE)
            self._forget(complete=False)

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def belief_is_the_cache(self) -> None:
        if self.deaf:
            return
        for prompt in self.learned:
            believed = self.index.match(self._chunks(prompt)).get(ENGINE, 0)
            held = self._held(prompt)
            if self.whole and not self.doubled:
                assert believed == held, (prompt, believed, held)
            else:
                assert believed <= held, (prompt, believed, held)

    @invariant()
    def blocks_are_the_cache_s(self) -> None:
        if self.whole and not self.deaf and not self.doubled:
            assert self.belief.blocks(ENGINE) == len(self.copies)

    def _run(self, prompt: Tokens) -> None:
        blocks = [prompt[:end] for end in range(BLOCK, len(prompt) + 1, BLOCK)]
        hits = next((n for n, block in enumerate(blocks) if not self.copies[block]), len(blocks))
        new = blocks[hits:]
        if not new:
            return
        self.doubled |= any(self.copies[block] for block in new)
        self.copies.update(new)
        self.sized |= not self.deaf
        self._tell(
            lambda: self.belief.stored(
                ENGINE, [hash(block) for block in new], hash(blocks[hits - 1]) if hits else None,
                prompt[hits * BLOCK : len(blocks) * BLOCK], BLOCK, seeds=[b""] * len(new),
            )
        )  # fmt: skip

    def _tell(self, event: Any) -> None:
        if not self.deaf:
            self._begin()
            self._apply(event())

    def _begin(self) -> None:
        self.belief.begin(ENGINE, complete=self.heard)

    def _forget(self, *, complete: bool) -> None:
        self.belief.forget(ENGINE)
        self.index.forget(ENGINE)
        self.deaf, self.heard, self.whole, self.sized = False, complete, complete, False
        self.doubled = self.doubled and not complete

    def _apply(self, change: Change) -> None:
        self.index.drop(ENGINE, change.lost)
        self.index.record(ENGINE, change.held)

    def _chunks(self, prompt: Tokens) -> tuple[int, ...]:
        return tuple(hash(("chunk", prompt[:end])) for end in range(self.chunk, len(prompt) + 1, self.chunk))

    def _held(self, prompt: Tokens) -> int:
        blocks = 0
        while (blocks + 1) * BLOCK <= len(prompt) and self.copies[prompt[: (blocks + 1) * BLOCK]]:
            blocks += 1
        return sum(1 for n in range(1, len(prompt) // self.chunk + 1) if n * self.chunk // BLOCK <= blocks)


TestKvBelief = KvBeliefMachine.TestCase
TestKvBelief.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
