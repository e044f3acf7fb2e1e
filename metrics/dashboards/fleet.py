"""Fleet overview: is all well, and if not, where."""

from typing import Final

from metrics.dashboards import shared
from metrics.dashboards.dashboard import Dashboard, Row
from metrics.dashboards.grids import Column, Grid, Table, Timeline
from metrics.dashboards.panels import Heatmap, Stat, TimeSeries
from metrics.dashboards.parts import Color, Query, Step, Unit
from metrics.dashboards.promql import Expr, folded, gauge, quantile, rate, ratio

# batching.replica.Lifecycle, as numbers that a timeline can draw; a test holds them together.
STATES: Final = {
    1: ("ready", Color.GREEN),
    2: ("suspect", Color.ORANGE),
    3: ("draining", Color.BLUE),
    4: ("reclaiming", Color.YELLOW),
    5: ("starting", Color.GREY),
    6: ("warming", Color.GREY),
    7: ("asleep", Color.GREY),
    8: ("waking", Color.GREY),
    9: ("down", Color.RED),
}
MACHINE: Final = shared.MACHINE
_BUSY: Final = (Step(0.8, Color.YELLOW), Step(0.95, Color.RED))


def dashboard() -> Dashboard:
    return Dashboard(
        uid="penstock-fleet",
        title="Penstock / Fleet overview",
        description="Is the fleet well, and if not, where: traffic, replicas, KV caches, the queue, placements.",
        rows=[_now(), _traffic(), _replicas(), _kv(), _queue(), _placements()],
    )


def _now() -> Row:
    failed = ratio(rate("requests_total", status="=~5.."), rate("requests_total", status="!=499"))
    return Row(
        "Now",
        [
            Stat(title="Requests", description="Requests that end, a second. 0 with clients at work: they do not reach the gateway.",
                 query=Query(rate("requests_total")), unit=Unit.REQUESTS_PER_SECOND),
            Stat(title="Failed", description="Share of requests that ended with a status of 500 or more. Above 5 % PenstockErrorRatio fires; 'Errors by code' says which.",
                 query=Query(failed), unit=Unit.RATIO, decimals=1, steps=(Step(0.01, Color.YELLOW), Step(0.05, Color.RED)), empty="no requests"),
            Stat(title="Replicas ready", description="Replicas ready for work. The table below says what the others do.",
                 query=Query(gauge("replica_up")), unit=Unit.COUNT, steps=(Step(float("-inf"), Color.RED), Step(1, Color.GREEN))),
            Stat(title="Waiting", description="Requests in the gateway's queue. Some are no harm; watch the oldest's age.",
                 query=Query(gauge("queue_depth")), unit=Unit.COUNT, empty="0"),
            Stat(title="First token, p95", description="19 of 20 requests had their first token within this time, the queue included. The objective is scheduling.objectives.ttft_s (1 s unless set).",
                 query=Query(quantile(0.95, "time_to_first_token_seconds")), unit=Unit.SECONDS,
                 steps=(Step(1, Color.YELLOW), Step(2.5, Color.RED)), empty="no tokens"),
            Stat(title="Between tokens, p95", description="19 of 20 tokens came within this time after the one before. The objective is scheduling.objectives.tpot_s (0.1 s unless set).",
                 query=Query(quantile(0.95, "inter_token_latency_seconds")), unit=Unit.SECONDS,
                 steps=(Step(0.1, Color.YELLOW), Step(0.2, Color.RED)), empty="no tokens"),
            Stat(title="Output", description="Tokens that clients were given, a second.",
                 query=Query(rate("tokens_total", kind="=~output|reasoning")), unit=Unit.TOKENS_PER_SECOND),
            Stat(title="Dollars an hour", description="Price of the replicas that are ready. Cost and spot says where it goes.",
                 query=Query(shared.usd_per_hour()), unit=Unit.USD, decimals=2),
        ],
    )  # fmt: skip


def _traffic() -> Row:
    return Row(
        "Traffic",
        [
            shared.requests_by_status(),
            TimeSeries(
                title="Requests by model",
                description="Requests that ended, by model; `other` is every name that no replica serves. Click a series for the model's own dashboard.",
                queries=[Query(rate("requests_total", "model"), "{{model}}")],
                unit=Unit.REQUESTS_PER_SECOND,
                stacked=True,
                model_links=True,
            ),
            shared.errors_by_code(),
            shared.tokens_by_kind(),
            TimeSeries(
                title="Tokens a second and GPU",
                description="Input that had to be computed and output, over the replica's GPUs: what a GPU is worth. Compare replicas of one GPU type: a lower one is less busy (see the table), slower, or shared with somebody.",
                queries=[Query(_tokens_per_gpu(), "{{replica}} ({{gpu}}, {{cost_tier}})")],
                unit=Unit.TOKENS_PER_SECOND,
            ),
            TimeSeries(
                title="Requests in flight",
                description="By phase: queued here, dispatched (prefilled by an engine), streaming. Many dispatched: prefill is what takes long.",
                queries=[Query(gauge("requests_in_flight", "phase"), "{{phase}}")],
                unit=Unit.NUMBER,
                stacked=True,
            ),
        ],
    )


