"""Gateway internals: what the gateway itself costs, what it believes of the engines, and how far it is from the truth."""

from typing import Final

from metrics.dashboards import shared
from metrics.dashboards.dashboard import Dashboard, Row
from metrics.dashboards.grids import Timeline
from metrics.dashboards.panels import Heatmap, Stat, TimeSeries
from metrics.dashboards.parts import Color, Query, Step, Unit
from metrics.dashboards.promql import Expr, buckets, events, folded, gauge, quantile, rate

_HERE: Final = "=~$instance"
# backends.breaker.BreakerState, as numbers; a test holds them together.
CIRCUITS: Final = {1: ("closed", Color.GREEN), 2: ("half_open", Color.YELLOW), 3: ("open", Color.RED)}
_REPLICA: Final = "{{replica}}"


def dashboard() -> Dashboard:
    return Dashboard(
        uid="penstock-internals",
        title="Penstock / Gateway internals",
        description="What the gateway itself costs, what it believes of the engines, and how far that is from the truth.",
        rows=[_process(), _keys(), _gateways(), _own_time(), _engines(), _beliefs(), _batches(), _kv_events(), _rest()],
        instances=True,
    )


def _process() -> Row:
    return Row(
        "The process",
        [
            _own("CPU", "Cores in use, by gateway; with --workers of all its processes. At 1 a worker cannot do more: start it with more --workers (docs/workers.md).",
                 rate("process_cpu_seconds_total", "instance", instance=_HERE), Unit.NUMBER),
            _own("Memory", "Resident memory. Steady growth under steady load is a leak: tell us. bodies_bytes below is the part that clients fill.",
                 gauge("process_resident_memory_bytes", "instance", instance=_HERE), Unit.BYTES),
            _own("Open files", "Sockets of clients and engines, mostly. Near the limit (ulimit -n) no client gets in.",
                 gauge("process_open_fds", "instance", instance=_HERE), Unit.NUMBER),
            TimeSeries(
                title="Event-loop lag",
                description="How late the event loop woke a timer, the worst of each minute. Every token passes through it: 50 ms here are 50 ms between tokens. Give the gateway cores, or more workers.",
                queries=[Query(gauge("event_loop_lag_seconds", "instance", fold="max", instance=_HERE), "{{instance}}")],
                unit=Unit.SECONDS,
                steps=(Step(0.1, Color.RED),),
                width=6,
            ),
            Stat(title="Gateways", description="Versions that are scraped, and how many gateways run each.", query=Query(folded("count", gauge("build_info", "instance", "version", instance=_HERE), "version"), "{{version}}"),
                 unit=Unit.COUNT, sparkline=False, width=4),
            Stat(title="Workers", description="Processes that serve. Fewer than configured: one is being started anew.", query=Query(gauge("workers", instance=_HERE)), unit=Unit.COUNT, width=4),
            Stat(title="Worker restarts in this range", description="Workers that ended unasked; their streams were cut. The gateway's log says why.",
                 query=Query(events("worker_restarts_total", over="$__range", instance=_HERE)), unit=Unit.COUNT, steps=(Step(1, Color.RED),), sparkline=False, width=4),
            Stat(title="Reloads in this range", description="Configurations applied or rejected (SIGHUP). Rejected ones change nothing; the log names the key.",
                 query=Query(events("config_reloads_total", "result", over="$__range", instance=_HERE), "{{result}}"), unit=Unit.COUNT, sparkline=False, width=4, empty="none"),
            Stat(title="Since the last reload", description="Since the configuration was last applied.",
                 query=Query(Expr(f"(time() - {gauge('config_last_reload_success_timestamp_seconds', fold='max', instance=_HERE).text})")), unit=Unit.SECONDS, sparkline=False, width=4),
            Stat(title="Callers refused in this range", description="Callers of /admin without the right key. Many: somebody tries keys.",
                 query=Query(events("auth_failures_total", over="$__range", instance=_HERE)), unit=Unit.COUNT, steps=(Step(1, Color.YELLOW),), sparkline=False, width=4, empty="0"),
        ],
    )  # fmt: skip


