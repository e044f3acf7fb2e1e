"""How fast what waits for a model is taken from the queue: work a second, counted only while something waits.

A rate that counted idle time, too, would be the rate of arrivals, and say of a fleet that was idle that it can do nothing.
"""

from math import exp, sqrt
from typing import Final

_FAST_S: Final = 7.0
_SLOW_S: Final = 30.0  # of backlogged time: what happens now, and a pace that one slow spell does not spoil
_DEVIATIONS: Final = 2.0  # of a count of placements: so much faster it may really be
_FILLING_S: Final = 2.0  # of a backlog: what is placed then fills room that stood empty before
_LEAST_S: Final = 1.0  # of backlogged time, and ...
_LEAST_PLACEMENTS: Final = 4.0  # ... from it before anybody is refused for what was measured


class _Window:
    __slots__ = ("_tau_s", "placements", "seconds", "work")

    def __init__(self, tau_s: float) -> None:
        self._tau_s = tau_s
        self.work = self.seconds = self.placements = 0.0

    def add(self, work: int, seconds: float) -> None:
        kept = exp(-seconds / self._tau_s) if seconds else 1.0
        self.work = self.work * kept + work
        self.seconds = self.seconds * kept + seconds
        self.placements = self.placements * kept + 1

    def per_s(self, more_s: float = 0.0) -> float:
        return self.work / (self.seconds + more_s)


class Drain:
    """Of one model. `note` every placement; `idle` where the last one that waited has left without being placed."""

    __slots__ = ("_began_s", "_fast", "_known_placements", "_known_s", "_since_s", "_slow")

    def __init__(self) -> None:
        self._fast, self._slow = _Window(_FAST_S), _Window(_SLOW_S)
        self._since_s: float | None = None  # something has waited since this placement
        self._began_s = 0.0
        self._known_s = self._known_placements = 0.0  # since the fleet last grew

    def note(self, work: int, now: float, *, behind: bool) -> None:
        """One of so much work was placed; `behind`: others still wait."""
        since_s = self._since_s
        if since_s is not None and now > (full_s := self._began_s + _FILLING_S):
            seconds = now - max(since_s, full_s)
            self._fast.add(work, seconds)
            self._slow.add(work, seconds)
            self._known_s += seconds
            self._known_placements += 1
        if not behind:
            self._since_s = None
            return
        if since_s is None:
            self._began_s = now
        self._since_s = now

    def idle(self) -> None:
        """Nobody waits any more."""
        self._since_s = None

    def grown(self) -> None:
        """There is more room than there was: what was measured is too little, until it is measured again."""
        self._known_s = self._known_placements = 0.0

    def moving(self, now: float) -> bool:
        """Whether the backlog is known, and is being worked off: what waits for machines that start does not come too fast."""
        return self.at_most() is not None and self._since_s is not None and now - self._since_s <= _FAST_S

    def per_s(self, now: float) -> float | None:
        """Work a second lately; None: nothing was ever placed from a backlog."""
        if not self._fast.seconds:
            return None
        return self._fast.per_s(0.0 if self._since_s is None else now - self._since_s)

    def at_most(self) -> float | None:
        """What it may be at best: of the last seconds and the last half minute the faster, and its uncertainty on top. None: not known."""
        if self._known_s < _LEAST_S or self._known_placements < _LEAST_PLACEMENTS:
            return None
        best = max(self._fast, self._slow, key=_Window.per_s)
        return best.per_s() * (1 + _DEVIATIONS / sqrt(best.placements))
