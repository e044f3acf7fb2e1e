"""A registry's figures as a plain value, and one page from several: what all workers of a gateway counted together.

Counters and histograms are added up; what a worker had counted before it died is a page like the others'. Of gauges, which tell of
now, each has its rule. Decides nothing about when pages are made or how they travel.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import fields
from enum import StrEnum
from functools import cache
from math import ceil
from typing import Final, get_args, get_type_hints

import msgspec

from metrics.catalog import Metrics, Spec
from metrics.count import Counter, Gauge
from metrics.histogram import Histogram

Labels = tuple[str, ...]  # values, in the order of the instrument's declaration


class Across(StrEnum):
    """What a gauge of several workers is."""

    SUM = "sum"  # each tells its own part
    MOST = "most"
    LEAST = "least"
    MEAN = "mean"  # each has learned for itself
    WHOLE = "whole"  # each tells its part of something that comes in whole pieces: the sum, rounded up


_S, _M = Across.SUM, Across.MOST
GAUGES: Final[Mapping[str, Across]] = {
    "requests_in_flight": _S,
    "queue_depth": _S,
    "queue_tokens": _S,
    "queue_bytes": _S,
    "queue_utilization_ratio": _M,  # each worker has the bounds to itself: the fullest is the first to refuse
    "oldest_queued_seconds": _M,
    "overloaded": _M,
    "bodies_bytes": _S,
    "retry_budget_requests": _S,
    "replica_price_usd_per_hour": _M,
    "replica_on_demand_usd_per_hour": _M,
    "replica_gpus": _M,
    "desired_replicas": Across.WHOLE,
    "ready_replicas": _M,
    "signal_error_ratio": Across.MEAN,
    "signal_weight_ratio": Across.MEAN,
    "replica_kv_believed_blocks": _M,
    "replica_up": _M,
    "replica_state": _M,
    "replica_circuit_state": _M,
    "replica_kv_headroom_tokens": _S,
    "replica_kv_usage_ratio": _M,
    "replica_kv_reserved_ratio": _S,
    "replica_kv_held_ratio": _S,
    "replica_kv_error_ratio": _S,  # then made anew: each subtracts the whole engine from its own part
    "replica_kv_margin_deviations": Across.MEAN,
    "replica_ledger_only": _M,
    "replica_running": _S,
    "replica_waiting": _M,
    "replica_batch_occupancy_ratio": _S,
    "replica_metrics_age_seconds": _M,
    "discovered_replicas": _M,
    "replica_share_ratio": _S,
    "shared_budget_state": _S,  # how many are in each
    "shared_budget_age_seconds": _M,
    "shared_budget_holders": _M,
    "replica_deadline_seconds": Across.LEAST,
    "config_last_reload_success_timestamp_seconds": Across.LEAST,
    "build_info": _M,
    "event_loop_lag_seconds": _M,
    "keys": _M,
    "keys_stale": _M,
    "workers": _S,
    "process_resident_memory_bytes": _S,
    "process_open_fds": _S,
    "process_max_fds": _S,
    "process_start_time_seconds": Across.LEAST,
}
_ROUNDING: Final = 1e-9  # that a sum of parts may be off


class Counts(msgspec.Struct, array_like=True):
    """A histogram's series."""

    buckets: list[int]  # not cumulated
    total: float


class Page(msgspec.Struct):
    """By instrument, then by labels."""

    counters: dict[str, dict[Labels, float]] = {}
    gauges: dict[str, dict[Labels, float]] = {}
    histograms: dict[str, dict[Labels, Counts]] = {}

    def counted(self) -> "Page":
        """What outlives its worker."""
        return Page(self.counters, {}, self.histograms)


def packed(page: Page) -> bytes:
    """For the way from process to process."""
    flat = [[list(part[name].items()) for name in part] for part in (page.counters, page.gauges, page.histograms)]
    names = [list(part) for part in (page.counters, page.gauges, page.histograms)]
    return msgspec.msgpack.encode((names, flat))


class _Packed(msgspec.Struct, array_like=True):
    names: tuple[list[str], list[str], list[str]]
    parts: tuple[list[list[tuple[Labels, float]]], list[list[tuple[Labels, float]]], list[list[tuple[Labels, Counts]]]]


def unpacked(data: bytes) -> Page:
    """Raises msgspec.DecodeError for what `packed` did not make."""
    found = msgspec.msgpack.decode(data, type=_Packed)
    counters, gauges, histograms = found.parts
    return Page(
        dict(zip(found.names[0], map(dict, counters), strict=True)),
        dict(zip(found.names[1], map(dict, gauges), strict=True)),
        dict(zip(found.names[2], map(dict, histograms), strict=True)),
    )


