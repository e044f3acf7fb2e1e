"""What a scraper gets, by what it asks for."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from metrics.exposition import render
from metrics.histogram import Histogram as OurHistogram

PROMETHEUS_ACCEPT = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("penstock_things_total", "Things", ["model"], registry=registry).labels('a"b\nc').inc(2)
    Histogram("penstock_time_seconds", "Time", buckets=(1, 2), registry=registry).observe(1.5)
    return registry


@pytest.mark.parametrize("accept", ["", "*/*", "text/html", "text/plain;version=0.0.4"])
def test_text_is_the_default(registry: CollectorRegistry, accept: str):
    """A browser or curl gets Prometheus text."""
    body, content_type = render(registry, accept)
    assert content_type.startswith("text/plain")
    samples = {s.name: s.value for family in parse_text(body.decode()) for s in family.samples if "le" not in s.labels}
    assert samples == {
        "penstock_things_total": 2.0,
        "penstock_time_seconds_count": 1.0,
        "penstock_time_seconds_sum": 1.5,
    }


def test_openmetrics_where_it_is_asked_for(registry: CollectorRegistry):
    """Prometheus' own Accept header gets OpenMetrics, which its parser reads to the end."""
    body, content_type = render(registry, PROMETHEUS_ACCEPT)
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    names = {s.name for family in parse_openmetrics(body.decode()) for s in family.samples}
    assert "penstock_things_total" in names


@pytest.mark.parametrize("accept", ["", PROMETHEUS_ACCEPT])
def test_created_samples_are_left_out(registry: CollectorRegistry, accept: str):
    """They would nearly double the counters' series."""
    assert b"_created" not in render(registry, accept)[0]


def test_rendering_changes_nothing(registry: CollectorRegistry):
    """A scrape may be repeated."""
    assert render(registry) == render(registry)


@pytest.mark.parametrize("accept", ["", PROMETHEUS_ACCEPT])
def test_our_histogram_writes_what_the_library_would(accept: str):
    """Every sample and every label, in its order, whatever stands in them; and nothing of a histogram that has no series."""
    pages = []
    for kind in (OurHistogram, Histogram):
        made = CollectorRegistry()
        values = ('say "hi"\\', "H100", "m\nn", "ü")
        labelled = kind(
            "penstock_a_seconds",
            'A "help"\n',
            ("replica", "gpu", "model", "abc"),
            registry=made,
            buckets=(0.001, 1, 2.5),
        )
        for seconds in (0.0005, 1, 2, 3):
            labelled.labels(*values).observe(seconds)
        labelled.labels("b", "c", "d", "e")
        kind("penstock_b_seconds", "B", registry=made, buckets=(1,)).observe(1e9)
        kind("penstock_c_seconds", "C", ("le_not",), registry=made, buckets=(1,))
        pages.append(render(made, accept)[0])
    assert pages[0] == pages[1]
