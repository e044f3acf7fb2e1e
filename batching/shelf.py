"""Where gateways put down what they have learned, each in a place of its own, and what another finds there (pure).

The model of two scripts in Redis (`router.shared.scripts`), which do the same. Times are milliseconds of one clock. Decides nothing about what is
kept: bytes.
"""

from typing import Final, NamedTuple

KEEP_MS: Final = 24 * 3600 * 1000  # after that traffic and machines are others
MOST_KEPT: Final = 64  # gateways and their workers; of more the latest
MOST_READ: Final = 16


class Kept(NamedTuple):
    """One gateway's."""

    name: str
    age_ms: int
    body: bytes


class Shelf:
    """All of one fleet."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[int, bytes]] = {}

    def put(self, now_ms: int, name: str, body: bytes) -> None:
        """In place of what was there under this name."""
        self._kept[name] = (now_ms, body)
        self._kept = {who: kept for who, kept in self._kept.items() if now_ms - kept[0] <= KEEP_MS}
        for who in self._latest()[MOST_KEPT:]:
            del self._kept[who]

    def read(self, now_ms: int) -> list[Kept]:
        """The latest first."""
        found = (Kept(who, max(0, now_ms - self._kept[who][0]), self._kept[who][1]) for who in self._latest())
        return [kept for kept in found if kept.age_ms <= KEEP_MS][:MOST_READ]

    def _latest(self) -> list[str]:
        return sorted(self._kept, key=lambda who: (-self._kept[who][0], who))
