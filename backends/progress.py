"""Whether one engine makes forward progress, whatever its health page says (pure).

Three signs that it does not: streams in decoding that get no byte, a count of engine steps that stands still while there is work,
several requests whose first token is long overdue while nothing at all moves. How long is too long is learned of each engine: what it
needed lately and yet went on is never a sign again. So a slow machine is slow, and only one that stands is suspect.
"""

from enum import StrEnum
from typing import Final, NamedTuple

_WINDOW_S: Final = 60.0  # the longest gap of the last one to two of these counts
_GAP_RATIO: Final = 1.5
# Of the step that is predicted at worst. With the one-token request's 0.75 (`token_timeout_s` below) it is found out within three.
_STEP_RATIO: Final = 1.75
_TOKEN_STEP_RATIO: Final = 0.75
_PATIENT_RATIO: Final = 5.0  # while nobody knows what the predictions of an engine are worth
_HEARD: Final = (
    20  # times that its streams had gone on since the last question: then its gaps are known, if nothing else is
)
_LOOKS: Final = 3  # at which a count stood
_STANDING_S: Final = 2.0  # at least: from the first to the third of looks a second apart
_STANDING_STEPS: Final = 3.0
_LATE_S: Final = 2.0  # nothing moved for so long, at least
_MISSED: Final = 3  # requests: one alone may be an odd one


class Sign(StrEnum):
    """Why an engine is doubted; a metric label."""

    SILENT = "silent_streams"
    STANDING = "no_iterations"
    LATE = "missed_first_tokens"


class Expected(NamedTuple):
    """What is predicted of an engine now."""

    step_s: float  # that its next step may take, at worst, prefill included
    known: bool  # predictions of it have been judged often enough to go by

    def at_least(self, seconds: float) -> float:
        """A floor, higher for an engine that nobody knows yet."""
        return seconds if self.known else _PATIENT_RATIO * seconds


