"""Many deadlines on one timer of the loop's: what every stream sets, and nearly none of them hears ring.

A timer of uvloop's own is four objects and a handle of libuv's, some half a kilobyte; an alarm is an entry in a heap.
"""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

_TICK_S: Final = 0.001  # uvloop's clock has whole milliseconds: a timer for a part of one rings at once, and again
_ROUNDING_S: Final = 1e-6  # of sums of seconds
_SMALLEST_SWEEP: Final = 64  # below it, those that were called off are not worth looking for


class Alarm:
    """One deadline."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    @property
    def over(self) -> bool:
        """It has rung or was called off."""
        return self._callback is None

    def cancel(self) -> None:
        """At any time, more than once."""
        self._callback = None

    def ring(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Alarms:
    """Of one event loop. Callbacks are called by the loop itself, each on its own: one that raises disturbs nobody."""

    def __init__(self) -> None:
        self._heap: list[
            tuple[float, int, Alarm]
        ] = []  # no more than a quarter above what was alive at the last sweep, a few aside
        self._sweep_at = _SMALLEST_SWEEP
        self._made = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0  # when the timer is to wake us

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Alarm:
        """As the loop's, on its clock. O(log n), amortised."""
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        alarm = Alarm(callback)
        self._made += 1
        heappush(self._heap, (when_s, self._made, alarm))
        if self._timer is None or when_s < self._due_s:
            self._arm(when_s)
        return alarm

    def __len__(self) -> int:
        """What is in the heap, called off or not."""
        return len(self._heap)

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if not entry[2].over]
        heapify(self._heap)
        self._sweep_at = max(_SMALLEST_SWEEP, len(self._heap) * 5 // 4)

    def _arm(self, when_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._due_s = when_s
        self._timer = loop.call_at(max(when_s, loop.time() + _TICK_S), self._wake)

    def _wake(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time() + _ROUNDING_S
        while self._heap and self._heap[0][0] <= now:
            alarm = heappop(self._heap)[2]
            if not alarm.over:
                loop.call_soon(alarm.ring)
        if self._heap:
            self._arm(self._heap[0][0])
