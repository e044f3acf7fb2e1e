"""When a batch of embedding rows closes: at its token budget, its size or its age, whichever comes first.

Pure: time is an argument, items are opaque. Sending a closed batch is the caller's (`backends.triton.embedding`).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")


class ClosedBy(StrEnum):
    """The bound that a batch met."""

    TOKENS = "tokens"
    SIZE = "size"
    AGE = "age"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Generic[T]):
    """Items to be sent together, in the order they came."""

    items: tuple[T, ...]
    tokens: int
    opened_s: float
    closed_by: ClosedBy


class MicroBatcher(Generic[T]):
    """One open batch at a time.

    After an `add`, ask `due` until it says None: an item that is over the budget by itself makes two batches due at once. Then
    sleep until `next_deadline`, and ask again.
    """

    __slots__ = ("_items", "_max_age_s", "_max_size", "_max_tokens", "_opened_s", "_tokens")

    def __init__(self, *, max_tokens: int, max_size: int, max_age_s: float) -> None:
        self._max_tokens = max_tokens
        self._max_size = max_size
        self._max_age_s = max_age_s
        self._items: list[tuple[T, int]] = []
        self._tokens = 0
        self._opened_s = 0.0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: T, tokens: int, now: float) -> Batch[T] | None:
        """Put an item in; a batch that this closes. An item over the whole budget goes alone, for no batch would ever fit it."""
        closed = None
        if self._items and self._tokens + tokens > self._max_tokens:
            closed = self._close(ClosedBy.TOKENS)
        if not self._items:
            self._opened_s = now
        self._items.append((item, tokens))
        self._tokens += tokens
        return closed if closed is not None else self._full()

    def remove(self, item: T) -> bool:
        """Take an item out of the open batch, because nobody waits for it any more; False: it is not in there."""
        for index, (candidate, tokens) in enumerate(self._items):
            if candidate is item:
                del self._items[index]
                self._tokens -= tokens
                return True
        return False

    def due(self, now: float) -> Batch[T] | None:
        """The open batch, if it must go by now."""
        full = self._full()
        if full is not None:
            return full
        deadline = self.next_deadline()
        return self._close(ClosedBy.AGE) if deadline is not None and now >= deadline else None

    def next_deadline(self) -> float | None:
        """When `due` will have something if nothing else is added; None: nothing is open."""
        return self._opened_s + self._max_age_s if self._items else None

    def _full(self) -> Batch[T] | None:
        if len(self._items) >= self._max_size:
            return self._close(ClosedBy.SIZE)
        if self._items and self._tokens >= self._max_tokens:
            return self._close(ClosedBy.TOKENS)
        return None

    def _close(self, closed_by: ClosedBy) -> Batch[T]:
        batch = Batch(
            items=tuple(item for item, _ in self._items),
            tokens=self._tokens,
            opened_s=self._opened_s,
            closed_by=closed_by,
        )
        self._items.clear()
        self._tokens = 0
        return batch