class Stillness:
    """The longest time that something stood lately, and yet went on."""

    __slots__ = ("_before_s", "_longest_s", "_since_s")

    def __init__(self) -> None:
        self._longest_s = self._before_s = 0.0
        self._since_s = 0.0

    def note(self, still_s: float, now: float) -> None:
        self._turn(now)
        self._longest_s = max(self._longest_s, still_s)

    def longest_s(self, now: float) -> float:
        self._turn(now)
        return max(self._longest_s, self._before_s)

    def _turn(self, now: float) -> None:
        windows = int((now - self._since_s) // _WINDOW_S)
        if windows:
            self._before_s = self._longest_s if windows == 1 else 0.0
            self._longest_s = 0.0
            self._since_s += windows * _WINDOW_S


class Progress:
    """Fed with what is seen of one engine. All times in seconds, of one clock."""

    def __init__(self, silence_s: float, now: float) -> None:
        """`silence_s`: streams without a byte for so long are suspect, at the soonest."""
        self._least_silence_s = silence_s
        self.moved_s = now  # it surely made progress at this time or later
        self._last_bytes_s: float | None = None
        self._silence_s = 0.0  # as it was last seen
        self._heard = 0
        self._iterations: int | None = None
        self._counts = False  # its steps have been seen to be counted
        self._stood_since_s: float | None = None
        self._looks = 0
        self._looked_s = self._in_time_s = now
        self._gaps = {sign: Stillness() for sign in Sign}

    def answered(self, now: float) -> None:
        """It gave an answer of any kind."""
        self.moved_s = max(self.moved_s, now)

    def silent(
        self, last_bytes_s: float | None, *, heard_from_s: float, expected: Expected, now: float
    ) -> float | None:
        """For how long its streams have got nothing, if that is too long. Ask a few times a second.

        `last_bytes_s`: of any stream that has begun; None: there is none. `heard_from_s`: since when we could have heard anything at
        all: where we ourselves were late, that is no silence of the engine's.
        """
        before_s, self._last_bytes_s = self._last_bytes_s, last_bytes_s
        if last_bytes_s is None:
            return None
        self.moved_s = max(self.moved_s, last_bytes_s)
        gaps = self._gaps[Sign.SILENT]
        limit_s = max(
            expected.at_least(self._least_silence_s) if self._heard < _HEARD else self._least_silence_s,
            _STEP_RATIO * expected.step_s,
            _GAP_RATIO * gaps.longest_s(now),
        )
        if before_s is not None and last_bytes_s > before_s:
            self._heard += 1
            if (
                self._silence_s <= limit_s
            ):  # what was longer was asked about, and counts if there was an answer (`refuted`)
                gaps.note(self._silence_s, now)
        self._silence_s = max(0.0, now - max(last_bytes_s, heard_from_s))
        return self._silence_s if self._silence_s > limit_s else None

    def standing(self, iterations: int | None, *, busy: bool, expected: Expected, now: float) -> float | None:
        """A look at its count of steps: for how long that has stood while it was `busy`, if that is too long."""
        before, self._iterations = self._iterations, iterations
        looked_s, self._looked_s = self._looked_s, now
        if iterations is None or before is None:
            self._stood_since_s = None
            return None
        if iterations != before:  # fewer: it was started anew
            self._counts = self._counts or iterations > before
            self.moved_s = max(self.moved_s, looked_s)
            if self._stood_since_s is not None:
                self._gaps[Sign.STANDING].note(looked_s - self._stood_since_s, now)
            self._stood_since_s = None
            return None
        if not busy or not self._counts:
            self._stood_since_s = None
            return None
        if self._stood_since_s is None:
            self._stood_since_s, self._looks = now, 1
            return None
        self._looks += 1
        stood_s = now - self._stood_since_s
        limit_s = self._limit_s(Sign.STANDING, _STANDING_S, expected, now)
        return stood_s if self._looks >= _LOOKS and stood_s >= limit_s else None

    def late(self, missed: int, *, expected: Expected, now: float) -> float | None:
        """A look at those who wait: so many first tokens are long overdue. For how long nothing has moved since, if that is too long."""
        if not missed:
            self._in_time_s = now  # an idle engine does not move either
        still_s = now - max(self.moved_s, self._in_time_s)
        if missed < _MISSED or still_s <= self._limit_s(Sign.LATE, _LATE_S, expected, now):
            return None
        return still_s

    def token_timeout_s(self, sign: Sign | None, least_s: float, expected: Expected, now: float) -> float:
        """How long one token may take of an engine that is doubted for this; None: for failures, not for standing still."""
        if sign is Sign.SILENT:
            least_s = expected.at_least(least_s) if self._heard < _HEARD else least_s
            return max(least_s, _TOKEN_STEP_RATIO * expected.step_s)
        # Nobody waits in the middle of an answer: there is time to be sure, and for a look that may find it moving.
        return max(least_s, self._limit_s(Sign.LATE if sign is None else sign, _LATE_S, expected, now))

    def refuted(self, sign: Sign, still_s: float, now: float) -> None:
        """It stood for so long, and lives."""
        self._gaps[sign].note(still_s, now)
        self._stood_since_s = None

    def forget(self, now: float) -> None:
        """It is out of service: nothing that it did before says anything about now."""
        self._last_bytes_s = self._iterations = self._stood_since_s = None
        self._silence_s = 0.0
        self.moved_s = now

    def _limit_s(self, sign: Sign, least_s: float, expected: Expected, now: float) -> float:
        """Of the two slow signs."""
        longest_s = self._gaps[sign].longest_s(now)
        return max(expected.at_least(least_s), _STANDING_STEPS * expected.step_s, _GAP_RATIO * longest_s)

    def __repr__(self) -> str:
        return f"<Progress moved {self.moved_s:.3f}, silent {self._silence_s:.3f} s, {self._iterations} iterations>"
