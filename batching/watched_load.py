"""How much of a fleet the requests that somebody watches keep busy with prefill, and how many replicas batch may prefill on then.

Their first tokens come late not because batch decodes beside them but because a prompt of its is being prefilled where they
arrive. Enough replicas are therefore kept free of such prompts: as many as the watched load needs, and a multiple of its square
root, the rule by which queues of many servers hardly ever make anybody wait (Halfin and Whitt, 1981).
"""

from math import exp, sqrt
from typing import Final

_MEMORY_S: Final = 1.0  # the load of the last second: a burst must be felt at once
# Of the square root. Measured with bursts of 8 requests/s and replica (`benchmarks.shared_fleet`): 1, 1.5 and 2 raise the 95th
# percentile of their TTFT to 1.5, 1.3 and 1.3 times what it is without batch, which has 92, 90 and 87 % of its throughput between them.
_SPARE: Final = 1.5
_NEGLIGIBLE: Final = 0.5  # replicas: who needs no more leaves all of them to batch


class WatchedLoad:
    """Seconds of prefill placed per second, lately: replicas that are busy with it on average."""

    __slots__ = ("_seconds", "_seen_s")

    def __init__(self) -> None:
        self._seconds = 0.0  # placed, older ones counting less
        self._seen_s = 0.0

    def add(self, prefill_s: float, now: float) -> None:
        self._seconds = self._left(now) + prefill_s
        self._seen_s = now

    def replicas(self, now: float) -> float:
        return self._left(now) / _MEMORY_S

    def batch_replicas(self, serving: int, now: float) -> int:
        """On how many of `serving` replicas batch may prefill at a time; one at least, so that it never stands still."""
        busy = self.replicas(now)
        needed = busy + _SPARE * sqrt(busy)
        return serving if needed < _NEGLIGIBLE else max(1, int(serving - needed))

    def _left(self, now: float) -> float:
        return self._seconds * exp(-max(0.0, now - self._seen_s) / _MEMORY_S)
