"""Which replica probably holds which prompt prefix: a bounded LRU of chained chunk hashes.

A hash covers everything before it, so a match is a walk from the first chunk until nobody is left. Belief only: it comes
from what was placed, is corrected by what engines tell, and is forgotten with the replica, or where more was placed since than its
cache holds: engines evict the least recently used, too. Does not know tokens or engines.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from batching.request import ReplicaId

# Chunks: about 250 bytes each, so 65 MB. At 64 tokens a chunk it remembers 16M tokens of distinct prompts, the prefix
# caches of some forty 80 GB machines.
MAX_CHUNKS: Final = 262_144
# Of one prompt: a million-token prompt must not cost milliseconds a decision, nor sweep the index.
MAX_CHUNKS_PER_PROMPT: Final = 1024
_MAX_BITS: Final = 4096  # of the holders' masks: half a kilobyte; then the forgotten ones are squeezed out


class PrefixIndex:
    """`match` and `record` are O(chunks); `forget` is O(1). A chunk's holders are a bit mask, one bit a replica and life."""

    def __init__(self, max_chunks: int = MAX_CHUNKS) -> None:
        self._max_chunks = max_chunks
        self._holders: OrderedDict[int, int] = OrderedDict()
        self._held: dict[ReplicaId, OrderedDict[int, None]] = {}  # each replica's chunks, oldest first
        self._bits: dict[ReplicaId, int] = {}  # absent: nothing of it is believed
        self._owners: dict[int, ReplicaId] = {}
        self._believed = 0  # all bits in `_bits`
        self._next_bit = 0

    def match(self, hashes: Sequence[int]) -> dict[ReplicaId, int]:
        """How many leading chunks each replica is believed to hold; replicas that hold none are absent."""
        matched: dict[ReplicaId, int] = {}
        mask, depth = self._believed, 0
        for chunk in hashes[:MAX_CHUNKS_PER_PROMPT]:
            still = mask & self._holders.get(chunk, 0)
            if still != mask:
                self._assign(matched, mask & ~still, depth)
                mask = still
                if not mask:
                    break
            depth += 1
        self._assign(matched, mask, depth)
        return matched

    def record(self, replica: ReplicaId, hashes: Sequence[int], max_chunks: int | None = None) -> None:
        """The replica has, or is about to have, these chunks. `max_chunks`: that its cache holds; None: not known."""
        bit = self._bits.get(replica)
        if bit is None:
            bit = self._admit(replica)
        # Deepest first, so that the shared beginnings are the youngest and the last to be evicted.
        held = self._held[replica]
        for chunk in reversed(hashes[:MAX_CHUNKS_PER_PROMPT]):
            self._holders[chunk] = self._holders.get(chunk, 0) | bit
            self._holders.move_to_end(chunk)
            held[chunk] = None
            held.move_to_end(chunk)
        limit = self._max_chunks if max_chunks is None else max_chunks
        while len(held) > limit:
            self._lose(bit, held.popitem(last=False)[0])
        while len(self._holders) > self._max_chunks:
            self._holders.popitem(last=False)

    def drop(self, replica: ReplicaId, hashes: Iterable[int]) -> None:
        """Its engine has evicted these chunks: what lies behind them is not matched any more either."""
        bit = self._bits.get(replica)
        if bit is None:
            return
        held = self._held[replica]
        for chunk in hashes:
            held.pop(chunk, None)
            self._lose(bit, chunk)

    def forget(self, replica: ReplicaId) -> None:
        """Its cache is gone: it went down, slept or was replaced."""
        bit = self._bits.pop(replica, None)
        if bit is not None:
            del self._owners[bit]
            del self._held[replica]
            self._believed &= ~bit

    def __len__(self) -> int:
        return len(self._holders)

    def __repr__(self) -> str:
        return f"<PrefixIndex {len(self)} of {self._max_chunks} chunks, {len(self._bits)} replicas>"

    def _lose(self, bit: int, chunk: int) -> None:
        left = self._holders.get(chunk, 0) & ~bit
        if left & self._believed:
            self._holders[chunk] = left
        else:
            self._holders.pop(chunk, None)

    def _assign(self, matched: dict[ReplicaId, int], mask: int, depth: int) -> None:
        while mask and depth:
            bit = mask & -mask
            matched[self._owners[bit]] = depth
            mask ^= bit

    def _admit(self, replica: ReplicaId) -> int:
        if self._next_bit >= _MAX_BITS + len(self._bits):
            self._squeeze()
        bit = 1 << self._next_bit
        self._next_bit += 1
        self._bits[replica] = bit
        self._owners[bit] = replica
        self._held[replica] = OrderedDict()
        self._believed |= bit
        return bit

    def _squeeze(self) -> None:
        """Renumbers the believed bits from 0. O(chunks x holders), once in thousands of replica lives."""
        renumbered = {bit: 1 << index for index, bit in enumerate(sorted(self._owners))}
        for chunk, mask in self._holders.items():
            self._holders[chunk] = sum(new for old, new in renumbered.items() if mask & old)
        self._bits = {replica: renumbered[bit] for replica, bit in self._bits.items()}
        self._owners = {bit: replica for replica, bit in self._bits.items()}
        self._believed = sum(self._owners)
        self._next_bit = len(self._bits)
