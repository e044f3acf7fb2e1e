"""When what was counted of a replica that has left is let go: fleets that come and go must not make the page grow without end.

Gauges vanish with the replica, at the next scrape. Counters and histograms stay for an hour, so that every scraper and every rate has had
them, and of at most so many replicas; then they go, caches of them, too. One that comes back sooner goes on where it was; later it
starts at 0, which Prometheus takes for a restart.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from batching.request import ReplicaId

_KEPT_S: Final = 3600.0
_MOST: Final = 128  # as many as a large fleet loses in an hour of reclaims; each has some hundred series


class Departed:
    """`left` and `came` as it happens, `look` now and then. `busy`: something of ours still runs there."""

    def __init__(self, forget: Callable[[str], None], busy: Callable[[ReplicaId], bool]) -> None:
        self._forget = forget
        self._busy = busy
        self._left_s: OrderedDict[ReplicaId, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left_s)

    def left(self, replica: ReplicaId, now: float) -> None:
        self._left_s[replica] = now
        self._left_s.move_to_end(replica)

    def came(self, replica: ReplicaId) -> None:
        self._left_s.pop(replica, None)

    def look(self, now: float) -> None:
        """Lets go of those whose time is over, but for those that still answer: they would be counted anew."""
        due: list[ReplicaId] = []
        for place, (replica, left_s) in enumerate(self._left_s.items()):
            if now - left_s < _KEPT_S and place >= len(self._left_s) - _MOST:
                break  # they are in order
            due.append(replica)
        for replica in due:
            if not self._busy(replica):
                del self._left_s[replica]
                self._forget(replica)
