"""Every interleaving of admit, grow and release: blocks never leak, references are right, idle means empty."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from backends.simulated.kv_cache import BlockTable, KvCache

TOTAL = 12


class Holder:
    """A sequence's tokens as block hashes, chained by construction: a path in a small tree."""

    def __init__(self, path: list[int]) -> None:
        self.hashes = [hash(tuple(path[: n + 1])) for n in range(len(path))]
        self.table = BlockTable()

    def __call__(self, block: int) -> int | None:
        return self.hashes[block] if block < len(self.hashes) else None


class KvCacheMachine(RuleBasedStateMachine):
    """Model: the tables themselves."""

    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.kv = KvCache(TOTAL)
        self.live: list[Holder] = []

    @rule(target=holders, path=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def admit(self, path: list[int]) -> Holder:
        holder = Holder(path)
        hits = self.kv.match(holder, len(path))
        assert hits == holder.hashes[: len(hits)]
        self.kv.claim(holder.table, hits)
        before = self.kv.available_blocks
        missing = len(path) - len(hits)
        got = self.kv.allocate(holder.table, missing)
        assert got == (missing <= before)
        if got:
            self.kv.commit(holder.table, len(path), holder)
        else:
            self.kv.release(holder.table)
        self.live.append(holder)
        return holder

    @rule(holder=holders, blocks=st.integers(1, 3))
    def grow(self, holder: Holder, blocks: int) -> None:
        before = holder.table.blocks
        got = self.kv.allocate(holder.table, blocks)
        assert holder.table.blocks == before + (blocks if got else 0)

    @rule(holder=consumes(holders))
    def release(self, holder: Holder) -> None:
        self.kv.release(holder.table)
        assert holder.table.blocks == 0
        self.live.remove(holder)

    @rule()
    def forget(self) -> None:
        self.kv.forget()

    @invariant()
    def no_block_leaks(self) -> None:
        shared = {key for holder in self.live for key in holder.table.shared}
        private = sum(holder.table.blocks - len(holder.table.shared) for holder in self.live)
        assert self.kv.used_blocks == len(shared) + private
        assert self.kv.used_blocks + self.kv.available_blocks == TOTAL
        assert 0 <= self.kv.available_blocks <= TOTAL

    @invariant()
    def what_is_held_is_cached(self) -> None:
        for holder in self.live:
            for key in holder.table.shared:
                assert self.kv.match(lambda _, key=key: key, 1) == [key]

    def teardown(self) -> None:
        for holder in self.live:
            self.kv.release(holder.table)
        assert self.kv.used_blocks == 0


TestKvCacheMachine = KvCacheMachine.TestCase
TestKvCacheMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
