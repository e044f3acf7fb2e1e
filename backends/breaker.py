"""Circuit breaker of one replica: opens on what its attempts came to, lets ask again after growing pauses, closes on an answer (pure).

Heals by itself: whatever happened before, it lets ask within `longest_pause_s`, and one answer then closes it.
"""

from collections import deque
from enum import StrEnum
from typing import Final

from config.health import Health

_MOST_ATTEMPTS: Final = 1024  # kept of the window: a busier one is judged by its latest
_MOST_DOUBLINGS: Final = 20  # a million times the shortest pause; the longest binds long before


class BreakerState(StrEnum):
    """A metric label."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # asked: one answer closes it, none opens it for longer


class Result(StrEnum):
    """What one attempt says of its replica."""

    OK = "ok"  # a refusal, too: it is the request's own fault
    SLOW = "slow"  # answered, far later than predicted
    FAILED = "failed"
    TIMED_OUT = "timed_out"  # failed and slow


class Trip(StrEnum):
    """Why it opened by itself; a metric label."""

    FAILURES = "consecutive_failures"
    ERROR_RATIO = "error_ratio"
    SLOW = "slow_first_bytes"


_FAILED: Final = frozenset({Result.FAILED, Result.TIMED_OUT})
_SLOW: Final = frozenset({Result.SLOW, Result.TIMED_OUT})


class Breaker:
    """Every operation O(1) on average. Times in seconds, of one clock that does not go back."""

    def __init__(self, settings: Health) -> None:
        self._settings = settings
        self.state = BreakerState.CLOSED
        self.reason = ""  # why it is open
        self.due_s = 0.0  # while open: when it may be asked again
        self._failures = 0  # in a row
        self._slow = 0  # in a row; what failed at once says nothing about slowness
        self.latest: tuple[float, Result] | None = None  # when, and what
        self._window: deque[tuple[float, bool]] = deque()  # (when, failed)
        self._window_failures = 0
        self._openings = 0  # lately; each doubles the pause
        self._closed_s = 0.0

    def attempted(self, result: Result, now: float) -> Trip | None:
        """One attempt ended; says why, if that opened it. What ends while it is open was begun before, and is no news."""
        self.latest = now, result
        if self.state is not BreakerState.CLOSED:
            return None
        failed = result in _FAILED
        self._failures = self._failures + 1 if failed else 0
        if result in _SLOW:
            self._slow += 1
        elif result is Result.OK:
            self._slow = 0
        self._note(now, failed=failed)
        trip = self._trip()
        if trip is not None:
            self.open(trip, now)
        return trip

    def open(self, reason: str, now: float) -> None:
        """Also for reasons of somebody else's, and again: each time the pause is longer, unless it was closed for long."""
        settings = self._settings
        if self.state is BreakerState.CLOSED and now - self._closed_s > settings.longest_pause_s:
            self._openings = 0
        pause_s = min(settings.pause_s * 2 ** min(self._openings, _MOST_DOUBLINGS), settings.longest_pause_s)
        self._openings += 1
        self.state, self.reason, self.due_s = BreakerState.OPEN, reason, now + pause_s

    def may_ask(self, now: float) -> bool:
        """Whether its pause is over. A question that broke off may be asked again."""
        return self.state is not BreakerState.CLOSED and now >= self.due_s

    def hasten(self, now: float) -> bool:
        """Its replica lives, as others have found: it may be asked at once. True if that is sooner than it was."""
        sooner = self.state is BreakerState.OPEN and self.due_s > now
        if sooner:
            self.due_s = now
        return sooner

    def ask(self) -> None:
        """A one-token request is on its way, and will decide: `close`, or `open` again."""
        self.state = BreakerState.HALF_OPEN

    def close(self, now: float) -> None:
        """The replica has answered: what it did before is forgotten, except how long to pause the next time.

        One that failed is on probation until it has done an attempt: the first that fails opens it again, and nobody pays for five.
        """
        probation = self.reason in {Trip.FAILURES, Trip.ERROR_RATIO}
        if self.state is not BreakerState.CLOSED:
            self._closed_s = now
        self.state, self.reason = BreakerState.CLOSED, ""
        self._slow = self._window_failures = 0
        self._failures = self._settings.failures - 1 if probation else 0
        self._window.clear()

    def withdraw(self, now: float) -> None:
        """It should not have opened: what it opened on was no fault of this replica's."""
        self._openings -= 1
        self.close(now)

    def _note(self, now: float, *, failed: bool) -> None:
        window = self._window
        window.append((now, failed))
        self._window_failures += failed
        while len(window) > _MOST_ATTEMPTS or window[0][0] <= now - self._settings.error_window_s:
            self._window_failures -= window.popleft()[1]

    def _trip(self) -> Trip | None:
        settings = self._settings
        if self._failures >= settings.failures:
            return Trip.FAILURES
        if self._slow >= settings.failures:
            return Trip.SLOW
        attempts = len(self._window)
        if attempts >= settings.error_attempts and self._window_failures >= settings.error_ratio * attempts:
            return Trip.ERROR_RATIO
        return None

    def __repr__(self) -> str:
        return f"<Breaker {self.state} {self.reason} {self._failures} failures, {self._slow} slow, {len(self._window)} attempts>"


# Labels of `upstream_attempts_total`. What is in neither set says nothing: cancelled, hedged, moved, lapsed, too large.
_OUTCOMES_FAILED: Final = frozenset({"connect_error", "closed", "stream_cut", "5xx", "error", "error_event", "garbled"})
_OUTCOMES_OK: Final = frozenset({"ok", "rejected"})


def result_of(outcome: str, *, slow: bool = False) -> Result | None:
    """What an attempt's outcome says of the replica; None: nothing. `slow`: its first token came far too late."""
    if outcome in _OUTCOMES_OK:
        return Result.SLOW if slow else Result.OK
    if outcome == "timeout":
        return Result.TIMED_OUT
    return Result.FAILED if outcome in _OUTCOMES_FAILED else None
