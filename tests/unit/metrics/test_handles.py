"""Handles count where their labels say, and the cache of them is bounded."""

from prometheus_client import CollectorRegistry

from metrics.catalog import Metrics
from metrics.handles import HandleCache, TokenKind, TokenSource

LABELS = {"model": "m", "service_tier": "default", "replica": "r", "gpu": "H100", "cost_tier": "spot"}


def test_a_stream_s_figures_land_in_its_series():
    """TTFT, ITL, TPOT and tokens carry model, service tier, replica, GPU and cost tier."""
    registry = CollectorRegistry()
    handles = HandleCache(Metrics.create(registry)).get(*LABELS.values())
    handles.observe_ttft(0.3)
    for gap_s in (0.004, 0.02, 0.0, 0.0):
        handles.gaps.observe(gap_s)
    handles.observe_tpot(0.015)
    handles.add_tokens(7, TokenKind.OUTPUT, TokenSource.REPORTED)
    handles.add_tokens(2, TokenKind.OUTPUT, TokenSource.REPORTED)

    def value(name: str, **more: str) -> float | None:
        return registry.get_sample_value(f"penstock_{name}", {**LABELS, **more})

    assert value("time_to_first_token_seconds_sum") == 0.3
    assert value("inter_token_latency_seconds_count") == 4
    assert value("inter_token_latency_seconds_bucket", le="0.005") == 3
    assert value("time_per_output_token_seconds_sum") == 0.015
    assert value("tokens_total", kind="output", source="reported") == 9


def test_tokens_that_were_not_counted_make_no_series():
    """Only the kinds that occurred are exported; zero tokens are none."""
    registry = CollectorRegistry()
    handles = HandleCache(Metrics.create(registry)).get(*LABELS.values())
    handles.add_tokens(0, TokenKind.CACHED_INPUT, TokenSource.REPORTED)
    assert (
        registry.get_sample_value("penstock_tokens_total", {**LABELS, "kind": "cached_input", "source": "reported"})
        is None
    )


def test_the_same_labels_give_the_same_handles():
    """A placement on the same replica looks nothing up again."""
    cache = HandleCache(Metrics.create(CollectorRegistry()))
    assert cache.get(*LABELS.values()) is cache.get(*LABELS.values())
    assert cache.get(*{**LABELS, "replica": "s"}.values()) is not cache.get(*LABELS.values())


def test_the_least_recently_used_goes_first():
    """The cache keeps its bound, and losing an entry loses no count."""
    registry = CollectorRegistry()
    cache = HandleCache(Metrics.create(registry), max_entries=2)
    a = cache.get("m", "default", "a", "g", "spot")
    b = cache.get("m", "default", "b", "g", "spot")
    assert cache.get("m", "default", "a", "g", "spot") is a
    cache.get("m", "default", "c", "g", "spot")
    assert len(cache) == 2
    assert cache.get("m", "default", "a", "g", "spot") is a
    again = cache.get("m", "default", "b", "g", "spot")
    assert again is not b
    b.observe_ttft(1)
    again.observe_ttft(1)
    labels = {"model": "m", "service_tier": "default", "replica": "b", "gpu": "g", "cost_tier": "spot"}
    assert registry.get_sample_value("penstock_time_to_first_token_seconds_count", labels) == 2
