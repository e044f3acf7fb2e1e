"""A heap that deletes lazily: what is dead is dropped when it reaches the top, or when half of the heap may be dead.

Leaving the queue thus costs nothing at the moment, and memory stays within twice what lives.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_SMALLEST_SWEEP: Final = 64  # below it, dead entries are not worth looking for


class LazyHeap(Generic[K, V]):
    """Keys must be unique among live entries: values are never compared."""

    __slots__ = ("_alive", "_sweep_at", "entries")

    def __init__(self, alive: Callable[[V], bool]) -> None:
        self._alive = alive
        self.entries: list[tuple[K, V]] = []  # for who looks at the top very often and knows what lives
        self._sweep_at = _SMALLEST_SWEEP

    def push(self, key: K, value: V) -> None:
        """O(log n); amortised, as sweeps double their distance."""
        if len(self.entries) >= self._sweep_at:
            self.entries = [entry for entry in self.entries if self._alive(entry[1])]
            heapify(self.entries)
            self._sweep_at = max(_SMALLEST_SWEEP, 2 * len(self.entries))
        heappush(self.entries, (key, value))

    def peek(self) -> tuple[K, V] | None:
        """The least live entry."""
        entries = self.entries
        while entries:
            if self._alive(entries[0][1]):
                return entries[0]
            heappop(entries)
        return None

    def pop(self) -> V:
        """The value that `peek` has just shown."""
        return heappop(self.entries)[1]

    def __len__(self) -> int:
        return len(self.entries)
