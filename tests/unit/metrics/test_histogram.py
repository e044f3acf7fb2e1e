"""Our histogram against the library's: the same observations, the same page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as TheirHistogram

from metrics.histogram import Histogram

BUCKETS = (0.00001, 0.001, 0.5, 1.0, 2560.0)


def page(registry: CollectorRegistry) -> list[str]:
    return sorted(line for line in generate_latest(registry).decode().splitlines() if "_created" not in line)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10_000) | st.sampled_from(BUCKETS))))
def test_the_page_is_the_library_s(observations: list[tuple[str, float]]) -> None:
    """Whatever is observed, bounds included."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Histogram("x_seconds", "Help", ("kind",), registry=ours, buckets=BUCKETS)
    other = TheirHistogram("x_seconds", "Help", ("kind",), registry=theirs, buckets=BUCKETS)
    for kind, value in observations:
        mine.labels(kind).observe(value)
        other.labels(kind).observe(value)
    assert page(ours) == page(theirs)


def test_without_labels_there_is_a_series_from_the_start() -> None:
    """As with the library: zero is a figure."""
    registry = CollectorRegistry()
    histogram = Histogram("x_seconds", "Help", registry=registry, buckets=(1.0,))
    assert registry.get_sample_value("x_seconds_count") == 0
    histogram.observe(2.0)
    assert registry.get_sample_value("x_seconds_bucket", {"le": "1.0"}) == 0
    assert registry.get_sample_value("x_seconds_sum") == 2.0


def test_a_wrong_number_of_labels_is_refused() -> None:
    """At once, not at the scrape."""
    histogram = Histogram("x_seconds", "Help", ("a", "b"), registry=CollectorRegistry(), buckets=(1.0,))
    with pytest.raises(ValueError, match="labels"):
        histogram.labels("only one")
    assert histogram.collect() is not None


def test_a_name_is_taken_once() -> None:
    """Two instruments of one name on a registry would be two truths."""
    registry = CollectorRegistry()
    Histogram("x_seconds", "Help", registry=registry, buckets=(1.0,))
    with pytest.raises(ValueError, match="Duplicated"):
        Histogram("x_seconds", "Help", registry=registry, buckets=(1.0,))
