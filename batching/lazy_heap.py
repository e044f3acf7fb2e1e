"""A heap that deletes lazily: what is dead is dropped when it reaches the top, or when half of the heap may be dead.

Leaving the queue thus costs nothing at the moment, and memory stays within twice what lives.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_SMALLEST_SWEEP = 64  # below it, dead entries are not worth looking for


class LazyHeap(Generic[K, V]):
    """Keys must be unique among live entries: values are never compared."""

    __slots__ = ("_alive", "_entries", "_sweep_at")

    def __init__(self, alive: Callable[[V], bool]) -> None:
        self._alive = alive
        self._entries: list[tuple[K, V]] = []
        self._sweep_at = _SMALLEST_SWEEP

    def push(self, key: K, value: V) -> None:
        """O(log n); amortised, as sweeps double their distance."""
        if len(self._entries) >= self._sweep_at:
            self._entries = [entry for entry in self._entries if self._alive(entry[1])]
            heapify(self._entries)
            self._sweep_at = max(_SMALLEST_SWEEP, 2 * len(self._entries))
        heappush(self._entries, (key, value))

    def peek(self) -> tuple[K, V] | None:
        """The least live entry."""
        entries = self._entries
        while entries:
            if self._alive(entries[0][1]):
                return entries[0]
            heappop(entries)
        return None

    def pop(self) -> V:
        """The value that `peek` has just shown."""
        return heappop(self._entries)[1]

    def __len__(self) -> int:
        return len(self._entries)
