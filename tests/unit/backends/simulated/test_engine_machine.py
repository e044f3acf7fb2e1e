"""Any order of add, step, abort, sleep and wake: nothing leaks, nobody is lost, tokens come once and in order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backends.simulated.engine import Engine
from backends.simulated.options import EngineOptions
from backends.simulated.sequence import EngineSequence

BLOCKS, BLOCK = 10, 4


class EngineMachine(RuleBasedStateMachine):
    """Model: per live sequence, how many tokens it has said of how many it must say."""

    speculative_tokens = 0

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(
            EngineOptions(
                kv_blocks=BLOCKS,
                block_size=BLOCK,
                max_num_seqs=3,
                max_num_batched_tokens=12,
                max_queued=1000,
                priority_scheduling=True,
                speculative_tokens=self.speculative_tokens,
            )
        )
        self.now = 0.0
        self.ids = 0
        self.said: dict[int, int] = {}
        self.limit: dict[int, int] = {}

    @rule(prompt=st.integers(1, 20), limit=st.integers(0, 20), family=st.integers(0, 2), priority=st.integers(-1, 1))
    def add(self, prompt: int, limit: int, family: int, priority: int) -> None:
        self.ids += 1
        self.engine.add(
            EngineSequence(
                seq_id=self.ids,
                prompt_tokens=prompt,
                limit_tokens=limit,
                finish_reason="stop",
                block_hash=lambda block: hash((family, block)),
                priority=priority,
            ),
            self.now,
        )
        self.said[self.ids], self.limit[self.ids] = 0, limit

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            result = self.engine.step(self.now)
            if result is None:
                assert self.engine.asleep or not self.said
                return
            assert result.duration_s > 0
            self.now += result.duration_s
            for seq_id, token, finish in result.emissions:
                assert token == (self.said[seq_id] if self.limit[seq_id] else -1)
                self.said[seq_id] += 1
                if finish is not None:
                    assert self.said.pop(seq_id) == max(self.limit.pop(seq_id), 1)

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        seq_id = data.draw(st.sampled_from(sorted(self.said)))
        self.engine.abort(seq_id)
        del self.said[seq_id], self.limit[seq_id]

    @rule()
    def sleep(self) -> None:
        self.engine.sleep()

    @rule()
    def wake(self) -> None:
        self.engine.wake()

    @invariant()
    def figures_add_up(self) -> None:
        figures = self.engine.statistics()
        assert 0 <= figures.kv_usage_ratio <= 1
        assert figures.running <= 3
        assert figures.running + figures.waiting >= len(self.said)
        assert (figures.running > 0) or figures.kv_usage_ratio == 0

    def teardown(self) -> None:
        self.engine.wake()
        for _ in range(10_000):
            if not self.said:
                break
            self.step(1)
        assert not self.said, "a sequence never ended"
        assert self.engine.step(self.now) is None
        assert self.engine.kv.used_blocks == 0


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


class SpeculativeEngineMachine(EngineMachine):
    """The same rules where a step may bring several tokens."""

    speculative_tokens = 3


TestSpeculativeEngineMachine = SpeculativeEngineMachine.TestCase
TestSpeculativeEngineMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
