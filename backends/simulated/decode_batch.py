"""The sequences that get one token each in every step, kept so that a step costs its events and not its batch.

They advance by a common clock. With a block size of B, a sequence crosses a block boundary at every B-th tick, so it has a place
in a ring of B for as long as it decodes: one position of the ring takes a new block at a tick, its neighbour has filled one.
Its last tick is known when it joins. Holds no blocks and decides nothing; the engine asks before it advances.
"""

from collections.abc import Mapping

from backends.simulated.sequence import STOPPED, DecodeClock, EngineSequence

_Ring = list[dict[EngineSequence, None]]


class DecodeBatch:
    """Members have generated a token and computed all but the newest."""

    def __init__(self, block_size: int) -> None:
        self.clock = DecodeClock()
        self.kv_tokens = 0  # computed tokens of all members
        self._block_size = block_size
        self._members: dict[EngineSequence, int] = {}  # with their base_tokens
        self._lent = False
        self._ring: _Ring = [{} for _ in range(block_size)]
        self._cacheable: _Ring = [{} for _ in range(block_size)]  # of these, whose generated blocks may be cached
        self._last_ticks: dict[int, list[EngineSequence]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: EngineSequence) -> bool:
        return sequence in self._members

    def members(self) -> list[EngineSequence]:
        return list(self._members)

    def snapshot(self) -> Mapping[EngineSequence, int]:
        """The members with their base_tokens, for good: they are copied before they change."""
        self._lent = True
        return self._members

    def join(self, sequence: EngineSequence) -> None:
        """From the next tick on; the sequence must have a token and more to come."""
        self._own()
        self.kv_tokens += sequence.read_tokens
        base = sequence.base_tokens - self.clock.now
        sequence.base_tokens = base
        sequence.clock = self.clock
        self._members[sequence] = base
        place = self._place(sequence)
        self._ring[place][sequence] = None
        self._cacheable[place][sequence] = None
        self._last_ticks.setdefault(sequence.limit_tokens - base, []).append(sequence)

    def leave(self, sequence: EngineSequence) -> None:
        """Its own figures and its table's are up to date from now on."""
        self._own()
        place = self._place(sequence)
        del self._ring[place][sequence]
        self._cacheable[place].pop(sequence, None)
        last = self._last_ticks.get(sequence.limit_tokens - sequence.base_tokens)
        if last is not None:
            last.remove(sequence)
        del self._members[sequence]
        computed = sequence.computed_tokens
        sequence.base_tokens = sequence.generated_tokens
        sequence.clock = STOPPED
        sequence.read_tokens = computed
        sequence.table.blocks = -(-computed // self._block_size)
        sequence.table.committed = computed // self._block_size
        self.kv_tokens -= computed

    def growing(self) -> dict[EngineSequence, None]:
        """Who needs a new block for the next tick; not to be changed."""
        return self._ring[(self.clock.now + 1) % self._block_size]

    def filling(self) -> dict[EngineSequence, None]:
        """Who will have filled a cacheable block with the next tick; not to be changed."""
        return self._cacheable[(self.clock.now + 2) % self._block_size]

    def uncacheable(self, sequence: EngineSequence) -> None:
        """None of its blocks will be cached any more."""
        del self._cacheable[self._place(sequence)][sequence]

    def tick(self) -> list[EngineSequence]:
        """Everyone gets a token; returns whose last it is. They stay until they are told to leave."""
        self.clock.now += 1
        self.kv_tokens += len(self._members)
        return self._last_ticks.pop(self.clock.now, [])

    def _place(self, sequence: EngineSequence) -> int:
        # Computed tokens after tick t are prompt + base + t - 1; a new block was needed where that is 1 modulo the block size.
        return (2 - sequence.prompt_tokens - sequence.base_tokens) % self._block_size

    def _own(self) -> None:
        if self._lent:
            self._members = self._members.copy()
            self._lent = False
