"""The instruments of the fleet: where requests go, what was predicted, what replicas do. Declared here, created by `metrics.catalog`."""

from dataclasses import dataclass
from typing import Annotated

from metrics.buckets import (
    DURATION_BUCKETS_S,
    ERROR_BUCKETS_RATIO,
    FILL_BUCKETS_RATIO,
    LENGTH_BUCKETS_TOKENS,
    ROUTING_BUCKETS_S,
)
from metrics.count import Counter, Gauge
from metrics.histogram import Histogram
from metrics.of_requests import RequestMetrics
from metrics.spec import MACHINE, Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetMetrics(RequestMetrics):
    """By replica."""

    # Placement and engines
    routing_decisions_total: Annotated[
        Counter,
        Spec(
            help="Placements by what decided: prefix_hit, cost, kv_headroom, fallback",
            labels=("model", "replica", "cost_tier", "reason"),
        ),
    ]
    routing_duration_seconds: Annotated[
        Histogram,
        Spec(
            help="One pass of the scheduler over its queue; strategy: scheduling.policy",
            labels=("strategy",),
            buckets=ROUTING_BUCKETS_S,
        ),
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
    ready_replicas: Annotated[
        Gauge,
        Spec(help="Replicas that are ready and serve the model, told at none, too", labels=("model", "cost_tier")),
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
            "missed_first_tokens, consecutive_failures, error_ratio, slow_first_bytes, other_gateway",
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

    discovered_replicas: Annotated[
        Gauge,
        Spec(help="Replicas that a source of `discovery` names; kept while it cannot be asked", labels=("source",)),
    ]
    replica_share_ratio: Annotated[
        Gauge,
        Spec(
            help="Of the replica's budgets, that the gateway's workers may use; 1 of each without --workers",
            labels=("replica",),
        ),
    ]

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
