"""Tokens served over time, and how far apart two tenants that both wait may drift: the service gap of a virtual token counter.

Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, theorem 4.4: while two clients are both backlogged,
the weighted tokens that each is served differ by at most 2 U, U = max(w_p * longest prompt, w_q * M), M the most tokens that
fit into the running batch. A prompt counts when it is placed; output as if it came evenly from its first token to its last.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from batching.queue import OUTPUT_TOKEN_WEIGHT
from benchmarks.mixes import Ended

Floats = NDArray[np.float64]
Span = tuple[float, float]
_BEFORE_S = 1e-9  # just before a jump


class Curve:
    """A sum of jumps (when, how much) and of even ramps (from, to, how much), at any time."""

    def __init__(self, jumps: Iterable[tuple[float, float]], ramps: Iterable[tuple[float, float, float]]) -> None:
        even = [(start, end, amount / (end - start)) for start, end, amount in ramps if end > start]
        self._jumps = _Steps(jumps)
        self._begun = _Steps((start, rate) for start, _, rate in even)
        self._begun_at = _Steps((start, rate * start) for start, _, rate in even)
        self._done = _Steps((end, rate) for _, end, rate in even)
        self._done_at = _Steps((end, rate * end) for _, end, rate in even)

    def at(self, times: Floats) -> Floats:
        running = self._begun.at(times) - self._done.at(times)
        return self._jumps.at(times) + running * times - self._begun_at.at(times) + self._done_at.at(times)

    def bends(self) -> Floats:
        """Where it jumps or changes its slope, each with the moment before: between them it has no extremes."""
        bends = np.concatenate([self._jumps.times, self._begun.times, self._done.times])
        return np.unique(np.concatenate([bends, bends - _BEFORE_S]))


class _Steps:
    def __init__(self, jumps: Iterable[tuple[float, float]]) -> None:
        ordered = sorted(jumps)
        self.times: Floats = np.array([when for when, _ in ordered], dtype=np.float64)
        self._sums: Floats = np.concatenate([[0.0], np.cumsum([amount for _, amount in ordered])])

    def at(self, times: Floats) -> Floats:
        sums: Floats = self._sums[np.searchsorted(self.times, times, side="right")]
        return sums


def service(requests: Iterable[Ended], *, output_weight: float = OUTPUT_TOKEN_WEIGHT) -> Curve:
    """Weighted tokens served to all of them together."""
    jumps, ramps = [], []
    for ended in requests:
        life = ended.life
        if life.placed_s is None:
            continue
        jumps.append((life.placed_s, float(ended.call.prompt_tokens)))
        if life.first_s is not None:
            output = output_weight * life.tokens
            if life.last_s > life.first_s:
                ramps.append((life.first_s, life.last_s, output))
            else:
                jumps.append((life.first_s, output))
    return Curve(jumps, ramps)


def most_running_tokens(requests: Sequence[Ended]) -> float:
    """The most prompt and output tokens that were in all running batches at one time."""
    served = service(requests, output_weight=1.0)
    gone = Curve(
        [
            (ended.end_s, -float(ended.call.prompt_tokens + ended.life.tokens))
            for ended in requests
            if ended.life.placed_s is not None
        ],
        [],
    )
    times = np.union1d(served.bends(), gone.bends())
    return float(np.max(served.at(times) + gone.at(times), initial=0.0))


def backlog(requests: Iterable[Ended]) -> list[Span]:
    """When at least one of them waited in the gateway's queue."""
    waits = sorted(
        (ended.call.arrival_s, ended.end_s if ended.life.placed_s is None else ended.life.placed_s)
        for ended in requests
    )
    spans: list[Span] = []
    for start, end in waits:
        if end <= start:
            continue
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans


def service_gap(tenants: Sequence[Sequence[Ended]]) -> float | None:
    """The most by which the service of two tenants differed within a time in which both always waited; None: no two ever did."""
    curves = [service(requests) for requests in tenants]
    waits = [backlog(requests) for requests in tenants]
    gaps = [
        gap
        for one, other in combinations(range(len(tenants)), 2)
        for gap in _gaps(curves[one], curves[other], list(_both(waits[one], waits[other])))
    ]
    return max(gaps, default=None)


def bound(requests: Sequence[Ended]) -> float:
    """The theorem's 2 U, with M as it was: the most tokens that ran at one time. The KV caches' size would be a looser M."""
    longest = max(ended.call.prompt_tokens for ended in requests)
    return 2 * max(float(longest), OUTPUT_TOKEN_WEIGHT * most_running_tokens(requests))


def _both(one: Sequence[Span], other: Sequence[Span]) -> Iterable[Span]:
    starts = [start for start, _ in other]
    for start, end in one:
        first = max(0, bisect_right(starts, start) - 1)
        for from_s, to_s in other[first : bisect_left(starts, end)]:
            if max(start, from_s) < min(end, to_s):
                yield max(start, from_s), min(end, to_s)


def _gaps(one: Curve, other: Curve, spans: Sequence[Span]) -> Iterable[float]:
    times = np.unique(np.concatenate([one.bends(), other.bends(), np.array(spans, dtype=np.float64).ravel()]))
    apart = one.at(times) - other.at(times)
    for start, end in spans:
        inside = apart[np.searchsorted(times, start) : np.searchsorted(times, end, side="right")]
        yield float(inside.max() - inside.min())
