"""How much prefill the streams of one replica can bear before their time per output token misses its objective.

All streams of a batch get a token in every step, so one count of steps describes them all, and each stream's credit -
the objective times its tokens, less the time since its first - differs from the others' by a constant. The least credit is then
the top of a heap, and asking for it costs nothing however large the batch is.

A young stream is lent what it will gain by its decoding until it has as many tokens as nearly every answer reaches; the loan
melts with each token. So a burst of prompts is admitted behind one another although the first has just begun to stream. A prompt
that is still to be prefilled counts as such a stream from the moment at which its first token is expected: what is admitted
behind it would hold it up just when it begins.
"""

from heapq import heappop
from typing import Final

from batching.lazy_heap import LazyHeap
from batching.ledger import LeaseRecord

_NEVER: Final = float("inf")
_LENT_TOKENS: Final = 5  # of gain, to those that are no longer young: what nearly every answer still has before it
_LOST_TOKENS: Final = 32  # of gain: a stream that is further behind is not worth the prompts that would wait for it


class _Streams:
    """A heap of streams whose credit rises by `per_step_s` with each step."""

    __slots__ = ("alive", "heap", "per_step_s")

    def __init__(self, per_step_s: float) -> None:
        self.per_step_s = per_step_s
        self.alive: set[LeaseRecord] = set()
        self.heap: LazyHeap[tuple[float, int], LeaseRecord] = LazyHeap(self.alive.__contains__)

    def add(self, record: LeaseRecord, due_s: float, steps: int) -> None:
        self.alive.add(record)
        self.heap.push((due_s - self.per_step_s * steps, record.lease.id), record)

    def due_s(self, steps: int, lost_before_s: float) -> float:
        """As `LazyHeap.peek`, spelled out: every step of every replica asks."""
        credit_s, alive, entries = self.per_step_s * steps, self.alive, self.heap.entries
        while entries:
            key, record = entries[0]
            if record in alive:
                due_s = credit_s + key[0]
                if due_s >= lost_before_s:
                    return due_s
                alive.discard(record)
            heappop(entries)
        return _NEVER


class Pace:
    """Streams that have had their first token. All in seconds.

    `objective_s`: that each may take per token on average. `gain_s`: what it gains with a token while nothing is prefilled.
    """

    __slots__ = ("_coming", "_growing", "_grown", "_lost_s", "_young", "gain_s", "objective_s", "steps")

    def __init__(self, objective_s: float, gain_s: float) -> None:
        self.objective_s = objective_s
        self.gain_s = max(gain_s, 0.0)
        self._lost_s = self.gain_s * _LOST_TOKENS
        self.steps = 0  # of the engine, as the furthest stream shows them
        # In order of admission: when their first tokens are expected, and what they are lent from then on.
        self._coming: dict[LeaseRecord, tuple[float, float]] = {}
        self._young = _Streams(objective_s - self.gain_s)
        self._grown = _Streams(objective_s)
        self._growing: LazyHeap[tuple[int, int], LeaseRecord] = LazyHeap(self._young.alive.__contains__)

    def expect(self, record: LeaseRecord, begins_s: float, *, least_tokens: int) -> None:
        """Its prompt is to be prefilled, behind all that were expected before; nearly every such answer has `least_tokens`."""
        self._coming[record] = begins_s, self.gain_s * min(least_tokens - 1, _LENT_TOKENS)

    def begin(self, record: LeaseRecord, now: float, *, least_tokens: int) -> None:
        """Its first token came; nearly every such answer reaches `least_tokens`."""
        self._coming.pop(record, None)
        record.steps_before = self.steps
        lent = max(least_tokens - 1, 0)
        self._young.add(record, now + self.gain_s * lent, self.steps)
        self._growing.push((self.steps + max(lent - _LENT_TOKENS, 0), record.lease.id), record)

    def advance(self, record: LeaseRecord) -> bool:
        """Its count of tokens has risen; True if it is further than any before."""
        steps = record.steps_before + -(-record.emitted_tokens // record.lease.request.sequences) - 1
        if steps <= self.steps:
            return False
        self.steps = steps
        growing = self._growing.entries
        if not growing or growing[0][0][0] > steps:  # the least of all is beyond: so is the least that lives
            return True
        while (entry := self._growing.peek()) is not None and entry[0][0] <= steps:
            grown = self._growing.pop()
            self._young.alive.discard(grown)
            assert grown.first_token_s is not None
            due_s = grown.first_token_s + self.objective_s * (steps - grown.steps_before) + self.gain_s * _LENT_TOKENS
            self._grown.add(grown, due_s, steps)
        return True

    def end(self, record: LeaseRecord) -> None:
        """Also for one that never began."""
        self._coming.pop(record, None)
        self._young.alive.discard(record)
        self._grown.alive.discard(record)

    def due_s(self, now: float) -> float:
        """When the stream with the least credit will have used it up, if no token comes; inf without streams.

        Streams that are too far behind are let go for good: protecting them would only hurt the others.
        """
        lost_s, due_s = now - self._lost_s, _NEVER
        if self._young.alive:
            due_s = self._young.due_s(self.steps, lost_s)
        if self._grown.alive and (grown_s := self._grown.due_s(self.steps, lost_s)) < due_s:
            due_s = grown_s
        return due_s

    def coming_due_s(self, now: float, held_up_ratio: float) -> float:
        """The same of the stream that is expected first; past it, the expectation was wrong and binds nobody.

        `held_up_ratio`: of the time until it begins, the part in which the streams before it get no token. What does not hold
        them up does not count towards what holds up this one either.
        """
        while self._coming:
            record, (begins_s, lent_s) = next(iter(self._coming.items()))
            due_s = begins_s + lent_s - (1 - held_up_ratio) * max(0.0, begins_s - now)
            if begins_s + lent_s >= now:
                return due_s
            del self._coming[record]
        return _NEVER
