"""Every instrument, declared once: its name, help, labels and buckets, on a registry that the caller owns.

An attribute is a metric's name without `penstock_`. `service_tier` is the request's class, `cost_tier` the replica's; series of
tokens, money and latency carry the replica, its GPU and its cost tier, so that they can be compared per machine.
Label values: models through `metrics.labels`, the rest from enums and the configuration. Never a key, a user or a request id.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Self, get_args, get_type_hints

from prometheus_client import CollectorRegistry, Counter, Gauge

from metrics.buckets import (
    DURATION_BUCKETS_S,
    ERROR_BUCKETS_RATIO,
    FILL_BUCKETS_RATIO,
    ITL_BUCKETS_S,
    LENGTH_BUCKETS_TOKENS,
    OVERHEAD_BUCKETS_S,
    QUEUE_WAIT_BUCKETS_S,
    ROUTING_BUCKETS_S,
    TPOT_BUCKETS_S,
    TTFT_BUCKETS_S,
)
from metrics.histogram import Histogram

PREFIX = "penstock_"

CLASS = ("model", "service_tier")
MACHINE = ("replica", "gpu", "cost_tier")
STREAM = (*CLASS, *MACHINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What an instrument needs beyond its name."""

    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The instruments. Positional `labels(...)` follow the order given here."""

    # Requests
    requests_total: Annotated[
        Counter,
        Spec(
            help="Requests by their one end; status 499: the client left",
            labels=("endpoint", *CLASS, "status", "error_code"),
        ),
    ]
    requests_in_flight: Annotated[
        Gauge, Spec(help="Requests now, by phase: queued, dispatched, streaming", labels=(*CLASS, "phase"))
    ]
    request_duration_seconds: Annotated[
        Histogram,
        Spec(
            help="From the request's arrival to its last byte",
            labels=(*CLASS, "stream", *MACHINE),
            buckets=DURATION_BUCKETS_S,
        ),
    ]
    time_to_first_token_seconds: Annotated[
        Histogram,
        Spec(
            help="From the request's arrival to its first token, queue included", labels=STREAM, buckets=TTFT_BUCKETS_S
        ),
    ]
    inter_token_latency_seconds: Annotated[
        Histogram, Spec(help="Between two tokens of a stream", labels=STREAM, buckets=ITL_BUCKETS_S)
    ]
    time_per_output_token_seconds: Annotated[
        Histogram,
        Spec(help="Mean of a request's time per token after the first", labels=STREAM, buckets=TPOT_BUCKETS_S),
    ]
    overhead_seconds: Annotated[
        Histogram,
        Spec(
            help="What the gateway adds to a request, queue and engine aside; stage: ingress, route, relay",
            labels=("stage",),
            buckets=OVERHEAD_BUCKETS_S,
        ),
    ]
    prompt_length_tokens: Annotated[
        Histogram,
        Spec(help="Prompts by their length, as the engine counted it", labels=CLASS, buckets=LENGTH_BUCKETS_TOKENS),
    ]
    output_length_tokens: Annotated[
        Histogram, Spec(help="Answers by their length", labels=CLASS, buckets=LENGTH_BUCKETS_TOKENS)
    ]
    finish_reasons_total: Annotated[
        Counter, Spec(help="Choices by why they ended: stop, length, tool_calls, ...", labels=("model", "reason"))
    ]
    client_retries_total: Annotated[
        Counter,
        Spec(help="Requests that their client says it sends again (x-stainless-retry-count)", labels=("model",)),
    ]
    client_disconnects_total: Annotated[
        Counter, Spec(help="Clients that left before the end, by phase", labels=("model", "phase"))
    ]
    stream_interruptions_total: Annotated[
        Counter,
        Spec(
            help="Streams whose engine broke off; action: resumed, errored; mode: exact, text, none",
            labels=("model", "action", "mode"),
        ),
    ]
    stream_seam_seconds: Annotated[
        Histogram,
        Spec(
            help="From the last token of an engine that was lost or left to the next one of its successor",
            labels=("model", "mode"),
            buckets=TTFT_BUCKETS_S,
        ),
    ]
    recomputed_tokens_total: Annotated[
        Counter, Spec(help="Tokens that had to be prefilled again because an answer moved", labels=("model",))
    ]

    # Queue
    queue_depth: Annotated[Gauge, Spec(help="Requests waiting for a replica", labels=CLASS)]
    queue_tokens: Annotated[Gauge, Spec(help="Prompt tokens waiting, estimated", labels=CLASS)]
    queue_bytes: Annotated[Gauge, Spec(help="Bytes of bodies held while queued", labels=CLASS)]
    queue_utilization_ratio: Annotated[Gauge, Spec(help="Of queue.max_requests, 0 to 1", labels=CLASS)]
    oldest_queued_seconds: Annotated[Gauge, Spec(help="Age of the request that waits longest", labels=CLASS)]
    queue_wait_seconds: Annotated[
        Histogram,
        Spec(
            help="Time in the queue, by how it ended",
            labels=(*CLASS, "outcome"),
            buckets=QUEUE_WAIT_BUCKETS_S,
        ),
    ]

    requests_dropped_total: Annotated[
        Counter,
        Spec(
            help="Requests refused or evicted because too much came, by reason: queue_full, shed, overload, deadline, no_replica "
            "(docs/overload.md)",
            labels=(*CLASS, "reason"),
        ),
    ]
    overloaded: Annotated[
        Gauge,
        Spec(help="1: more comes than can be answered in time, and who would be late is refused", labels=("model",)),
    ]
    bodies_bytes: Annotated[Gauge, Spec(help="Bytes of request bodies held, from their first byte to the answer's end")]
    bodies_refused_total: Annotated[Counter, Spec(help="Requests refused because of server.max_held_body_bytes")]

    # Tokens and money
    tokens_total: Annotated[
        Counter,
        Spec(
            help="Tokens by kind: input (not cached), cached_input, output, reasoning; source: reported, estimated",
            labels=(*STREAM, "kind", "source"),
        ),
    ]
    cost_units_total: Annotated[
        Counter,
        Spec(
            help="US dollars of machine time by the request it went to: price x time x share of what ran there (docs/cost.md)",
            labels=(*STREAM, "tenant_class"),
        ),
    ]
    replica_cost_units_total: Annotated[
        Counter,
        Spec(
            help="US dollars of the machine's own time; state: busy (some request of ours ran there), idle",
            labels=(*MACHINE, "state"),
        ),
    ]
    replica_price_usd_per_hour: Annotated[Gauge, Spec(help="Price of the replica, all its GPUs", labels=MACHINE)]
    replica_on_demand_usd_per_hour: Annotated[
        Gauge, Spec(help="What the same machine costs on demand; nothing where nobody has said", labels=MACHINE)
    ]
    replica_gpus: Annotated[
        Gauge, Spec(help="GPUs of the replica: what tokens/s per GPU are divided by", labels=MACHINE)
    ]

    # Placement and engines
    routing_decisions_total: Annotated[
        Counter,
        Spec(
            help="Placements by what decided: prefix_hit, cost, kv_headroom, fallback",
            labels=("model", "replica", "cost_tier", "reason"),
        ),
    ]
    routing_duration_seconds: Annotated[
        Histogram, Spec(help="One pass of the scheduler over its queue", buckets=ROUTING_BUCKETS_S)
    ]
    batch_fill_ratio: Annotated[
        Histogram,
        Spec(
            help="Sequences in the batch that a placement joined, itself included, over max_num_seqs",
            labels=("replica",),
            buckets=FILL_BUCKETS_RATIO,
        ),
    ]
    batch_tokens: Annotated[
        Histogram,
        Spec(
            help="Tokens that the batch joined by a placement computes in its next step: prefill admitted and a token a sequence",
            labels=("replica",),
            buckets=LENGTH_BUCKETS_TOKENS,
        ),
    ]
    desired_replicas: Annotated[
        Gauge,
        Spec(
            help="Replicas that what runs and waits needs to be in time, told at none, too (docs/autoscaling.md)",
            labels=("model", "cost_tier"),
        ),
    ]
    upstream_attempts_total: Annotated[
        Counter, Spec(help="Attempts on a replica, by outcome", labels=("replica", "outcome"))
    ]

    hedges_total: Annotated[
        Counter,
        Spec(
            help="Requests that were overdue at their replica; outcome of asking a second one: won, lost, failed, cancelled, "
            "refused_budget, refused_no_replica",
            labels=("model", "outcome"),
        ),
    ]
    retries_refused_total: Annotated[
        Counter,
        Spec(help="Requests not repeated after an engine's error as the retry budget was spent", labels=("model",)),
    ]
    retry_budget_requests: Annotated[
        Gauge, Spec(help="Requests that may be sent to a second replica now (scheduling.retry_budget_ratio)")
    ]

    # Predictions (docs/decisions-ledger.md); signal: ttft, tpot, output_tokens, cached_tokens, finish, kv_usage, kv_forecast
    prediction_error_ratio: Annotated[
        Histogram,
        Spec(
            help="What was predicted against what happened: the difference over the greater of both",
            labels=("replica", "signal"),
            buckets=ERROR_BUCKETS_RATIO,
        ),
    ]
    signal_error_ratio: Annotated[
        Gauge,
        Spec(
            help="The same lately, as a mean; source: learned, baseline (what would have been said without learning)",
            labels=("replica", "signal", "source"),
        ),
    ]
    signal_weight_ratio: Annotated[
        Gauge,
        Spec(
            help="How far a learned signal deserves belief, 1 to 0: less where it does worse than its baseline",
            labels=("replica", "signal"),
        ),
    ]
    decision_records_total: Annotated[
        Counter, Spec(help="Placements for the decisions file, by outcome: written, dropped", labels=("outcome",))
    ]

    # KV events (docs/kv-events.md); nothing where no replica has `kv_events`
    kv_events_total: Annotated[
        Counter,
        Spec(help="Events by type: stored, removed, cleared, ignored", labels=("replica", "type")),
    ]
    kv_event_gaps_total: Annotated[
        Counter, Spec(help="Batches missing in the stream, by outcome: replayed, lost", labels=("replica", "outcome"))
    ]
    kv_event_resyncs_total: Annotated[
        Counter,
        Spec(
            help="Times all belief was dropped to begin anew, by reason: lost, restarted", labels=("replica", "reason")
        ),
    ]
    kv_event_prompts_total: Annotated[
        Counter,
        Spec(
            help="Prompts whose tokens were to be joined with blocks: mapped, dropped, mismatched, failed",
            labels=("replica", "outcome"),
        ),
    ]
    replica_kv_believed_blocks: Annotated[
        Gauge, Spec(help="KV blocks that the engine's events say are in its prefix cache", labels=("replica",))
    ]

    # Replicas; set when scraped
    replica_up: Annotated[Gauge, Spec(help="1: ready for work", labels=MACHINE)]
    replica_state: Annotated[Gauge, Spec(help="1 for the state that the replica is in", labels=("replica", "state"))]
    replica_circuit_state: Annotated[
        Gauge,
        Spec(help="1 for the state that the replica's circuit breaker is in", labels=("replica", "state")),
    ]
    replica_suspicions_total: Annotated[
        Counter,
        Spec(
            help="Times it was asked for one token because it was doubted (docs/health.md); reason: silent_streams, no_iterations, "
            "missed_first_tokens, consecutive_failures, error_ratio, slow_first_bytes",
            labels=("replica", "reason"),
        ),
    ]
    replica_ejections_total: Annotated[
        Counter,
        Spec(help="Of them, those in which it gave none and was taken out of service", labels=("replica", "reason")),
    ]
    replica_kv_headroom_tokens: Annotated[Gauge, Spec(help="KV tokens that a new placement may take", labels=MACHINE)]
    replica_kv_usage_ratio: Annotated[Gauge, Spec(help="KV blocks in use, as the engine says", labels=MACHINE)]
    replica_kv_reserved_ratio: Annotated[
        Gauge, Spec(help="KV blocks our leases hold, forecast growth included", labels=MACHINE)
    ]
    replica_kv_held_ratio: Annotated[Gauge, Spec(help="KV blocks our leases fill now", labels=MACHINE)]
    replica_kv_error_ratio: Annotated[
        Gauge, Spec(help="The ledger's held ratio minus the engine's usage ratio", labels=MACHINE)
    ]
    replica_kv_margin_deviations: Annotated[
        Gauge,
        Spec(
            help="Standard deviations of the forecast KV growth that are kept free; learned from the engine's preemptions",
            labels=MACHINE,
        ),
    ]
    replica_ledger_only: Annotated[
        Gauge,
        Spec(
            help="1: the engine's KV figures are missing or stale, so room is reckoned from the gateway's ledger alone",
            labels=("replica",),
        ),
    ]
    replica_running: Annotated[Gauge, Spec(help="Sequences that our leases hold", labels=MACHINE)]
    replica_waiting: Annotated[Gauge, Spec(help="Requests in the engine's own queue, as it says", labels=MACHINE)]
    replica_batch_occupancy_ratio: Annotated[
        Gauge, Spec(help="Running sequences over max_num_seqs, now", labels=MACHINE)
    ]
    replica_metrics_age_seconds: Annotated[Gauge, Spec(help="Age of the engine's last figures", labels=("replica",))]

    replica_share_ratio: Annotated[
        Gauge,
        Spec(
            help="Of the replica's budgets, that the gateway's workers may use; 1 of each without --workers",
            labels=("replica",),
        ),
    ]

    # Several gateways (docs/gateways.md); nothing without `redis`. state: redis, last_lease, static, none; kind: timeout, connection, ...
    shared_budget_state: Annotated[Gauge, Spec(help="1 for how this gateway's shares stand", labels=("state",))]
    shared_budget_age_seconds: Annotated[Gauge, Spec(help="Since the last report that Redis answered; NaN: none")]
    shared_budget_holders: Annotated[Gauge, Spec(help="Processes that share the replicas, this one included")]
    redis_errors_total: Annotated[Counter, Spec(help="Calls to Redis that failed, by kind", labels=("kind",))]

    # Replicas that are drained or taken away (docs/spot.md)
    spot_notices_total: Annotated[
        Counter,
        Spec(
            help="Notices, repeats not counted; kind: rebalance, reclaim, maintenance",
            labels=("replica", "provider", "kind"),
        ),
    ]
    replica_drains_total: Annotated[
        Counter,
        Spec(
            help="Drains and notices by their end; reason: drain, reclaim, maintenance; outcome: released, cut (something ran when it was "
            "to be empty), overdue (even at the deadline), restored, vanished, removed",
            labels=("replica", "reason", "outcome"),
        ),
    ]
    spot_drain_seconds: Annotated[
        Histogram,
        Spec(
            help="From the first word of a drain or notice until nothing of ours was on the replica",
            labels=("provider", "kind"),
            buckets=DURATION_BUCKETS_S,
        ),
    ]
    replica_deadline_seconds: Annotated[
        Gauge, Spec(help="Until the replica must be gone; nothing where no deadline stands", labels=("replica",))
    ]

    # The gateway itself
    auth_failures_total: Annotated[Counter, Spec(help="Callers refused by reason: admin_key", labels=("reason",))]
    workers: Annotated[Gauge, Spec(help="Processes that serve; 1 without --workers")]
    worker_restarts_total: Annotated[Counter, Spec(help="Workers that ended unasked and were started anew")]
    config_reloads_total: Annotated[Counter, Spec(help="Reloads by result: applied, rejected", labels=("result",))]
    config_last_reload_success_timestamp_seconds: Annotated[Gauge, Spec(help="Unix time of the last applied reload")]
    build_info: Annotated[Gauge, Spec(help="Always 1; the version is the label", labels=("version",))]
    event_loop_lag_seconds: Annotated[Gauge, Spec(help="How late the event loop last woke a timer")]

    @classmethod
    def create(cls, registry: CollectorRegistry) -> Self:
        """All instruments, registered; raises ValueError if `registry` has them already."""
        hints = get_type_hints(cls, include_extras=True)
        made: dict[str, Any] = {}  # each of its declared kind
        for declared in fields(cls):
            kind, spec = get_args(hints[declared.name])
            buckets = {} if spec.buckets is None else {"buckets": spec.buckets}
            made[declared.name] = kind(PREFIX + declared.name, spec.help, spec.labels, registry=registry, **buckets)
        return cls(**made)
