"""The engine, which keeps what decodes by a common clock, against the plain one: the same in every step, whatever happens."""

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.simulated.engine import Emission, Engine, StepResult
from backends.simulated.options import EngineOptions
from backends.simulated.sequence import EngineSequence
from tests.support.reference_engine import ReferenceEngine, ReferenceSequence


def caching(family: int, cacheable: int, private: int):
    """Block hashes of a prompt that shares its first two blocks with its family; behind `cacheable` blocks nothing is cached."""

    def block_hash(block: int) -> int | None:
        if block >= cacheable:
            return None
        return hash((family, block) if block < 2 else (family, block, private))

    return block_hash


class TwoEngines(RuleBasedStateMachine):
    """Every rule is done to both engines; nothing that can be seen of them may differ."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pairs: dict[int, tuple[EngineSequence, ReferenceSequence]] = {}
        self.ids = 0
        self.ending: set[int] = set()

    @initialize(
        kv_blocks=st.sampled_from((6, 10, 16, 40)),
        block_size=st.sampled_from((1, 2, 4, 5)),
        max_num_seqs=st.sampled_from((1, 3, 6, 16)),
        budget=st.sampled_from((1, 3, 5, 12, 40)),
        priority=st.booleans(),
        seed=st.sampled_from((0, 7)),
    )
    def build(self, kv_blocks: int, block_size: int, max_num_seqs: int, budget: int, priority: bool, seed: int) -> None:
        options = EngineOptions(
            kv_blocks=kv_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_queued=1000,
            priority_scheduling=priority,
            seed=seed,
        )
        self.room = kv_blocks * block_size
        self.fast, self.plain = Engine(options), ReferenceEngine(options)

    @rule(
        prompt=st.integers(1, 24),
        limit=st.integers(0, 24),
        family=st.integers(0, 1),
        cacheable=st.sampled_from((0, 3, 100)),
        private=st.integers(0, 1),
        priority=st.integers(-1, 1),
        copies=st.integers(1, 4),
    )
    def add(self, prompt: int, limit: int, family: int, cacheable: int, private: int, priority: int, copies: int):
        prompt = min(prompt, self.room)
        limit = min(limit, self.room - prompt)
        for _ in range(copies):
            self.ids += 1
            told: dict[str, Any] = {
                "seq_id": self.ids,
                "prompt_tokens": prompt,
                "limit_tokens": limit,
                "finish_reason": "stop",
                "block_hash": caching(family, cacheable, private),
                "priority": priority,
            }
            self.pairs[self.ids] = EngineSequence(**told), ReferenceSequence(**told)
            self.fast.add(self.pairs[self.ids][0], self.now)
            self.plain.add(self.pairs[self.ids][1], self.now)

    @rule(count=st.integers(1, 12), read=st.booleans())
    def step(self, count: int, read: bool) -> None:
        for _ in range(count):
            while self.ending:  # their last step is over
                del self.pairs[self.ending.pop()]
            decoding = {
                plain: plain.table.blocks
                for _, plain in self.pairs.values()
                if plain.generated_tokens and plain.computed_tokens + 1 == plain.prompt_tokens + plain.generated_tokens
            }
            fast, plain = self.fast.step(self.now), self.plain.step(self.now)
            if fast is None or plain is None:
                assert fast is plain
                return
            assert fast.duration_s == plain.duration_s
            self.check_lists(fast, plain.emissions)
            grown = {plain.seq_id for plain, blocks in decoding.items() if plain.table.blocks > blocks}
            assert {sequence.seq_id for sequence in fast.grown} == grown
            assert len(fast.grown) == len(grown)
            if read:
                assert fast.emissions == plain.emissions
            self.late = fast, plain
            self.now += plain.duration_s
            self.nothing_differs()
            for emission in plain.emissions:
                if emission.finish_reason:
                    self.ending.add(emission.seq_id)

    def check_lists(self, fast: StepResult, emissions: list[Emission]) -> None:
        first = [emission.seq_id for emission in emissions if emission.token <= 0]
        assert [sequence.seq_id for sequence in fast.first] == first
        ended = [emission.seq_id for emission in emissions if emission.finish_reason]
        assert [sequence.seq_id for sequence in fast.finished] == ended
        assert fast.decoded == len(emissions) - len(first)

    @precondition(lambda self: hasattr(self, "late"))
    @rule()
    def read_late(self) -> None:
        assert self.late[0].emissions == self.late[1].emissions

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.abort_one(data.draw(st.sampled_from(sorted(self.pairs))))

    def abort_one(self, seq_id: int) -> None:
        self.fast.abort(seq_id)
        self.plain.abort(seq_id)
        self.ending.add(seq_id)

    @rule()
    def sleep_and_wake(self) -> None:
        for engine in (self.fast, self.plain):
            engine.sleep()
            assert engine.step(self.now) is None
            engine.wake()

    @invariant()
    def nothing_differs(self) -> None:
        if not hasattr(self, "fast"):
            return
        assert self.fast.statistics() == self.plain.statistics()
        kv, plain_kv = self.fast.kv, self.plain.kv
        assert (kv.free_blocks, list(kv._idle)) == (plain_kv.free_blocks, list(plain_kv._idle))
        assert kv._holders == plain_kv._holders
        for fast, plain in self.pairs.values():
            assert (fast.generated_tokens, fast.computed_tokens, fast.cached_tokens, fast.preemptions) == (
                plain.generated_tokens,
                plain.computed_tokens,
                plain.cached_tokens,
                plain.preemptions,
            )

    def teardown(self) -> None:
        if hasattr(self, "fast"):
            self.step(10_000, read=True)
            assert len(self.fast._running) + len(self.fast._waiting) == self.fast.kv.used_blocks == 0


TestTwoEngines = TwoEngines.TestCase
TestTwoEngines.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("seed", range(12))
def test_crowded_engines_agree(seed: int):
    """Long prompts of all priorities, more of them than fit: whom a spent budget or lack of blocks hits is the same."""
    draw = random.Random(seed)
    machine = TwoEngines()
    machine.build(
        kv_blocks=draw.choice((24, 60)),
        block_size=4,
        max_num_seqs=8,
        budget=draw.choice((9, 16)),
        priority=True,
        seed=1,
    )
    for _ in range(60):
        machine.add(
            prompt=draw.randint(1, 60),
            limit=draw.randint(0, 30),
            family=draw.randint(0, 1),
            cacheable=draw.choice((0, 6, 100)),
            private=draw.randint(0, 3),
            priority=draw.randint(-2, 2),
            copies=1,
        )
        machine.step(count=draw.randint(1, 12), read=draw.random() < 0.5)
        if machine.pairs and draw.random() < 0.1:
            machine.abort_one(draw.choice(sorted(machine.pairs)))
    machine.teardown()
