"""The names that dashboards and alerts are written against: our stable API."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from metrics.buckets import DURATION_BUCKETS_S, ITL_BUCKETS_S, TPOT_BUCKETS_S, TTFT_BUCKETS_S
from metrics.catalog import Metrics
from metrics.count import Counter, Gauge
from metrics.histogram import Histogram

CLASS = ("model", "service_tier")
MACHINE = ("replica", "gpu", "cost_tier")
STREAM = (*CLASS, *MACHINE)

# Renaming or relabelling one breaks somebody's dashboard: change it here knowingly, and say so in CHANGELOG.md.
NAMES: dict[str, tuple[type, tuple[str, ...]]] = {
    "requests_total": (Counter, ("endpoint", *CLASS, "status", "error_code")),
    "requests_in_flight": (Gauge, (*CLASS, "phase")),
    "request_duration_seconds": (Histogram, (*CLASS, "stream", *MACHINE)),
    "time_to_first_token_seconds": (Histogram, STREAM),
    "inter_token_latency_seconds": (Histogram, STREAM),
    "time_per_output_token_seconds": (Histogram, STREAM),
    "overhead_seconds": (Histogram, ("stage",)),
    "prompt_length_tokens": (Histogram, CLASS),
    "output_length_tokens": (Histogram, CLASS),
    "finish_reasons_total": (Counter, ("model", "reason")),
    "client_retries_total": (Counter, ("model",)),
    "client_disconnects_total": (Counter, ("model", "phase")),
    "stream_interruptions_total": (Counter, ("model", "action", "mode")),
    "stream_seam_seconds": (Histogram, ("model", "mode")),
    "recomputed_tokens_total": (Counter, ("model",)),
    "queue_depth": (Gauge, CLASS),
    "queue_tokens": (Gauge, CLASS),
    "queue_bytes": (Gauge, CLASS),
    "queue_utilization_ratio": (Gauge, CLASS),
    "oldest_queued_seconds": (Gauge, CLASS),
    "queue_wait_seconds": (Histogram, (*CLASS, "outcome")),
    "requests_dropped_total": (Counter, (*CLASS, "reason")),
    "overloaded": (Gauge, ("model",)),
    "bodies_bytes": (Gauge, ()),
    "bodies_refused_total": (Counter, ()),
    "tokens_total": (Counter, (*STREAM, "kind", "source")),
    "cost_units_total": (Counter, (*STREAM, "tenant_class")),
    "replica_cost_units_total": (Counter, (*MACHINE, "state")),
    "replica_price_usd_per_hour": (Gauge, MACHINE),
    "replica_on_demand_usd_per_hour": (Gauge, MACHINE),
    "replica_gpus": (Gauge, MACHINE),
    "routing_decisions_total": (Counter, ("model", "replica", "cost_tier", "reason")),
    "routing_duration_seconds": (Histogram, ("strategy",)),
    "batch_fill_ratio": (Histogram, ("replica",)),
    "batch_tokens": (Histogram, ("replica",)),
    "desired_replicas": (Gauge, ("model", "cost_tier")),
    "ready_replicas": (Gauge, ("model", "cost_tier")),
    "upstream_attempts_total": (Counter, ("replica", "outcome")),
    "hedges_total": (Counter, ("model", "outcome")),
    "retries_refused_total": (Counter, ("model",)),
    "retry_budget_requests": (Gauge, ()),
    "prediction_error_ratio": (Histogram, ("replica", "signal")),
    "signal_error_ratio": (Gauge, ("replica", "signal", "source")),
    "signal_weight_ratio": (Gauge, ("replica", "signal")),
    "decision_records_total": (Counter, ("outcome",)),
    "kv_events_total": (Counter, ("replica", "type")),
    "kv_event_gaps_total": (Counter, ("replica", "outcome")),
    "kv_event_resyncs_total": (Counter, ("replica", "reason")),
    "kv_event_prompts_total": (Counter, ("replica", "outcome")),
    "replica_kv_believed_blocks": (Gauge, ("replica",)),
    "replica_up": (Gauge, MACHINE),
    "replica_state": (Gauge, ("replica", "state")),
    "replica_circuit_state": (Gauge, ("replica", "state")),
    "replica_suspicions_total": (Counter, ("replica", "reason")),
    "replica_ejections_total": (Counter, ("replica", "reason")),
    "replica_kv_headroom_tokens": (Gauge, MACHINE),
    "replica_kv_usage_ratio": (Gauge, MACHINE),
    "replica_kv_reserved_ratio": (Gauge, MACHINE),
    "replica_kv_held_ratio": (Gauge, MACHINE),
    "replica_kv_error_ratio": (Gauge, MACHINE),
    "replica_kv_margin_deviations": (Gauge, MACHINE),
    "replica_ledger_only": (Gauge, ("replica",)),
    "replica_running": (Gauge, MACHINE),
    "replica_waiting": (Gauge, MACHINE),
    "replica_batch_occupancy_ratio": (Gauge, MACHINE),
    "replica_metrics_age_seconds": (Gauge, ("replica",)),
    "discovered_replicas": (Gauge, ("source",)),
    "replica_share_ratio": (Gauge, ("replica",)),
    "shared_budget_state": (Gauge, ("state",)),
    "shared_budget_age_seconds": (Gauge, ()),
    "shared_budget_holders": (Gauge, ()),
    "redis_errors_total": (Counter, ("kind",)),
    "spot_notices_total": (Counter, ("replica", "provider", "kind")),
    "replica_drains_total": (Counter, ("replica", "reason", "outcome")),
    "spot_drain_seconds": (Histogram, ("provider", "kind")),
    "replica_deadline_seconds": (Gauge, ("replica",)),
    "auth_failures_total": (Counter, ("reason",)),
    "rate_limited_total": (Counter, ("scope",)),
    "keys": (Gauge, ()),
    "keys_stale": (Gauge, ()),
    "key_loads_total": (Counter, ("result",)),
    "workers": (Gauge, ()),
    "worker_restarts_total": (Counter, ()),
    "config_reloads_total": (Counter, ("result",)),
    "config_last_reload_success_timestamp_seconds": (Gauge, ()),
    "build_info": (Gauge, ("version",)),
    "event_loop_lag_seconds": (Gauge, ()),
    "process_cpu_seconds_total": (Counter, ()),
    "process_resident_memory_bytes": (Gauge, ()),
    "process_open_fds": (Gauge, ()),
    "process_max_fds": (Gauge, ()),
    "process_start_time_seconds": (Gauge, ()),
}


def exported(name: str) -> str:
    """Prometheus' own names stay what they are."""
    return name if name.startswith("process_") else f"penstock_{name}"