def _keys() -> Row:
    return Row(
        "Keys and tenants",
        [
            TimeSeries(
                title="Refused callers, by why",
                description="Without a key that is known, or with one that may not do this. Many from one address: somebody guesses (docs/tenants.md).",
                queries=[Query(events("auth_failures_total", "reason"), "{{reason}}")],
                unit=Unit.PER_SECOND,
            ),
            TimeSeries(
                title="Beyond a tenant's limits, by which",
                description="Requests refused with 429: requests or tokens a minute, at a time, dollars a month. Others are not touched.",
                queries=[Query(events("rate_limited_total", "scope"), "{{scope}}")],
                unit=Unit.PER_SECOND,
            ),
            TimeSeries(
                title="Keys in force",
                description="As the key file or Redis says. It stands still while that cannot be read: 'Readings of the keys' shows failed ones.",
                queries=[
                    Query(gauge("keys", fold="max"), "keys"),
                    Query(gauge("keys_stale", fold="max"), "1: cannot be read"),
                ],
                unit=Unit.NUMBER,
            ),
            TimeSeries(
                title="Readings of the keys",
                description="A file is read when it changes, a Redis followed. Failed: the log says which line or record, and the last good keys stay in force.",
                queries=[Query(events("key_loads_total", "result"), "{{result}}")],
                unit=Unit.PER_SECOND,
            ),
        ],
    )


def _gateways() -> Row:
    return Row(
        "Several gateways",
        [
            TimeSeries(
                title="How shares stand",
                description="redis: as the book says. last_lease, static: Redis does not answer, and what may be placed is what was held, then the static share (docs/gateways.md).",
                queries=[Query(gauge("shared_budget_state", "state"), "{{state}}")],
                unit=Unit.NUMBER,
            ),
            TimeSeries(
                title="Since Redis answered",
                description="Since the report that was answered last. Above redis.lease_s a gateway is down to its static share.",
                queries=[Query(gauge("shared_budget_age_seconds", fold="max"), "age")],
                unit=Unit.SECONDS,
            ),
            TimeSeries(
                title="Gateways that are heard",
                description="Processes that share the replicas, workers each for themselves. Fewer than there are: some do not reach Redis.",
                queries=[Query(gauge("shared_budget_holders", fold="max"), "holders")],
                unit=Unit.NUMBER,
            ),
            TimeSeries(
                title="Calls to Redis that failed",
                description="By kind. None of them is on the way of a request.",
                queries=[Query(events("redis_errors_total", "kind"), "{{kind}}")],
                unit=Unit.PER_SECOND,
            ),
        ],
    )


def _own_time() -> Row:
    return Row(
        "Our own time",
        [
            TimeSeries(
                title="Overhead, p99",
                description="What the gateway adds to a request, queue and engine aside, by stage. Milliseconds in `relay`: the event loop is busy, see its lag.",
                queries=[Query(quantile(0.99, "overhead_seconds", "stage", instance=_HERE), "{{stage}}")],
                unit=Unit.SECONDS,
            ),
            TimeSeries(
                title="One pass of the scheduler",
                description="A pass over the queue. It grows with the replicas that are looked at; above some milliseconds tell us, with the fleet's size.",
                queries=[
                    Query(quantile(which, "routing_duration_seconds", instance=_HERE), f"p{which * 100:g}")
                    for which in (0.5, 0.99)
                ],
                unit=Unit.SECONDS,
            ),
            TimeSeries(
                title="Bodies held",
                description="Bytes of request bodies, from their first byte to the answer's end, and those of them that wait. At server.max_held_body_bytes clients get 503.",
                queries=[
                    Query(gauge("bodies_bytes", instance=_HERE), "held"),
                    Query(gauge("queue_bytes", instance=_HERE), "of them in the queue"),
                ],
                unit=Unit.BYTES,
            ),
        ],
    )


