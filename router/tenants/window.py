"""How much of something was taken in the last minute, and when there will be room for more. Pure: time is an argument, in seconds.

A sliding window of slots a tenth of a second long. What is taken counts until it is a whole minute old, to the slot's end, so that no
minute, wherever it begins, holds more than the limit; and under any pressure it holds at least 99.8 % of it. (A bucket that is full when
nobody asks would let twice the limit through in its first minute.)
"""

from collections import OrderedDict
from math import inf
from typing import Final, NamedTuple

SPAN_S: Final = 60.0
SLOT_S: Final = 0.1


class Piece(NamedTuple):
    """What was taken, and in which slot."""

    slot: int
    amount: int


class Window:
    """`lapse_s`: what is taken may be used so much later, so it counts for so much longer."""

    __slots__ = ("_slots", "_span_s", "limit", "used")

    def __init__(self, limit: int, *, lapse_s: float = 0.0) -> None:
        self.limit = limit
        self.used = 0
        self._slots: OrderedDict[int, int] = OrderedDict()  # by time; the first is O(1), unlike a dict's
        self._span_s = SPAN_S + lapse_s

    def room(self, now: float) -> int:
        """Negative where settling showed that more was used than had been reserved."""
        self._forget(now)
        return self.limit - self.used

    def take(self, amount: int, now: float) -> Piece:
        """Whether there is room is the caller's to ask."""
        self._forget(now)
        slot = int(now / SLOT_S)
        self._slots[slot] = self._slots.get(slot, 0) + amount
        self.used += amount
        return Piece(slot, amount)

    def give_back(self, piece: Piece, now: float) -> int:
        """What was not used after all, and how much of it counted still: what is older than the window is gone already."""
        self._forget(now)
        held = self._slots.get(piece.slot)
        if held is None:
            return 0
        given = min(held, piece.amount)
        self.used -= given
        self._slots[piece.slot] = held - given
        return given

    def wait_s(self, amount: int, now: float) -> float:
        """Until there is room, if nobody takes any; inf where there never will be."""
        if amount > self.limit:
            return inf
        short = amount - self.room(now)
        if short <= 0:
            return 0.0
        for slot, held in self._slots.items():
            short -= held
            if short <= 0:
                return max(0.0, self._gone_s(slot) - now)
        return inf

    def reset_s(self, now: float) -> float:
        """Until all of the limit is there again."""
        self._forget(now)
        last = next((slot for slot in reversed(self._slots) if self._slots[slot]), None)
        return 0.0 if last is None else max(0.0, self._gone_s(last) - now)

    def held(self, now: float) -> dict[int, int]:
        """What counts, by slot."""
        self._forget(now)
        return {slot: amount for slot, amount in self._slots.items() if amount}

    def since(self, moment: float) -> int:
        """Taken since then, to the slot."""
        found, first = 0, int(moment / SLOT_S)
        for slot in reversed(self._slots):
            if slot < first:
                break
            found += self._slots[slot]
        return found

    def _gone_s(self, slot: int) -> float:
        return (slot + 1) * SLOT_S + self._span_s

    def _forget(self, now: float) -> None:
        slots = self._slots
        while slots:
            slot = next(iter(slots))
            if self._gone_s(slot) > now:
                return
            self.used -= slots.pop(slot)