def test_the_catalog_is_exactly_this():
    """Names, kinds and labels are pinned, in the order that positional labels rely on."""
    metrics = Metrics.create(CollectorRegistry())
    found = {
        field.name: (type(instrument := getattr(metrics, field.name)), instrument._labelnames)
        for field in fields(metrics)
    }
    assert found == NAMES


def test_an_attribute_is_its_metric_s_name():
    """`metrics.x` is scraped as `penstock_x`, whatever its kind; what every process has, as every process has it."""
    registry = CollectorRegistry()
    metrics = Metrics.create(registry)
    for name, (_, labels) in NAMES.items():
        instrument = getattr(metrics, name)
        child = instrument.labels(*labels) if labels else instrument
        child.observe(1) if isinstance(instrument, Histogram) else child.inc()
    scraped = {sample.name for family in registry.collect() for sample in family.samples}
    expected = {exported(name) + ("_count" if kind is Histogram else "") for name, (kind, _) in NAMES.items()}
    assert expected <= scraped


def test_names_follow_prometheus():
    """Counters end in _total, seconds and ratios say so, no colons (those are for recording rules)."""
    for name, (kind, _) in NAMES.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert name.endswith("_total") == (kind is Counter)
        assert kind is not Histogram or name.endswith(("_seconds", "_ratio", "_tokens"))


def test_no_label_is_personal_or_unbounded():
    """Never a key, a user, an address or a request id."""
    labels = {label for _, names in NAMES.values() for label in names}
    assert not labels & {"key", "api_key", "user", "tenant", "ip", "client", "request_id", "id", "url", "path"}


def test_registries_are_independent_and_exclusive():
    """Nothing is global: two gateways in one process count apart; a registry takes the catalog once."""
    first, second = CollectorRegistry(), CollectorRegistry()
    Metrics.create(first).config_reloads_total.labels("applied").inc()
    Metrics.create(second)
    sample = ("penstock_config_reloads_total", {"result": "applied"})
    assert (first.get_sample_value(*sample), second.get_sample_value(*sample)) == (1.0, None)
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics.create(first)


# Scraped from vLLM 0.32.
VLLM = """\
ttft 0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560
itl 0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80
e2e 0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680
"""


def test_buckets_are_vllm_s():
    """TTFT, TPOT and duration have vLLM's buckets; ITL has them plus three below 10 ms."""
    vllm = {line.split()[0]: tuple(map(float, line.split()[1:])) for line in VLLM.splitlines()}
    assert vllm["ttft"] == TTFT_BUCKETS_S
    assert vllm["itl"] == TPOT_BUCKETS_S
    assert (0.001, 0.0025, 0.005, *vllm["itl"]) == ITL_BUCKETS_S
    assert vllm["e2e"] == DURATION_BUCKETS_S


def test_a_fresh_catalog_can_be_parsed():
    """Prometheus' own parser reads the exposition; labelled series are absent until something happened."""
    from metrics.exposition import render

    registry = CollectorRegistry()
    Metrics.create(registry)
    families = list(text_string_to_metric_families(render(registry)[0].decode()))
    assert {family.name for family in families} == {exported(name).removesuffix("_total") for name in NAMES}
    assert not any(sample.labels.get("model") for family in families for sample in family.samples)


def test_no_instrument_is_dead():
    """Every instrument of the catalog is fed somewhere: one that stays empty lies about a fleet that is fine."""
    root = Path(__file__).resolve().parents[3]
    rest = [path for path in (root / "metrics").glob("*.py") if path.stem not in {"catalog", "pages"}]
    sources = [*rest, *(root / "router").rglob("*.py")]
    text = "".join(source.read_text() for source in sources)
    assert [name for name in NAMES if f".{name}" not in text] == []
