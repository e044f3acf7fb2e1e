"""When those who were refused may come back: a virtual queue, in which each gets the next time at which there will be room.

Told by one number, all who are refused in a second would return in one second, and be refused again. Here times are handed out in the
order of refusals, as fast as the fleet drains. Whoever returns at its time is known by its tenant and its body and goes before those
who come anew; whoever returns sooner is told its old time again. Memory is bounded: beyond `_MOST` nobody is known any more.
"""

from collections import deque
from typing import Final

LONGEST_S: Final = 120.0  # OpenAI's SDKs wait no longer, and nobody knows what will be then
_MOST: Final = 20_000  # four times the default queue: some megabytes
_EARLY_S: Final = 1.0  # Retry-After is whole seconds, and clocks differ
_GRACE_S: Final = 15.0  # who is later than that comes anew
_HANDED_RATIO: Final = 0.9  # of what drains: the rest is for errors of the estimate, and for those who come anew


class Promises:
    """Of one model. Times are the loop's."""

    __slots__ = ("_by_key", "_gap_s", "_gap_until_s", "_next_s", "_order")

    def __init__(self) -> None:
        self._next_s = 0.0
        self._gap_s = self._gap_until_s = 0.0
        self._by_key: dict[tuple[str, int], float] = {}
        self._order: deque[tuple[float, tuple[str, int]]] = deque()  # soonest first, as they are handed out

    def __len__(self) -> int:
        return len(self._by_key)

    def give(self, tenant: str, fingerprint: int, *, wait_s: float, work_s: float, now: float) -> float | None:
        """Seconds until it may come back; None: longer than clients wait.

        `wait_s`: until what waits has drained; `work_s`: what it takes of the fleet itself.
        """
        self._forget(now)
        key = (tenant, fingerprint)
        if fingerprint and (known := self._by_key.get(key)) is not None and known > now:
            return known - now
        slot_s = max(now + wait_s, self._gap_s)
        if slot_s < self._gap_until_s:
            self._gap_s = slot_s + work_s / _HANDED_RATIO
        else:
            slot_s = max(now + wait_s, self._next_s)
            if slot_s - now > LONGEST_S:
                return None
            self._next_s = slot_s + work_s / _HANDED_RATIO
        if fingerprint and len(self._order) < _MOST:
            self._by_key[key] = slot_s
            self._order.append((slot_s, key))
        return slot_s - now

    def advance(self, now: float) -> None:
        """What waited is sent away: there will be room before the first of those who were told so far."""
        self._forget(now)
        self._gap_s, self._gap_until_s = now, self._order[0][0] if self._order else 0.0

    def kept(self, tenant: str, fingerprint: int, now: float) -> bool:
        """Whether this is somebody who was told to come now; asked once, as the promise is then kept."""
        if not fingerprint or not self._by_key:
            return False
        key = (tenant, fingerprint)
        slot_s = self._by_key.get(key)
        if slot_s is None or now < slot_s - _EARLY_S:
            return False
        del self._by_key[key]
        return now <= slot_s + _GRACE_S

    def due(self, now: float) -> bool:
        """Whether anybody is still to come."""
        self._forget(now)
        return bool(self._by_key)

    def _forget(self, now: float) -> None:
        while self._order and self._order[0][0] + _GRACE_S < now:
            slot_s, key = self._order.popleft()
            if self._by_key.get(key) == slot_s:
                del self._by_key[key]