def _engines() -> Row:
    return Row(
        "Engines",
        [
            TimeSeries(
                title="Attempts, by outcome",
                description="ok; connect_error, 5xx, timeout, stream_cut: the engine failed; rejected: it refused the request; moved: the answer went on elsewhere, as the replica goes; lapsed: the gateway stood still past its lease of the replica before it sent anything, the request was placed anew; hedged, cancelled: nobody needed it any more.",
                queries=[Query(rate("upstream_attempts_total", "outcome"), "{{outcome}}")],
                unit=Unit.PER_SECOND,
                stacked=True,
            ),
            TimeSeries(
                title="Attempts that failed, by replica",
                description="One replica alone: look at its engine's log. All: the network, or a model that crashes its engines.",
                queries=[
                    Query(
                        rate(
                            "upstream_attempts_total",
                            "replica",
                            "outcome",
                            outcome="!~ok|cancelled|hedged|moved|lapsed",
                        ),
                        "{{replica}} {{outcome}}",
                    )
                ],
                unit=Unit.PER_SECOND,
                stacked=True,
            ),
            TimeSeries(
                title="Second attempts",
                description="Requests that may be sent to a second replica now, and those that were not, as this budget was spent (scheduling.retry_budget_ratio).",
                queries=[
                    Query(gauge("retry_budget_requests"), "budget"),
                    Query(events("retries_refused_total"), "not repeated"),
                ],
                unit=Unit.NUMBER,
            ),
            Timeline(
                title="Circuit breakers",
                description="open: the replica is out of service after failures, slow first bytes or silence. half_open: it is asked for one token. It heals by itself (docs/health.md).",
                query=Query(_circuits(), _REPLICA),
                states=CIRCUITS,
                width=8,
            ),
            TimeSeries(
                title="Doubts and ejections",
                description="Times a replica was asked for one token because it was doubted, by reason, and those in which it gave none. Doubts without ejections: health.silence_s may be short for these engines.",
                queries=[
                    Query(events("replica_suspicions_total", "replica", "reason"), "{{replica}} doubted: {{reason}}"),
                    Query(events("replica_ejections_total", "replica", "reason"), "{{replica}} ejected: {{reason}}"),
                ],
                unit=Unit.COUNT,
                bars=True,
                height=9,
            ),
            TimeSeries(
                title="Age of the engines' figures",
                description="Since the engine last told its load. Beyond probe.stale_after_s (10 s unless set) it is not believed, and room is reckoned from our ledger alone.",
                queries=[Query(gauge("replica_metrics_age_seconds", "replica", fold="max"), _REPLICA)],
                unit=Unit.SECONDS,
                steps=(Step(10, Color.ORANGE),),
                height=9,
            ),
        ],
    )


def _beliefs() -> Row:
    return Row(
        "The ledger against the engines",
        [
            TimeSeries(
                title="Ledger minus engine",
                description="KV that our leases fill, minus what the engine says it uses. Around 0 is right. Far below: others use this engine. Far above: it frees what we think is held.",
                queries=[Query(gauge("replica_kv_error_ratio", "replica", fold="avg"), _REPLICA)],
                unit=Unit.RATIO,
                at_least=None,
            ),
            TimeSeries(
                title="Held and used KV",
                description="What our leases fill now, beside what the engine says.",
                queries=[Query(gauge("replica_kv_held_ratio", "replica"), "{{replica}} held"), Query(gauge("replica_kv_usage_ratio", "replica", fold="max"), "{{replica}} used")],
                unit=Unit.RATIO,
                at_most=1,
            ),
            TimeSeries(
                title="Margin of the KV forecast",
                description="Standard deviations of the forecast growth that are kept free; it rises when an engine preempts. High for long: outputs vary more than forecast, capacity is left unused.",
                queries=[Query(gauge("replica_kv_margin_deviations", "replica", fold="avg"), _REPLICA)],
                unit=Unit.NUMBER,
            ),
            TimeSeries(
                title="Prediction errors, p90",
                description="By signal; 50 % is off by a factor of two.",
                queries=[Query(quantile(0.9, "prediction_error_ratio", "signal"), "{{signal}}")],
                unit=Unit.RATIO,
                at_most=1,
            ),
            TimeSeries(
                title="Learned against not learning",
                description="The mean error lately of what was learned, and of what would have been said without learning. Learned above baseline: it loses weight, beside.",
                queries=[Query(gauge("signal_error_ratio", "signal", "source", fold="avg"), "{{signal}} {{source}}")],
                unit=Unit.RATIO,
            ),
            TimeSeries(
                title="Belief in what was learned",
                description="1: fully believed; towards 0 the baseline takes its place. Low for one replica: its engine behaves in no pattern - a neighbour, or throttling.",
                queries=[Query(gauge("signal_weight_ratio", "replica", "signal", fold="avg"), "{{replica}} {{signal}}")],
                unit=Unit.RATIO,
                at_most=1,
            ),
            TimeSeries(
                title="Reckoned from the ledger alone",
                description="1: the engine's KV figures are missing or stale. It works, with more care than needed. Check metrics_url, or the engine's version.",
                queries=[Query(gauge("replica_ledger_only", "replica"), _REPLICA)],
                unit=Unit.COUNT,
                at_most=1,
            ),
            TimeSeries(
                title="Share of the replica's budgets",
                description="Of each replica's budgets, that this gateway's workers may use together. 1 unless several gateways share the fleet.",
                queries=[Query(gauge("replica_share_ratio", "replica"), _REPLICA)],
                unit=Unit.RATIO,
            ),
            TimeSeries(
                title="Discovered replicas",
                description="What each source of `discovery` names now. A source that cannot be asked keeps what it said last; the log says which (docs/discovery.md).",
                queries=[Query(gauge("discovered_replicas", "source"), "{{source}}")],
                unit=Unit.NUMBER,
            ),
            shared.percentiles("Tokens of an engine's step", "Tokens that the batch joined by a placement computes in its next step: prefill admitted and a token a sequence. Steps of max_num_batched_tokens are full.",
                               "batch_tokens", unit=Unit.TOKENS),
        ],
    )  # fmt: skip


