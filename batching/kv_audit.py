"""One replica's KV predictions held against what came: our ledger against the engine's report, the forecast against the ledger.

The first says what the ledger knows that the last report did not, the second what the forecast of the sum is worth. Decides nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from batching.audit import Audit
from batching.kv_forecast import HORIZONS, Holder, free_tokens
from batching.ledger import LeaseRecord
from batching.ticket import LeaseId

_EVERY_S: Final = 5.0  # a forecast is taken so often: the sum over all streams costs tens of microseconds
_LEAST_STEPS: Final = 8  # after fewer nothing has happened that could be judged


class _Taken(NamedTuple):
    """A forecast and for whom: later arrivals are not its fault."""

    at_s: float
    steps: int  # of the engine, by then
    streams: tuple[LeaseRecord, ...]
    held: tuple[float, ...]  # tokens expected at each of HORIZONS
    tokens: int  # held then
    sequences: int


class KvAudit:
    """Told of each fresh report of the engine, before and after the ledger takes it in."""

    __slots__ = ("_audit", "_taken", "_told_blocks")

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._told_blocks: int | None = None
        self._taken: _Taken | None = None

    def reported(self, used_blocks: int | None, *, believed_blocks: int) -> None:
        """`believed_blocks`: what we took it to hold until now."""
        before, self._told_blocks = self._told_blocks, used_blocks
        if before is not None and used_blocks is not None and (used_blocks or before or believed_blocks):
            self._audit.kv_usage.add(believed_blocks, before, used_blocks)

    def look(self, leases: Mapping[LeaseId, LeaseRecord], steps: int, now: float) -> None:
        """Judges the forecast that was taken last, and takes the next."""
        taken = self._taken
        if taken is not None and now - taken.at_s < _EVERY_S:
            return
        if taken is not None:
            self._judge(taken, steps - taken.steps, leases)
        self._taken = _take(leases.values(), steps, now)

    def _judge(self, taken: _Taken, ahead: int, leases: Mapping[LeaseId, LeaseRecord]) -> None:
        if _LEAST_STEPS <= ahead <= HORIZONS[-1]:
            actual = sum(record.held_tokens for record in taken.streams if record.lease.id in leases)
            if_none_ends = taken.tokens + ahead * taken.sequences
            self._audit.kv_forecast.add(_between(taken.held, ahead), if_none_ends, actual)


def _take(leases: Iterable[LeaseRecord], steps: int, now: float) -> _Taken | None:
    """Of the streams: of other answers nobody sees how far they are."""
    streams = tuple(r for r in leases if r.first_token_s is not None and r.lease.request.streaming)
    holders = [
        Holder(
            record.held_tokens,
            record.lease.request.sequences,
            record.lengths.survival(record.emitted_per_sequence, record.output_bound),
            max(0, record.output_bound - record.emitted_per_sequence),
        )
        for record in streams
        if record.lengths is not None
    ]
    if not holders or len(holders) < len(streams):
        return None
    held = tuple(-free for free in free_tokens(0.0, holders, 0.0))
    tokens = sum(record.held_tokens for record in streams)
    return _Taken(now, steps, streams, held, tokens, sum(record.lease.request.sequences for record in streams))


def _between(values: Sequence[float], ahead: int) -> float:
    """Of values at HORIZONS, in a straight line from one to the next."""
    for (near, low), (far, high) in pairwise(zip(HORIZONS, values, strict=True)):
        if ahead <= far:
            return low + (high - low) * (ahead - near) / (far - near)
    return values[-1]
