"""How full a replica's KV cache will get: blocks now plus predicted growth, as a mean and a quantile, over the next tokens.

Sequences end at different times, so the sum of every sequence's own high quantile is never reached: most of a cache reserved
that way stays empty. Here the total at a horizon of h tokens is a sum of independent terms - a sequence that still runs holds
prompt + emitted + h tokens, one that has ended holds nothing - whose mean and variance add up.
"""

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import Final, NamedTuple

# Output tokens ahead. Beyond the last nearly everything that runs now has ended; between them the total changes smoothly.
HORIZONS: Final = (0, 16, 64, 160, 384, 1024)
_LEAST_MARGIN, _LARGEST_MARGIN = 0.5, 6.0  # standard deviations
_STEP_UP: Final = 0.5  # a preemption costs a recompute: one is worth many quiet reports
_STEP_DOWN: Final = 0.02  # a quiet report of a full cache
_FULL_RATIO: Final = 0.8  # usage at which a report without preemption says something


class Holder(NamedTuple):
    """One lease's sequences: tokens that each holds or shares now, and the chance that they still run at each horizon."""

    tokens: int
    sequences: int
    survival: Sequence[float]


class KvRisk:
    """Standard deviations kept free above the expected peak; learned from the engine's own preemptions and usage."""

    __slots__ = ("_preemptions", "margin")

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self._preemptions: int | None = None

    def observe(self, preemptions_total: int | None, usage_ratio: float | None) -> None:
        """One fresh report of the engine."""
        if preemptions_total is None:
            return
        before, self._preemptions = self._preemptions, preemptions_total
        if before is not None and preemptions_total > before:
            self.margin = min(_LARGEST_MARGIN, self.margin + _STEP_UP)
        elif usage_ratio is not None and usage_ratio >= _FULL_RATIO:
            self.margin = max(_LEAST_MARGIN, self.margin - _STEP_DOWN)


def free_tokens(capacity_tokens: float, holders: Iterable[Holder], margin: float) -> tuple[float, ...]:
    """Tokens that stay free at each horizon, at `margin` standard deviations above the mean. O(holders x horizons)."""
    mean = [0.0] * len(HORIZONS)
    variance = [0.0] * len(HORIZONS)
    for tokens, sequences, survival in holders:
        for index, (ahead, lives) in enumerate(zip(HORIZONS, survival, strict=True)):
            held = tokens + sequences * ahead
            mean[index] += held * lives
            variance[index] += held * held * lives * (1 - lives)
    return tuple(capacity_tokens - m - margin * sqrt(v) for m, v in zip(mean, variance, strict=True))


def fits(free: Sequence[float], holder: Holder) -> bool:
    """Whether one more holder leaves nothing below zero; its own uncertainty counts as its mean."""
    tokens, sequences, survival = holder
    return all(
        (tokens + sequences * ahead) * lives <= room
        for ahead, lives, room in zip(HORIZONS, survival, free, strict=True)
    )
