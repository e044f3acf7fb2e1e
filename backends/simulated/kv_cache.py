"""Paged KV memory as counts and hashes: who holds how many blocks, which full blocks another prompt may share.

A block is private to one sequence until it is full; then it is known by the chained hash of its tokens and may be shared by
reference. Shared blocks that nobody holds stay cached until their room is needed, least recently used first. Decides no
scheduling. Invariant: free + idle + shared in use + private of all tables = total.
"""

from collections import OrderedDict
from collections.abc import Callable

# Chained hash of a sequence's n-th full block; None from the first block on that is not to be cached, as nothing behind it
# could ever be found. Chained: equal hashes, equal prefixes.
BlockHash = Callable[[int], int | None]


class BlockTable:
    """What one sequence holds: `blocks` in all, of which `shared` are known by hash (in prefix order)."""

    __slots__ = ("blocks", "committed", "shared")

    def __init__(self) -> None:
        self.blocks = 0
        self.committed = 0  # full blocks that were offered to the cache already
        self.shared: list[int] = []


class KvCache:
    """`total_blocks` of KV memory with a prefix cache."""

    def __init__(self, total_blocks: int) -> None:
        self.total_blocks = total_blocks
        self.changes = 0  # grows with whatever may alter a `match` or the order of eviction, evictions themselves apart
        self._free = total_blocks
        self._holders: dict[int, int] = {}  # hash of a shared block in use -> sequences that hold it
        # Hashes of cached blocks nobody holds, least recently used first. A plain dict would scan the gaps that evictions
        # leave at its front.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def used_blocks(self) -> int:
        return self.total_blocks - self._free - len(self._idle)

    @property
    def available_blocks(self) -> int:
        """Blocks that can be had now; cached ones that nobody holds count as free."""
        return self._free + len(self._idle)

    @property
    def free_blocks(self) -> int:
        """Blocks that can be had without evicting anything."""
        return self._free

    @property
    def idle_blocks(self) -> int:
        """Cached blocks that nobody holds."""
        return len(self._idle)

    @property
    def cached_blocks(self) -> int:
        return len(self._holders) + len(self._idle)

    def match(self, block_hash: BlockHash, limit: int) -> list[int]:
        """Hashes of the leading blocks that are cached, at most `limit`."""
        holders, idle = self._holders, self._idle
        hits: list[int] = []
        for index in range(limit):
            key = block_hash(index)
            if key is None or (key not in holders and key not in idle):
                break
            hits.append(key)
        return hits

    def claim(self, table: BlockTable, hits: list[int]) -> None:
        """Hold cached blocks for an empty table."""
        holders, idle = self._holders, self._idle
        for key in hits:
            held = holders.get(key, 0)
            if not held:
                del idle[key]
                self.changes += 1
            holders[key] = held + 1
        table.shared.extend(hits)
        table.blocks += len(hits)
        table.committed = table.blocks

    def take(self, blocks: int) -> bool:
        """Take private blocks, all or none, evicting cached ones that nobody holds; whoever counts them for a table adds them there."""
        if blocks > self._free:
            if blocks > self.available_blocks:
                return False
            while self._free < blocks:
                self._idle.popitem(last=False)
                self._free += 1
        self._free -= blocks
        return True

    def allocate(self, table: BlockTable, blocks: int) -> bool:
        """`take` for a table."""
        if not self.take(blocks):
            return False
        table.blocks += blocks
        return True

    def commit(self, table: BlockTable, full_blocks: int, block_hash: BlockHash) -> bool:
        """Offer newly filled blocks to the cache; False: neither the last of them nor any later one is to be cached.

        One that is cached already stays private, as in vLLM: no copy is merged.
        """
        holders, idle = self._holders, self._idle
        key: int | None = 0
        for index in range(table.committed, full_blocks):
            key = block_hash(index)
            if key is None:
                break
            if key not in holders and key not in idle:
                holders[key] = 1
                table.shared.append(key)
                self.changes += 1
        table.committed = max(table.committed, full_blocks)
        return key is not None

    def release(self, table: BlockTable) -> None:
        """Take everything back. The tail goes idle first, so that it is evicted before the prefix it depends on."""
        holders, idle = self._holders, self._idle
        self._free += table.blocks - len(table.shared)
        for key in reversed(table.shared):
            left = holders[key] - 1
            if left:
                holders[key] = left
            else:
                del holders[key]
                idle[key] = None
                self.changes += 1
        table.shared.clear()
        table.blocks = table.committed = 0

    def forget(self) -> None:
        """Drop the cached blocks that nobody holds."""
        self._free += len(self._idle)
        self._idle.clear()
        self.changes += 1
