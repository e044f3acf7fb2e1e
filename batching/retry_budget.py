"""How often the fleet may be asked twice for one answer: a share of the requests that come, whoever asks again and why.

Without a bound a slow fleet is made slower by those who ask again because it is slow. Knows no time: it counts requests. There is
one for the whole scheduler: a hedge takes from it, and so does a repeat after an engine answered an error or timed out. A repeat
whose first engine is dead takes nothing: nobody does that work twice.
"""

from typing import Final

MOST: Final = (
    10.0  # saved up while nobody asks twice: enough for the streams of a replica that freezes, no load for a fleet
)


class RetryBudget:
    """Each request adds `ratio` of a try, each hedge or retry takes a whole one."""

    __slots__ = ("_ratio", "left")

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self.left = MOST if ratio > 0 else 0.0

    def earn(self) -> None:
        """A request has come for the first time."""
        self.left = min(MOST, self.left + self._ratio)

    def take(self) -> bool:
        """Whether one more may be sent; it is counted."""
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def give_back(self) -> None:
        """What was taken was not sent after all."""
        self.left = min(MOST, self.left + 1)

    def __repr__(self) -> str:
        return f"<RetryBudget {self.left:.1f} left>"