def read(metrics: Metrics) -> Page:
    """All figures of now."""
    page = Page({}, {}, {})
    for name, _ in instruments():
        instrument = getattr(metrics, name)
        if isinstance(instrument, Histogram):
            page.histograms[name] = {
                values: Counts(list(series.counts), series.total) for values, series in instrument.series()
            }
        else:
            part = page.counters if isinstance(instrument, Counter) else page.gauges
            part[name] = {values: series.value for values, series in instrument.series()}
    return page


def write(page: Page, metrics: Metrics) -> None:
    """Into instruments that nothing was counted on yet."""
    for name, counts in page.counters.items():
        counter: Counter = getattr(metrics, name)
        for labels, value in counts.items():
            counter.labels(*labels).inc(value)
    for name, values in page.gauges.items():
        gauge: Gauge = getattr(metrics, name)
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
    for name, series in page.histograms.items():
        histogram: Histogram = getattr(metrics, name)
        for labels, counted in series.items():
            into = histogram.labels(*labels)
            into.counts, into.total = list(counted.buckets), counted.total


def merged(pages: Iterable[Page]) -> Page:
    """One page; the order of `pages` does not matter, but for the rounding of sums."""
    found = list(pages)
    page = Page(
        {name: _sums(p.counters.get(name, {}) for p in found) for name in _names(p.counters for p in found)},
        {name: _gauge(name, [p.gauges.get(name, {}) for p in found]) for name in _names(p.gauges for p in found)},
        {name: _counts(p.histograms.get(name, {}) for p in found) for name in _names(p.histograms for p in found)},
    )
    errors, held, used = (page.gauges.get(f"replica_kv_{what}_ratio", {}) for what in ("error", "held", "usage"))
    for labels in errors:
        errors[labels] = held.get(labels, 0.0) - used.get(labels, 0.0)
    return page


def whole(parts: float) -> int:
    """So many pieces are needed for it; any part at all needs one."""
    return ceil(parts - _ROUNDING) if parts > 1 else ceil(parts)


@cache
def instruments() -> tuple[tuple[str, Spec], ...]:
    """Of the catalog, in its order."""
    hints = get_type_hints(Metrics, include_extras=True)
    return tuple((declared.name, get_args(hints[declared.name])[1]) for declared in fields(Metrics))


def forget(metrics: Metrics, replica: str) -> None:
    """Every series of it."""
    for name, _ in _by_replica():
        getattr(metrics, name).remove_by_labels({"replica": replica})


def of_crew(pages: Iterable[Page]) -> Page:
    """One page of all workers and of what those who are gone had counted, which no longer tells of replicas that nobody else tells of.

    A worker lets go of a replica that has long left (router.departed); one that has ended cannot.
    """
    found = list(pages)
    living = [page for page in found if page.gauges]
    known = {replica for page in living for replica in _replicas(page)}
    return merged([*living, *(_only(page, known) for page in found if not page.gauges)])


def _replicas(page: Page) -> Iterable[str]:
    for name, place in _by_replica():
        for part in (page.counters, page.gauges, page.histograms):
            for labels in part.get(name, ()):
                yield labels[place]


def _only(page: Page, replicas: Container[str]) -> Page:
    counters, histograms = dict(page.counters), dict(page.histograms)
    for name, place in _by_replica():
        if name in counters:
            counters[name] = {k: v for k, v in counters[name].items() if k[place] in replicas}
        elif name in histograms:
            histograms[name] = {k: v for k, v in histograms[name].items() if k[place] in replicas}
    return Page(counters, {}, histograms)


def _by_replica() -> list[tuple[str, int]]:
    """Which instruments tell replicas apart, and by which label."""
    return [(name, spec.labels.index("replica")) for name, spec in instruments() if "replica" in spec.labels]


def _names(parts: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part))


def _sums(parts: Iterable[Mapping[Labels, float]]) -> dict[Labels, float]:
    found: dict[Labels, float] = {}
    for part in parts:
        for labels, value in part.items():
            found[labels] = found.get(labels, 0.0) + value
    return found


def _gauge(name: str, parts: list[dict[Labels, float]]) -> dict[Labels, float]:
    rule = GAUGES[name]
    if rule is Across.SUM:
        return _sums(parts)
    if rule is Across.WHOLE:
        return {labels: whole(value) for labels, value in _sums(parts).items()}
    values: dict[Labels, list[float]] = {}
    for part in parts:
        for labels, value in part.items():
            values.setdefault(labels, []).append(value)
    if rule is Across.MEAN:
        return {labels: sum(told) / len(told) for labels, told in values.items()}
    pick = max if rule is Across.MOST else min
    return {labels: pick(told) for labels, told in values.items()}


def _counts(parts: Iterable[Mapping[Labels, Counts]]) -> dict[Labels, Counts]:
    found: dict[Labels, Counts] = {}
    for part in parts:
        for labels, counts in part.items():
            if (sum_ := found.get(labels)) is None:
                found[labels] = Counts(list(counts.buckets), counts.total)
            else:
                sum_.buckets = [a + b for a, b in zip(sum_.buckets, counts.buckets, strict=True)]
                sum_.total += counts.total
    return found
