"""Keeps label sets bounded: a value that is not known becomes `other`.

A client chooses the model string it sends; were it a label value as it is, a client could grow the registry without end.
"""

from collections.abc import Iterable

OTHER = "other"
_MAX_VALUES = 1000  # llm-d's cap; a fleet that serves more names than this needs recording rules, not more series


class LabelGuard:
    """The admitted values of one label. Values are admitted by who configures or discovers them, never by who asks."""

    def __init__(self, values: Iterable[str] = (), *, cap: int = _MAX_VALUES) -> None:
        self._cap = cap
        self._admitted: set[str] = set()
        self.admit(values)

    @property
    def full(self) -> bool:
        """No value is let through any more that was not before."""
        return len(self._admitted) >= self._cap

    def admit(self, values: Iterable[str]) -> None:
        """Let these values through from now on; beyond the cap they stay `other`, so a series never changes its meaning."""
        for value in values:
            if len(self._admitted) >= self._cap:
                return
            self._admitted.add(value)

    def fold(self, value: str) -> str:
        return value if value in self._admitted else OTHER
