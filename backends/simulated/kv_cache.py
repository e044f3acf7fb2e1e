"""Paged KV memory as counts and hashes: who holds how many blocks, which full blocks another prompt may share.

A block is private to one sequence until it is full; then it is known by the chained hash of its tokens and may be shared by
reference. Shared blocks that nobody holds stay cached until their room is needed, least recently used first. Decides no
scheduling. Invariant: free + idle + shared in use + private of all tables = total.
"""

from collections.abc import Callable

# Chained hash of a sequence's n-th full block, or None where it is not to be cached. Chained: equal hashes, equal prefixes.
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
        self._free = total_blocks
        self._holders: dict[int, int] = {}  # hash of a shared block in use -> sequences that hold it
        self._idle: dict[int, None] = {}  # hashes of cached blocks nobody holds, least recently used first

    @property
    def used_blocks(self) -> int:
        return self.total_blocks - self._free - len(self._idle)

    @property
    def available_blocks(self) -> int:
        """Blocks that can be had now; cached ones that nobody holds count as free."""
        return self._free + len(self._idle)

    @property
    def cached_blocks(self) -> int:
        return len(self._holders) + len(self._idle)

    def match(self, block_hash: BlockHash, limit: int) -> list[int]:
        """Hashes of the leading blocks that are cached, at most `limit`."""
        hits: list[int] = []
        for index in range(limit):
            key = block_hash(index)
            if key is None or (key not in self._holders and key not in self._idle):
                break
            hits.append(key)
        return hits

    def claim(self, table: BlockTable, hits: list[int]) -> None:
        """Hold cached blocks for an empty table."""
        for key in hits:
            self._idle.pop(key, None)
            self._holders[key] = self._holders.get(key, 0) + 1
        table.shared.extend(hits)
        table.blocks += len(hits)
        table.committed = table.blocks

    def allocate(self, table: BlockTable, blocks: int) -> bool:
        """Give the table private blocks, all or none, evicting cached ones that nobody holds."""
        if blocks > self.available_blocks:
            return False
        while self._free < blocks:
            del self._idle[next(iter(self._idle))]
            self._free += 1
        self._free -= blocks
        table.blocks += blocks
        return True

    def commit(self, table: BlockTable, full_blocks: int, block_hash: BlockHash) -> None:
        """Offer newly filled blocks to the cache. One that is cached already stays private, as in vLLM: no copy is merged."""
        for index in range(table.committed, full_blocks):
            key = block_hash(index)
            if key is not None and key not in self._holders and key not in self._idle:
                self._holders[key] = 1
                table.shared.append(key)
        table.committed = max(table.committed, full_blocks)

    def release(self, table: BlockTable) -> None:
        """Take everything back. The tail goes idle first, so that it is evicted before the prefix it depends on."""
        self._free += table.blocks - len(table.shared)
        for key in reversed(table.shared):
            left = self._holders[key] - 1
            if left:
                self._holders[key] = left
            else:
                del self._holders[key]
                self._idle[key] = None
        table.shared.clear()
        table.blocks = table.committed = 0

    def forget(self) -> None:
        """Drop the cached blocks that nobody holds."""
        self._free += len(self._idle)
        self._idle.clear()
