"""The engine's own queue: who waits, by rank. An abort only marks its entry, so that it costs nothing in a long queue."""

import heapq
from collections.abc import Iterator

from backends.simulated.sequence import EngineSequence

_Rank = tuple[int, int]


class WaitingQueue:
    """A heap by rank; ranks are unique."""

    def __init__(self) -> None:
        self.tokens = 0  # prompt and generated tokens of all that wait, cached ones included
        self._heap: list[tuple[_Rank, EngineSequence]] = []
        self._gone: set[_Rank] = set()  # aborted, still in the heap

    def __len__(self) -> int:
        return len(self._heap) - len(self._gone)

    def __iter__(self) -> Iterator[tuple[_Rank, EngineSequence]]:
        """Who waits, in no particular order."""
        return (entry for entry in self._heap if entry[0] not in self._gone)

    def push(self, sequence: EngineSequence) -> None:
        heapq.heappush(self._heap, (sequence.rank, sequence))
        self.tokens += sequence.total_tokens

    def first(self) -> EngineSequence:
        """Who is next; the queue must not be empty."""
        while self._heap[0][0] in self._gone:
            self._gone.remove(heapq.heappop(self._heap)[0])
        return self._heap[0][1]

    def pop(self) -> None:
        """Take out `first`."""
        self.tokens -= self.first().total_tokens
        heapq.heappop(self._heap)

    def discard(self, sequence: EngineSequence) -> None:
        """Take out one that waits."""
        self.tokens -= sequence.total_tokens
        self._gone.add(sequence.rank)
        if len(self._gone) * 2 > len(
            self._heap
        ):  # swept at half, so that the garbage is bounded and a sweep is paid for
            self._heap = list(self)
            heapq.heapify(self._heap)
            self._gone.clear()