def _batches() -> Row:
    return Row(
        "Batches",
        [
            Heatmap(
                title="How full the batches are that placements join",
                description="Sequences in the batch, the new one included, over max_num_seqs. All at the bottom: KV or pace bind first, or there is little to do. All at the top: raise the engines' max_num_seqs if KV has room.",
                query=Query(buckets("batch_fill_ratio")),
                unit=Unit.RATIO,
            ),
            TimeSeries(
                title="Batch occupancy, by replica",
                description="Running sequences over max_num_seqs, now.",
                queries=[Query(gauge("replica_batch_occupancy_ratio", "replica"), _REPLICA)],
                unit=Unit.RATIO,
                at_most=1,
                width=12,
                height=9,
            ),
        ],
    )


def _kv_events() -> Row:
    return Row(
        "KV events (only where a replica has kv_events; docs/kv-events.md)",
        [
            TimeSeries(
                title="Events",
                description="What the engines publish of their prefix caches. Nothing while requests run: check the endpoint, and that the engine has --kv-events-config.",
                queries=[Query(rate("kv_events_total", "replica", "type"), "{{replica}} {{type}}")],
                unit=Unit.PER_SECOND,
            ),
            TimeSeries(
                title="Gaps and new beginnings",
                description="Batches missing in the stream - replayed, or lost - and times all belief was dropped. Lost ones: set replay_endpoint, or raise the engine's buffer.",
                queries=[
                    Query(events("kv_event_gaps_total", "replica", "outcome"), "{{replica}} gap {{outcome}}"),
                    Query(events("kv_event_resyncs_total", "replica", "reason"), "{{replica}} anew: {{reason}}"),
                ],
                unit=Unit.COUNT,
                bars=True,
            ),
            TimeSeries(
                title="Believed blocks, and prompts mapped to them",
                description="KV blocks that events say are cached; and prompts whose tokens were joined with blocks, a second. Few `mapped`: the tokenizer endpoint is slow or missing.",
                queries=[
                    Query(gauge("replica_kv_believed_blocks", "replica"), "{{replica}} blocks"),
                    Query(rate("kv_event_prompts_total", "replica", "outcome"), "{{replica}} {{outcome}}/s"),
                ],
                unit=Unit.NUMBER,
                log=True,
            ),
        ],
    )


def _rest() -> Row:
    return Row(
        "Bounds",
        [
            TimeSeries(
                title="Refused for memory",
                description="Requests refused because server.max_held_body_bytes was reached. Raise it where there is memory, or lower server.max_body_bytes.",
                queries=[Query(rate("bodies_refused_total", instance=_HERE), "refused")],
                unit=Unit.REQUESTS_PER_SECOND,
            ),
            TimeSeries(
                title="Decision records",
                description="Placements written to decisions.file, and dropped because the disk is slower than they come. Nothing where no file is set.",
                queries=[Query(rate("decision_records_total", "outcome", instance=_HERE), "{{outcome}}")],
                unit=Unit.PER_SECOND,
            ),
            TimeSeries(
                title="Prompt tokens waiting",
                description="Of queue.max_tokens, estimated: what the engines will have to prefill.",
                queries=[Query(gauge("queue_tokens", "service_tier"), "{{service_tier}}")],
                unit=Unit.TOKENS,
                stacked=True,
            ),
        ],
    )


def _own(title: str, description: str, expr: Expr, unit: Unit) -> TimeSeries:
    """A figure of each process."""
    return TimeSeries(title=title, description=description, queries=[Query(expr, "{{instance}}")], unit=unit, width=6)


def _circuits() -> Expr:
    """The number of the state that a breaker is in."""
    first, *others = (
        gauge("replica_circuit_state", "replica", "state", fold="max", state=name) * number
        for number, (name, _) in CIRCUITS.items()
    )
    joined = first
    for other in others:
        joined = joined.or_(other)
    return folded("sum", joined, "replica")