def _replicas() -> Row:
    columns = [
        Column("Up", gauge("replica_up", *MACHINE), Unit.COUNT, hidden=True),
        Column("State", gauge("replica_state", "replica", "state", fold="max") > 0, Unit.COUNT, hidden=True),
        Column("GPUs", gauge("replica_gpus", "replica"), Unit.COUNT),
        Column("$/h", gauge("replica_price_usd_per_hour", "replica"), Unit.USD),
        Column("Running", gauge("replica_running", "replica"), Unit.COUNT),
        Column("Batch", gauge("replica_batch_occupancy_ratio", "replica"), Unit.RATIO, bar=True),
        Column("KV used", gauge("replica_kv_usage_ratio", "replica", fold="max"), Unit.RATIO, bar=True),
        Column("KV promised", gauge("replica_kv_reserved_ratio", "replica"), Unit.RATIO, bar=True),
        Column("Output", rate("tokens_total", "replica", kind="=~output|reasoning"), Unit.TOKENS_PER_SECOND),
    ]
    return Row(
        "Replicas",
        [
            Table(
                title="Replicas",
                description="A line for each replica: what it is, what it costs, how full it is. KV promised includes the growth that is forecast: a replica with 40 % used and 95 % promised is full. "
                "Sort by a column to find the cheapest or the fullest.",
                key="replica",
                columns=columns,
                labels={"gpu": "GPU", "cost_tier": "Cost tier", "state": "State"},
            ),
            Timeline(
                title="States of replicas",
                description="What each replica was, over time. suspect: it may have stopped working and is asked for a token (docs/health.md). draining, reclaiming: it will go (docs/spot.md). down: no probe is answered.",
                query=Query(_states(), "{{replica}}"),
                states=STATES,
            ),
            TimeSeries(
                title="Ready replicas, by cost tier and GPU",
                description="Spot replicas that vanish show here first. Fewer than 'Replicas wanted': refusals will follow.",
                queries=[Query(gauge("replica_up", "cost_tier", "gpu"), "{{cost_tier}} {{gpu}}")],
                unit=Unit.NUMBER,
                stacked=True,
                width=12,
                height=9,
            ),
            TimeSeries(
                title="Running, by replica",
                description="Sequences that our leases hold in each engine's batch. One replica at its max_num_seqs beside idle ones: see 'Placements' and the other one's state.",
                queries=[Query(gauge("replica_running", "replica"), "{{replica}}")],
                unit=Unit.NUMBER,
            ),
            TimeSeries(
                title="Waiting in engines, by replica",
                description="Requests in the engine's own queue, as it says. More than a few for longer than a moment: somebody else uses this engine, or its capacity is declared too high.",
                queries=[Query(gauge("replica_waiting", "replica"), "{{replica}}")],
                unit=Unit.NUMBER,
            ),
            shared.replicas_wanted(),
        ],
    )


def _kv() -> Row:
    by_replica = "{{replica}}"
    return Row(
        "KV caches",
        [
            Grid(
                title="KV in use, by replica",
                description="Each line a replica, each cell a moment; red is full. As the engines say it.",
                query=Query(gauge("replica_kv_usage_ratio", "replica", fold="max"), by_replica),
                unit=Unit.RATIO,
            ),
            Heatmap(
                title="KV in use, over the fleet",
                description="How many replicas have how much of their KV cache in use. A band at the top: the fleet is full of KV, not of sequences - larger caches, or shorter contexts, would help. Readable for any number of replicas.",
                query=Query(gauge("replica_kv_usage_ratio", "replica", fold="max"), by_replica),
                unit=Unit.RATIO,
                bucket_size=0.05,
            ),
            TimeSeries(
                title="KV headroom",
                description="KV tokens that a new placement may take, after everything that runs has grown as forecast. At 0 a replica takes nothing, however empty it looks.",
                queries=[Query(gauge("replica_kv_headroom_tokens", "replica"), by_replica)],
                unit=Unit.TOKENS,
            ),
            TimeSeries(
                title="KV promised",
                description="KV blocks that our leases hold, forecast growth included. Near 100 % with half of it in use: outputs are forecast longer than they become - see prediction errors in Gateway internals.",
                queries=[Query(gauge("replica_kv_reserved_ratio", "replica"), by_replica)],
                unit=Unit.RATIO,
                at_most=1,
                steps=_BUSY,
            ),
            shared.cache_hits("replica"),
        ],
    )


def _queue() -> Row:
    return Row(
        "Queue",
        [
            shared.queue_depth(),
            shared.oldest_age(),
            shared.queue_wait(),
            TimeSeries(
                title="Queue's bound in use",
                description="Waiting requests over queue.max_requests, of the fullest gateway. At 100 % the lowest service tier makes way, then requests are refused.",
                queries=[Query(gauge("queue_utilization_ratio", "service_tier", fold="max"), "{{service_tier}}")],
                unit=Unit.RATIO,
                at_most=1,
                steps=_BUSY,
                width=6,
            ),
        ],
    )


def _placements() -> Row:
    return Row(
        "Placements and refusals",
        [
            shared.routing_reasons(),
            shared.refused_by_reason(),
            TimeSeries(
                title="Attempts that failed, by replica",
                description="Attempts on a replica that did not end well: connect_error, 5xx, timeout, stream_cut, rejected. The request went to another one where it could. One replica alone: look at its engine's log.",
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
        ],
    )


def _tokens_per_gpu() -> Expr:
    tokens = rate("tokens_total", *MACHINE, kind="!=cached_input")
    return tokens / (gauge("replica_gpus", *MACHINE) > 0)


def _states() -> Expr:
    """The number of the state that a replica is in."""
    first, *others = (
        gauge("replica_state", "replica", "state", fold="max", state=name) * number
        for number, (name, _) in STATES.items()
    )
    joined = first
    for other in others:
        joined = joined.or_(other)
    return folded("sum", joined, "replica")
