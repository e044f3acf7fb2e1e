"""The fleet under vLLM's names: sums by model over all replicas and tiers, told of every model, served now or not."""

from prometheus_client import CollectorRegistry

from metrics.aliases import ALIASES, Engines, FleetAsEngine
from metrics.buckets import TPOT_BUCKETS_S
from metrics.catalog import Metrics
from metrics.pages import Page, merged, read

ONE, TWO = ("m", "default", "a", "H100", "spot"), ("m", "priority", "b", "A100", "reserved")
OTHER_MODEL = ("n", "default", "a", "H100", "spot")


def counted() -> Metrics:
    metrics = Metrics.create(CollectorRegistry())
    for labels, times in ((ONE, 1), (TWO, 2), (OTHER_MODEL, 4)):
        for kind, tokens in (("input", 10), ("cached_input", 5), ("output", 3), ("reasoning", 2)):
            metrics.tokens_total.labels(*labels, kind, "reported").inc(tokens * times)
        for _ in range(times):
            metrics.inter_token_latency_seconds.labels(*labels).observe(0.002)
            metrics.time_to_first_token_seconds.labels(*labels).observe(0.3)
            metrics.request_duration_seconds.labels(*labels[:2], "true", *labels[2:]).observe(2)
    metrics.queue_depth.labels("m", "default").set(3)
    metrics.queue_depth.labels("m", "flex").set(4)
    for phase, count in (("queued", 7), ("dispatched", 5), ("streaming", 6)):
        metrics.requests_in_flight.labels("m", "default", phase).set(count)
    for reason, count in (("stop", 1), ("tool_calls", 2), ("length", 4), ("other", 8)):
        metrics.finish_reasons_total.labels("m", reason).inc(count)
    metrics.client_disconnects_total.labels("m", "queued").inc(16)
    metrics.client_disconnects_total.labels("m", "streaming").inc(32)
    metrics.stream_interruptions_total.labels("m", "resumed", "exact").inc(64)
    metrics.stream_interruptions_total.labels("m", "errored", "none").inc(128)
    metrics.queue_wait_seconds.labels("m", "default", "dispatched").observe(0.1)
    metrics.queue_wait_seconds.labels("m", "default", "expired").observe(30)
    return metrics


ENGINES = Engines(waiting=2, kv_usage_ratio=0.25, kv_blocks=3000, block_size=16)


def exposed(page: Page, **engines: Engines) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(FleetAsEngine(page, engines, engines.get("m", Engines())))
    return registry


def value(registry: CollectorRegistry, name: str, model: str = "m", **labels: str) -> float | None:
    return registry.get_sample_value(f"vllm:{name}", {"model_name": model, "engine": "0", **labels})


def test_counters_are_sums_over_the_fleet():
    """Of every tier and replica; prompt tokens include those from the cache, answers what was thought."""
    registry = exposed(read(counted()), m=ENGINES)
    found = {
        name: value(registry, f"{name}_total")
        for name in (
            "prompt_tokens",
            "prompt_tokens_cached",
            "generation_tokens",
            "prefix_cache_queries",
            "prefix_cache_hits",
        )
    }
    assert found == {
        "prompt_tokens": 45,
        "prompt_tokens_cached": 15,
        "generation_tokens": 15,
        "prefix_cache_queries": 45,
        "prefix_cache_hits": 15,
    }


def test_what_waits_is_ours_and_the_engines():
    """A request in an engine's own queue waits and does not run."""
    registry = exposed(read(counted()), m=ENGINES)
    assert value(registry, "num_requests_waiting") == 3 + 4 + 2
    assert value(registry, "num_requests_running") == 5 + 6 - 2
    assert value(registry, "kv_cache_usage_perc") == 0.25
    config = {"engine": "0", "block_size": "16", "num_gpu_blocks": "3000"}
    assert registry.get_sample_value("vllm:cache_config_info", config) == 1


def test_ends_have_vllm_s_reasons():
    """All five of them from the beginning; who left the queue was never the engine's."""
    registry = exposed(read(counted()), m=ENGINES, n=ENGINES)
    found = {
        reason: value(registry, "request_success_total", finished_reason=reason)
        for reason in ("stop", "length", "abort", "error", "repetition")
    }
    assert found == {"stop": 11, "length": 4, "abort": 32, "error": 128, "repetition": 0}
    assert value(registry, "request_success_total", "n", finished_reason="repetition") == 0


def test_histograms_are_sums_in_vllm_s_buckets():
    """Nothing is lost below the first of vLLM's bounds, and what waited in vain is no queue time of a request."""
    registry = exposed(read(counted()), m=ENGINES)
    assert value(registry, "inter_token_latency_seconds_bucket", le="0.01") == 3
    bounds = {
        sample.labels["le"]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "vllm:inter_token_latency_seconds_bucket"
    }
    assert len(bounds) == len(TPOT_BUCKETS_S) + 1
    assert value(registry, "time_to_first_token_seconds_bucket", le="0.25") == 0
    assert value(registry, "time_to_first_token_seconds_bucket", le="0.5") == 3
    assert value(registry, "e2e_request_latency_seconds_sum") == 6
    assert value(registry, "request_queue_time_seconds_count") == 1


def test_of_several_workers():
    """The merged page of two is twice one."""
    registry = exposed(merged([read(counted()), read(counted())]), m=ENGINES)
    assert value(registry, "prompt_tokens_total") == 90
    assert value(registry, "inter_token_latency_seconds_count") == 6
    assert value(registry, "num_requests_waiting") == 14 + 2


def test_a_model_without_replicas_is_told():
    """All that an autoscaler or a dashboard asks for is there, at 0, before anything has happened."""
    registry = exposed(Page({}, {}, {}), cold=Engines())
    told = {sample.name for family in registry.collect() for sample in family.samples}
    for alias in ALIASES:
        if alias.name != "vllm:cache_config_info":  # nobody knows
            name = alias.name + ("_count" if alias.type == "histogram" else "")
            assert name in told
            if alias.name != "vllm:request_success_total":
                assert value(registry, name.removeprefix("vllm:"), "cold") == 0
