"""Counters and gauges of our own tell a scraper what the library's would."""

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from metrics.count import Counter, Gauge

AWKWARD = 'a"b\\c\nd'


def without_created(page: bytes) -> list[bytes]:
    return [line for line in page.splitlines() if b"_created" not in line]


def test_a_page_is_the_librarys() -> None:
    """Names, types, helps, escapes, numbers, with labels and without, as text and as OpenMetrics."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    for registry, counter, gauge in (
        (ours, Counter, Gauge),
        (theirs, prometheus_client.Counter, prometheus_client.Gauge),
    ):
        bare = counter("a_total", "A.", registry=registry)
        told = counter("b_total", "B\nb.", ("x", "y"), registry=registry)
        level = gauge("c", "C.", registry=registry)
        levels = gauge("d", "D.", ("x",), registry=registry)
        bare.inc(2.5)
        told.labels("1", AWKWARD).inc()
        told.labels("2", "")
        level.set(-3)
        level.inc()
        level.dec(0.5)
        levels.labels("nan").set(float("nan"))
        levels.labels("inf").inc(float("inf"))
        levels.labels("gone").set(1)
        levels.remove("gone")
    assert without_created(generate_latest(ours)) == without_created(generate_latest(theirs))
    assert without_created(openmetrics(ours)) == without_created(openmetrics(theirs))


def test_a_series_that_is_removed_is_told_no_more() -> None:
    """By some of its labels, by all of them, or all at once."""
    registry = CollectorRegistry()
    counter = Counter("a_total", "A.", ("x", "y"), registry=registry)
    for x in "12":
        for y in "34":
            counter.labels(x, y).inc()
    counter.remove_by_labels({"x": "1"})
    assert [values for values, _ in counter.series()] == [("2", "3"), ("2", "4")]
    counter.remove("2", "3")
    counter.remove("2", "3")
    assert [values for values, _ in counter.series()] == [("2", "4")]
    counter.clear()
    assert not list(counter.series())


def test_labels_must_fit() -> None:
    """A series with too few or too many would be no series of Prometheus'."""
    counter = Counter("a_total", "A.", ("x",), registry=CollectorRegistry())
    with pytest.raises(ValueError, match="has the labels"):
        counter.labels("1", "2")
    with pytest.raises(ValueError, match="has the labels"):
        counter.inc()


def test_a_name_is_there_once() -> None:
    """As the library's registry wants it."""
    registry = CollectorRegistry()
    Counter("a_total", "A.", registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Counter("a_total", "A.", registry=registry)
