"""What processes have lately told each other of prefix caches: a log of digests, the oldest gone when it is full.

Pure. In a hub it is this; in Redis it is the same in Lua (`router/shared/scripts.py`), and a test plays both. Who asks for the first time has it
all from its beginning, and so what was in use lately: what is in use is told again (`batching.prefix_index`). Does not read digests.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

# A million chunks, as many as an index remembers with all their holders.
KEEP_BYTES: Final = 8 * 2**20
EACH_BYTES: Final = 64  # of an entry beside its digest
MOST_BYTES: Final = 64 * 2**10  # of one answer: some ten milliseconds to fold in


@dataclass(frozen=True, slots=True)
class Told:
    """What others have said. `after`: what is to be asked for next; `more` has been said by now."""

    after: int
    more: bool
    digests: list[bytes]


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int
    holder: str
    digest: bytes


class PrefixLog:
    """O(digests told)."""

    def __init__(self, keep_bytes: int = KEEP_BYTES, most_bytes: int = MOST_BYTES) -> None:
        self._keep_bytes, self._most_bytes = keep_bytes, most_bytes
        self._entries: deque[_Entry] = deque()
        self._bytes = 0

    def exchange(self, now_ms: int, holder: str, digest: bytes, after: int) -> Told:
        """Says `digest`, if it is not empty, and answers with what others said after number `after` (0: all that is left)."""
        newest = self._entries[-1].number if self._entries else 0
        if digest:
            newest = max(newest + 1, now_ms)  # numbers grow through restarts, and as good as ever after a loss
            self._entries.append(_Entry(newest, holder, digest))
            self._bytes += len(digest) + EACH_BYTES
            while self._bytes > self._keep_bytes and len(self._entries) > 1:
                self._bytes -= len(self._entries.popleft().digest) + EACH_BYTES
        if after > newest:  # the log is not the one that it was
            after = 0
        digests: list[bytes] = []
        size = 0
        for entry in self._since(after):
            if size >= self._most_bytes:
                return Told(after, True, digests)
            after = entry.number
            if entry.holder != holder:
                digests.append(entry.digest)
                size += len(entry.digest)
        return Told(newest, False, digests)

    def __len__(self) -> int:
        return len(self._entries)

    def _since(self, after: int) -> list[_Entry]:
        found = []
        for entry in reversed(self._entries):
            if entry.number <= after:
                break
            found.append(entry)
        return found[::-1]
