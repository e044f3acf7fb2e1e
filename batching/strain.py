"""Whether more comes for a model than it can answer, and for how long already: a burst is queued, a flood is not.

A burst is over before it has kept anybody from being answered for long. Only where somebody has had to be refused again and again for
two seconds does a flood begin; it is over when for two seconds nobody was. In between the measure is the objective, not the deadline:
as not all can be answered, those are who still can be in time.
"""

from typing import Final

_SUSTAINED_S: Final = 2.0
_GAP_S: Final = 1.0  # between two refusals of one flood
_CALM_S: Final = 2.0


class Strain:
    """Of one model; `refused` is told of everyone who was."""

    __slots__ = ("_first_s", "_last_s", "flooded")

    def __init__(self) -> None:
        self.flooded = False
        self._first_s = self._last_s = float("-inf")

    def refused(self, now: float) -> bool:
        """Whether with this one a flood has begun."""
        if now - self._last_s > _GAP_S:
            self._first_s = now
        self._last_s = now
        began = not self.flooded and now - self._first_s >= _SUSTAINED_S
        self.flooded |= began
        return began

    def look(self, now: float) -> bool:
        """Whether there is one still."""
        if self.flooded and now - self._last_s > _CALM_S:
            self.flooded = False
        return self.flooded

    def returned(self, now: float) -> None:
        """One came who had been told to, and somebody waits: those who were promised a place are a flood, too."""
        self.flooded = True
        self._last_s = now

    def relieved(self) -> None:
        """The fleet has grown."""
        self.flooded = False
        self._last_s = float("-inf")
