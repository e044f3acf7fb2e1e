"""Which replica is believed to hold which chunk of which prompt, least recently used forgotten first.

The index under the prefix-aware baselines. Unlike `batching.prefix_index` it bounds each replica by itself (or, if
`shared`, all together as one) and counts an entry for every replica and chunk, as the originals do.

How coarse it sees is the request's matter: hashes are chained, so equal ones mean equal prompts up to there, but what is
shared beyond the last whole chunk is not seen. The gateway's chunks are 64 tokens; the offline traces have 512, coarser
than the originals' 16 to 64 tokens or 128 characters, so that short shared prefixes are missed there, by all alike.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

from batching.request import ReplicaId

# Of one prompt: 131,072 tokens of 64-token chunks, llm-d's own cap; it bounds what a decision costs.
MAX_CHUNKS_PER_PROMPT: Final = 2048

_Entries = OrderedDict[tuple[int, int], None]  # (the replica's bit, chunk), oldest first


class HeldChunks:
    """`record` and both ways of matching are O(chunks); holders are bit masks, so replicas hardly cost. `forget`: O(entries)."""

    def __init__(self, *, shared: bool = False) -> None:
        self._shared: _Entries | None = OrderedDict() if shared else None
        self._entries: dict[int, _Entries] = {}  # by the replica's bit
        self._holders: dict[int, int] = {}  # chunk -> bits; never 0
        self._bits: dict[ReplicaId, int] = {}
        self._owners: dict[int, ReplicaId] = {}

    def record(self, replica: ReplicaId, chunks: Sequence[int], *, max_chunks: int) -> None:
        """It has these chunks now, the last named used last. `max_chunks`: of this replica, or of all if shared."""
        bit = self._bit(replica)
        entries = self._entries[bit]
        holders = self._holders
        for chunk in chunks:
            entry = (bit, chunk)
            if entry in entries:
                entries.move_to_end(entry)
            else:
                entries[entry] = None
                holders[chunk] = holders.get(chunk, 0) | bit
        while len(entries) > max_chunks:
            self._drop(*entries.popitem(last=False)[0])

    def counts(self, chunks: Sequence[int]) -> dict[ReplicaId, int]:
        """How many chunks each replica holds of the leading ones that anybody holds; who holds none is absent."""
        counted: dict[ReplicaId, int] = {}
        mask = run = 0
        for chunk in chunks:
            holders = self._holders.get(chunk, 0)
            if holders != mask:
                self._add(counted, mask, run)
                mask, run = holders, 0
            if not mask:
                break
            run += 1
        self._add(counted, mask, run)
        return counted

    def deepest(self, chunks: Sequence[int]) -> tuple[int, list[ReplicaId]]:
        """How many leading chunks somebody holds, and who holds the last of them."""
        depth = mask = 0
        for chunk in chunks:
            holders = self._holders.get(chunk, 0)
            if not holders:
                break
            depth, mask = depth + 1, holders
        return depth, list(self._replicas(mask))

    def forget(self, replica: ReplicaId) -> None:
        """Its cache is gone."""
        bit = self._bits.pop(replica, 0)
        if not bit:
            return
        del self._owners[bit]  # the bit is free again: nothing carries it any more
        entries = self._entries.pop(bit)
        for entry in [entry for entry in entries if entry[0] == bit]:
            del entries[entry]
            self._drop(*entry)

    def __len__(self) -> int:
        """Entries: one for each replica and chunk."""
        return len(self._shared) if self._shared is not None else sum(map(len, self._entries.values()))

    def _bit(self, replica: ReplicaId) -> int:
        bit = self._bits.get(replica, 0)
        if not bit:
            bit = 1
            while bit in self._owners:
                bit <<= 1
            self._bits[replica], self._owners[bit] = bit, replica
            self._entries[bit] = OrderedDict() if self._shared is None else self._shared
        return bit

    def _drop(self, bit: int, chunk: int) -> None:
        left = self._holders[chunk] & ~bit
        if left:
            self._holders[chunk] = left
        else:
            del self._holders[chunk]

    def _replicas(self, mask: int) -> Iterator[ReplicaId]:
        while mask:
            bit = mask & -mask
            yield self._owners[bit]
            mask ^= bit

    def _add(self, counted: dict[ReplicaId, int], mask: int, run: int) -> None:
        for replica in self._replicas(mask):
            counted[replica] = counted.get(replica, 0) + run


def leading_chunks(chunks: Sequence[int]) -> Sequence[int]:
    """What of a prompt's chunks is looked at."""
    return chunks[:MAX_CHUNKS_PER_PROMPT]
