"""How full a replica's KV cache will get: blocks now plus predicted growth, as a mean and a quantile, over the next tokens.

Sequences end at different times, so the sum of every sequence's own high quantile is never reached: most of a cache reserved
that way stays empty. Here the total at a horizon of h tokens is a sum of independent terms - a sequence that still runs holds
prompt + emitted + h tokens, one that has ended holds nothing - whose mean and variance add up.
"""

from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from batching.blocks import UNBOUNDED

if TYPE_CHECKING:
    from batching.ledger import LeaseRecord

# Output tokens ahead. Beyond the last nearly everything that runs now has ended; between them the total changes smoothly.
HORIZONS: Final = (0, 16, 64, 160, 384, 1024)
_AHEAD: Final = np.array(HORIZONS, dtype=float)
_NOTHING: Final = 1e-12  # keeps a chance of nothing from dividing by it
_LEAST_MARGIN: Final = 1.0
_LARGEST_MARGIN: Final = 6.0  # standard deviations
_STEP_UP: Final = 0.5  # a preemption costs a recompute: one is worth many quiet reports
_STEP_DOWN: Final = 0.002  # a quiet report of a full cache
_FULL_RATIO: Final = 0.8  # usage at which a report without preemption says something


class Holder(NamedTuple):
    """One lease's sequences: tokens held now, the chance that they still run at each horizon, tokens each may still get."""

    tokens: int
    sequences: int
    survival: Sequence[float]
    most: int = UNBOUNDED


def holders_of(records: Iterable["LeaseRecord"], block_size: int) -> list[Holder]:
    """Of leases whose answers' lengths are known; the last block of a sequence is half empty on average."""
    half_block = block_size // 2
    return [
        Holder(
            record.held_tokens + half_block * record.lease.request.sequences,
            record.lease.request.sequences,
            record.lengths.survival(record.emitted_per_sequence, record.output_bound),
            max(0, record.output_bound - record.emitted_per_sequence),
        )
        for record in records
        if record.lengths is not None
    ]


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


def free_tokens(capacity_tokens: float, holders: Sequence[Holder], margin: float) -> tuple[float, ...]:
    """Tokens that stay free at each horizon, at `margin` standard deviations above the mean. O(holders x horizons)."""
    if not holders:
        return (capacity_tokens,) * len(HORIZONS)
    tokens, sequences, survivals, most = zip(*holders, strict=True)
    lives = np.array(survivals)
    held = np.minimum(_AHEAD, np.array(most)[:, None]) * np.array(sequences)[:, None]
    held += np.array(tokens)[:, None]
    held *= lives
    mean = held.sum(axis=0)
    held *= held * (1 / np.maximum(lives, _NOTHING) - 1)  # (held x lives)^2 x (1 - lives) / lives
    return tuple((capacity_tokens - mean - margin * np.sqrt(held.sum(axis=0))).tolist())


def fits(free: Sequence[float], holder: Holder) -> bool:
    """Whether one more holder leaves nothing below zero; its own uncertainty counts as its mean."""
    tokens, sequences, survival, most = holder
    return all(
        (tokens + sequences * min(ahead, most)) * lives <= room
        for ahead, lives, room in zip(HORIZONS, survival, free, strict=True)
    )


def normal_quantile(q: float) -> float:
    """Standard deviations of a normal distribution below which a share of `q` lies; within what `KvRisk` may learn."""
    return min(max(NormalDist().inv_cdf(min(q, 0.9999)), 1.0), 6.0)
