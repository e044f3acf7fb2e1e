"""The order of one engine's event batches: what follows, what is missing, what comes from another life of the engine (pure).

Sequence numbers begin at 0 with each start of the engine. A publisher sends in order, so a number that is too high means a loss and
one that is too low a repetition or a restart; the batch's own time tells which. A replay begins with the batch that was read last:
only if that one is the same - number and time - does the replay continue what is known.
"""

from enum import Enum, auto


class Verdict(Enum):
    """What to do with a batch."""

    FOLLOWS = auto()  # take it
    REPEATED = auto()  # known already
    MISSING = auto()  # something before it was lost
    RESTARTED = auto()  # the engine began anew


class Order:
    """Of one engine, over its restarts. `complete`: everything since the engine began was read."""

    def __init__(self) -> None:
        self.complete = False
        self._last: tuple[int, float] | None = None

    @property
    def last(self) -> int | None:
        """The number read last, where to ask a replay to begin; None: nothing was read."""
        return None if self._last is None else self._last[0]

    def judge(self, seq: int, ts: float) -> Verdict:
        """A batch just published."""
        if self._last is None:
            return Verdict.FOLLOWS if seq == 0 else Verdict.MISSING
        last_seq, last_ts = self._last
        if seq > last_seq:
            return Verdict.FOLLOWS if seq == last_seq + 1 else Verdict.MISSING
        # Batches are numbered in the order of their times, so an old one is not younger; a new engine's are.
        return Verdict.REPEATED if ts <= last_ts else Verdict.RESTARTED

    def judge_replayed(self, seq: int, ts: float) -> Verdict:
        """A batch of a replay that was asked to begin at `last`."""
        if self._last is None:
            return Verdict.FOLLOWS if seq == 0 else Verdict.MISSING
        last_seq, last_ts = self._last
        if seq == last_seq:
            return Verdict.REPEATED if ts == last_ts else Verdict.RESTARTED
        if seq < last_seq:
            return Verdict.REPEATED
        return Verdict.FOLLOWS if seq == last_seq + 1 and ts >= last_ts else Verdict.MISSING

    def read(self, seq: int, ts: float) -> None:
        """A batch was taken; the first one after `begin_anew` may have any number."""
        if self._last is None:
            self.complete = seq == 0
        self._last = (seq, ts)

    def begin_anew(self) -> None:
        """Nothing that was read counts any more."""
        self.complete = False
        self._last = None
