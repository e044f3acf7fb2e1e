"""The last two minutes, a second at a time: differences of the gateway's own counters and histograms.

Read once a second whether somebody watches or not, so that a board that is opened has its curves at once; requests and tokens
pay nothing for it (`python -m benchmarks.board` measures). Seconds are counted on the machine's clock, which all workers share,
and hold counts instead of quantiles, so that those of several workers can be added up.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import msgspec

from batching.ledger import Counts
from batching.request import ReplicaId
from metrics.buckets import ITL_BUCKETS_S, TTFT_BUCKETS_S
from metrics.catalog import Metrics
from metrics.histogram import Histogram
from router.board.document import Pulse

KEPT_S: Final = 120
_RATE_S: Final = 3  # that a replica's tokens a second are a mean of: of one second they would flicker
_EARLY_S: Final = 0.01  # a loop may wake somebody so much too soon
_OVERLOAD: Final = 429
_FAILED: Final = 500


class Second(msgspec.Struct, array_like=True, frozen=True):
    """What one worker counted in the second that ended at `at_s`."""

    at_s: int  # of the loop's clock
    ttft: tuple[int, ...] = ()  # by TTFT_BUCKETS_S and beyond, not cumulated; empty: nothing
    itl: tuple[int, ...] = ()  # by ITL_BUCKETS_S
    output_tokens: int = 0
    requests: int = 0
    errors: int = 0
    queue_depth: int = 0
    held_blocks: int = 0

    def __add__(self, other: "Second") -> "Second":
        """Of two workers."""
        return Second(
            self.at_s,
            _added(self.ttft, other.ttft),
            _added(self.itl, other.itl),
            self.output_tokens + other.output_tokens,
            self.requests + other.requests,
            self.errors + other.errors,
            self.queue_depth + other.queue_depth,
            self.held_blocks + other.held_blocks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a gateway has counted since it began."""

    ttft: Sequence[int]
    itl: Sequence[int]
    requests: int
    errors: int
    queue_depth: int  # now
    replicas: Mapping[ReplicaId, Counts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one replica, over the last seconds."""

    output_tokens_per_s: float = 0.0
    input_tokens_per_s: float = 0.0


class Recorder:
    """Keeps one gateway's seconds. `tick` at each whole second; what comes late covers more than one."""

    def __init__(self, read: Callable[[], Totals], now: float) -> None:
        self._read = read
        self._last_s = second_of(now)
        self._before = read()
        self._seconds: deque[Second] = deque(maxlen=KEPT_S)
        self._counts: deque[tuple[float, Mapping[ReplicaId, Counts]]] = deque(maxlen=_RATE_S + 1)
        self._counts.append((now, self._before.replicas))

    def tick(self, now: float) -> bool:
        """False: the second is not over."""
        at_s = second_of(now)
        if at_s <= self._last_s:
            return False
        before, after = self._before, self._read()
        self._last_s, self._before = at_s, after
        self._counts.append((now, after.replicas))
        self._seconds.append(
            Second(
                at_s,
                _grown(before.ttft, after.ttft),
                _grown(before.itl, after.itl),
                _emitted(before.replicas, after.replicas),
                after.requests - before.requests,
                after.errors - before.errors,
                after.queue_depth,
                sum(counts.held_blocks for counts in after.replicas.values()),
            )
        )
        return True

    def seconds(self, since_s: int | None = None) -> tuple[Second, ...]:
        """Oldest first; those after `since_s`."""
        return tuple(second for second in self._seconds if since_s is None or second.at_s > since_s)

    def rates(self) -> dict[ReplicaId, Rate]:
        """Of the replicas on which something went on."""
        (began_s, before), (ended_s, after) = self._counts[0], self._counts[-1]
        took_s = ended_s - began_s
        found: dict[ReplicaId, Rate] = {}
        for replica, counts in after.items():
            was = before.get(replica)
            if was is None or took_s <= 0 or was[:2] == counts[:2]:
                continue
            output = max(0, counts.emitted_tokens - was.emitted_tokens)
            computed = max(0, counts.computed_tokens - was.computed_tokens)
            found[replica] = Rate(round(output / took_s, 1), round(computed / took_s, 1))
        return found

    def __repr__(self) -> str:
        return f"<Recorder {len(self._seconds)} seconds to {self._last_s}>"


def second_of(now: float) -> int:
    """The whole second that has ended."""
    return int(now + _EARLY_S)


def until_next(now: float) -> float:
    """Seconds until the next whole one."""
    return second_of(now) + 1 - now


def totals(metrics: Metrics, replicas: Mapping[ReplicaId, Counts], queue_depth: int) -> Totals:
    """As they are now. O(series)."""
    requests = errors = 0
    for family in metrics.requests_total.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                requests += int(sample.value)
                errors += int(sample.value) if _is_failure(sample.labels) else 0
    return Totals(
        ttft=_summed(metrics.time_to_first_token_seconds, len(TTFT_BUCKETS_S) + 1),
        itl=_summed(metrics.inter_token_latency_seconds, len(ITL_BUCKETS_S) + 1),
        requests=requests,
        errors=errors,
        queue_depth=queue_depth,
        replicas=replicas,
    )


def joined(parts: Iterable[Iterable[Second]]) -> list[Second]:
    """Of several workers, second by second, oldest first; one that was not there is not missed."""
    found: dict[int, Second] = {}
    for part in parts:
        for second in part:
            before = found.get(second.at_s)
            found[second.at_s] = second if before is None else before + second
    return [found[at_s] for at_s in sorted(found)]


def pulse(second: Second, *, unix_at_zero: float, kv_blocks: int) -> Pulse:
    """As people see it. `kv_blocks`: of all replicas whose size is known."""
    return Pulse(
        unix_s=second.at_s + unix_at_zero,
        ttft_p50_s=quantile(TTFT_BUCKETS_S, second.ttft, 0.5),
        ttft_p95_s=quantile(TTFT_BUCKETS_S, second.ttft, 0.95),
        itl_p50_s=quantile(ITL_BUCKETS_S, second.itl, 0.5),
        itl_p95_s=quantile(ITL_BUCKETS_S, second.itl, 0.95),
        output_tokens=second.output_tokens,
        requests=second.requests,
        errors=second.errors,
        queue_depth=second.queue_depth,
        kv_used_ratio=round(min(1.0, second.held_blocks / kv_blocks), 4) if kv_blocks else None,
    )


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Straight within a bucket, as PromQL's; beyond the last bound that bound. None: nothing was counted."""
    left = share * sum(counts)
    if not left:
        return None
    for (low, high), count in zip(pairwise((0.0, *bounds)), counts, strict=False):
        if count and left <= count:
            return round(low + (high - low) * left / count, 6)
        left -= count
    return bounds[-1]


def _is_failure(labels: Mapping[str, str]) -> bool:
    """What the caller could not help: refused for want of room, failed, or broken off after the status was sent."""
    status = int(labels["status"])
    return status >= _FAILED or status == _OVERLOAD or (status < 400 and labels["error_code"] != "none")


def _summed(histogram: Histogram, buckets: int) -> list[int]:
    counts = [series.counts for _, series in histogram.series()]
    return list(map(sum, zip(*counts, strict=True))) if counts else [0] * buckets


def _grown(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    counts = tuple(b - a for a, b in zip(before, after, strict=True))
    return counts if any(counts) else ()


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    if not one or not other:
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _emitted(before: Mapping[ReplicaId, Counts], after: Mapping[ReplicaId, Counts]) -> int:
    """By all replicas; one that came back under its name has begun anew."""
    found = 0
    for replica, counts in after.items():
        was = before.get(replica)
        found += max(0, counts.emitted_tokens - (0 if was is None else was.emitted_tokens))
    return found
