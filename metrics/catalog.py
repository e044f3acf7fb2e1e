"""Every instrument, declared once (here, in `of_requests` and in `of_fleet`): its name, help, labels and buckets, on a registry that the caller owns.

An attribute is a metric's name without `penstock_`; those of every process have the names that Prometheus gives them. `service_tier` is the request's class, `cost_tier` the replica's; series of
tokens, money and latency carry the replica, its GPU and its cost tier, so that they can be compared per machine.
Label values: models through `metrics.labels`, the rest from enums and the configuration. Never a key, a user or a request id.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Self, get_args, get_type_hints

from prometheus_client import CollectorRegistry

from metrics.count import Counter, Gauge
from metrics.of_fleet import FleetMetrics
from metrics.spec import CLASS, MACHINE, PREFIX, STREAM, Spec

# Of other modules' names those that belong to the catalog, for whoever reads it here.
__all__ = ["CLASS", "MACHINE", "PREFIX", "STREAM", "Metrics", "Spec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics(FleetMetrics):
    """The instruments. Positional `labels(...)` follow the order given here."""

    # Several gateways (docs/gateways.md); nothing without `redis`
    shared_budget_state: Annotated[
        Gauge,
        Spec(
            help="1 for how this gateway's shares stand: redis, last_lease, static, none (nothing may be placed)",
            labels=("state",),
        ),
    ]
    shared_budget_age_seconds: Annotated[
        Gauge, Spec(help="Since the report to Redis that was answered last; NaN: none was")
    ]
    shared_budget_holders: Annotated[
        Gauge, Spec(help="Processes that share the replicas and are heard, this one included")
    ]
    redis_errors_total: Annotated[
        Counter,
        Spec(
            help="Calls to Redis that failed, by kind: timeout, connection, refused, replicas (too few have it)",
            labels=("kind",),
        ),
    ]

    # The gateway itself
    # Keys, tenants and their limits (docs/tenants.md)
    auth_failures_total: Annotated[Counter, Spec(help="Callers refused by reason, docs/tenants.md", labels=("reason",))]
    rate_limited_total: Annotated[Counter, Spec(help="Requests beyond a tenant's limit, by which", labels=("scope",))]
    keys: Annotated[Gauge, Spec(help="API keys in force; nothing where nobody is asked for one")]
    keys_stale: Annotated[Gauge, Spec(help="1: the keys cannot all be read, and the last that could are in force")]
    key_loads_total: Annotated[Counter, Spec(help="Readings of the keys by result: ok, failed", labels=("result",))]

    workers: Annotated[Gauge, Spec(help="Processes that serve; 1 without --workers")]
    worker_restarts_total: Annotated[Counter, Spec(help="Workers that ended unasked and were started anew")]
    config_reloads_total: Annotated[Counter, Spec(help="Reloads by result: applied, rejected", labels=("result",))]
    config_last_reload_success_timestamp_seconds: Annotated[Gauge, Spec(help="Unix time of the last applied reload")]
    build_info: Annotated[Gauge, Spec(help="Always 1; the version is the label", labels=("version",))]
    event_loop_lag_seconds: Annotated[
        Gauge, Spec(help="How late the event loop woke a timer, the worst of the last minute")
    ]

    # Its processes, under the names that every process has; of several workers together
    process_cpu_seconds_total: Annotated[Counter, Spec(help="CPU time, of workers that are gone, too", prefix="")]
    process_resident_memory_bytes: Annotated[Gauge, Spec(help="Memory in use", prefix="")]
    process_open_fds: Annotated[Gauge, Spec(help="Open file descriptors", prefix="")]
    process_max_fds: Annotated[Gauge, Spec(help="File descriptors that may be open", prefix="")]
    process_start_time_seconds: Annotated[Gauge, Spec(help="Unix time of its start, the oldest's", prefix="")]

    @classmethod
    def create(cls, registry: CollectorRegistry) -> Self:
        """All instruments, registered; raises ValueError if `registry` has them already."""
        hints = get_type_hints(cls, include_extras=True)
        made: dict[str, Any] = {}  # each of its declared kind
        for declared in fields(cls):
            kind, spec = get_args(hints[declared.name])
            buckets = {} if spec.buckets is None else {"buckets": spec.buckets}
            name = spec.prefix + declared.name
            made[declared.name] = kind(name, spec.help, spec.labels, registry=registry, **buckets)
        return cls(**made)
