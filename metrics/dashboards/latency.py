"""Latency and SLO: are answers in time, for whom not, and what takes the time."""

from typing import Final

from metrics.dashboards import shared
from metrics.dashboards.dashboard import Dashboard, Row
from metrics.dashboards.panels import Heatmap, Stat, TimeSeries
from metrics.dashboards.parts import Color, Query, Step, Unit
from metrics.dashboards.promql import Expr, buckets, events, folded, mean, observed, quantile, recorded

_LEVEL: Final = "job_model_service_tier"
_TTFT_OBJECTIVE: Final = (Step(1, Color.ORANGE),)
_ITL_OBJECTIVE: Final = (Step(0.1, Color.ORANGE),)
# Google's SRE workbook: at 14.4 a month's budget lasts two days, at 1 a month.
_BURNS: Final = (Step(1, Color.YELLOW), Step(6, Color.ORANGE), Step(14.4, Color.RED))


def dashboard() -> Dashboard:
    return Dashboard(
        uid="penstock-latency",
        title="Penstock / Latency and SLO",
        description="Are answers in time, for whom not, and what takes the time.",
        rows=[_objectives(), _first_token(), _between_tokens(), _whole(), _queue(), _second_chances()],
        since="now-3h",
    )


def _objectives() -> Row:
    return Row(
        "Objectives (from metrics/rules; docs/alerts.md says how to change them)",
        [
            _kept("ttft", "First tokens in time"),
            _kept("itl", "Tokens in time"),
            _burn("ttft", "How fast the budget of late first tokens burns"),
            _burn("itl", "How fast the budget of late tokens burns"),
        ],
    )


def _late(key: str, window: str) -> Expr:
    return recorded(f"{_LEVEL}:penstock_{key}_late:ratio_rate{window}", "model", "service_tier")


def _kept(key: str, title: str) -> Stat:
    """Of the last six hours."""
    late = folded("max", _late(key, "6h"))
    return Stat(
        title=title,
        description="Share that came within the objective in the last six hours, of the model and service tier that does worst. Below 99 % the error budget shrinks: see whose burns, beside.",
        query=Query(Expr(f"(1 - {late.text})")),
        unit=Unit.RATIO,
        decimals=2,
        steps=(Step(float("-inf"), Color.RED), Step(0.98, Color.YELLOW), Step(0.99, Color.GREEN)),
        sparkline=False,
        empty="no tokens",
        height=9,
    )


def _burn(key: str, title: str) -> TimeSeries:
    budget = recorded(f"penstock:{key}_late:budget")
    one_hour, six = (_late(key, window) / budget for window in ("1h", "6h"))
    return TimeSeries(
        title=title,
        description="Share of late ones over the share allowed (1 %). 1: a month's budget lasts a month. Above 14.4 for an hour, or 6 for six hours, somebody is called. "
        "Find the replica or the phase that takes the time below.",
        queries=[Query(one_hour, "{{model}} {{service_tier}} 1h"), Query(six, "{{model}} {{service_tier}} 6h")],
        unit=Unit.TIMES,
        steps=_BURNS,
        width=9,
        height=9,
    )


def _first_token() -> Row:
    name = "time_to_first_token_seconds"
    return Row(
        "First token",
        [
            shared.ttft_heatmap(),
            _percentiles("Time to first token", name, "From the request's arrival to its first token, the queue included. The line is the objective of short prompts; long ones are given more.",
                         _TTFT_OBJECTIVE, 12),
            _by("First token, p95 by model", name, "model", "One model alone is slow: too few replicas serve it. Click a series for its dashboard."),
            _by("First token, p95 by service tier", name, "service_tier", "priority goes first, batch last. If priority is slow, too, there is too little capacity."),
            _by("First token, p95 by replica", name, "replica", "One replica alone is slow: its prefill is - compare its GPU, its batch, its cache hits."),
        ],
    )  # fmt: skip


def _between_tokens() -> Row:
    name = "inter_token_latency_seconds"
    return Row(
        "Between tokens",
        [
            Heatmap(
                title="Between tokens, all of it",
                description="Each column is a moment, each row a bucket, the colour how many tokens. A second band above the first: prefills of long prompts push in between (scheduling.prefill_chunks), or answers moved to another replica.",
                query=Query(buckets(name)),
                unit=Unit.SECONDS,
            ),
            _percentiles("Between tokens", name, "Between two tokens of a stream, as they reach the gateway. The line is the objective.", _ITL_OBJECTIVE, 12),
            _by("Between tokens, p99 by replica", name, "replica", "A replica with full batches is slower a step; one that is slower at the same batch has a neighbour or a fault.", 0.99),
            _by("Between tokens, p99 by GPU", name, "gpu", "What each GPU type can do. Placement knows it: a slow type gets what its pace bears.", 0.99),
            _percentiles("A request's mean per token", "time_per_output_token_seconds",
                         "A request's time after its first token, over its tokens: what a reader feels. Far below 'Between tokens' p99: pauses are rare and short.", _ITL_OBJECTIVE, 8),
        ],
    )  # fmt: skip


def _whole() -> Row:
    name = "request_duration_seconds"
    return Row(
        "Whole answers",
        [
            _percentiles("From arrival to the last byte", name, "Mostly the answer's length. Compare with the lengths in One model before blaming anything.", (), 8),
            _by("Whole answers, p95 by model", name, "model", "Longer outputs or slower tokens? 'Between tokens' tells them apart."),
            TimeSeries(
                title="Whole answers, p95, streamed or not",
                description="Clients without streaming wait for all of it: their time-outs are set against this figure.",
                queries=[Query(quantile(0.95, name, "stream"), "stream={{stream}}")],
                unit=Unit.SECONDS,
            ),
        ],
    )  # fmt: skip


def _queue() -> Row:
    return Row(
        "What takes the time",
        [
            shared.queue_wait(8),
            TimeSeries(
                title="First token, where its time goes (means)",
                description="The queue's part of the mean time to first token; the rest is the engine's prefill, and the gateway's own microseconds. Mostly queue: capacity. Mostly the rest: long prompts, cold caches, slow GPUs.",
                queries=[
                    Query(mean("queue_wait_seconds", outcome="dispatched"), "in the queue"),
                    Query(mean("time_to_first_token_seconds"), "to the first token"),
                ],
                unit=Unit.SECONDS,
            ),
            TimeSeries(
                title="How requests left the queue",
                description="dispatched is well. expired: waited queue.max_wait_s. shed_capacity: made way, or found it full. no_replica: nobody serves the model now. cancelled: the client left.",
                queries=[Query(observed("queue_wait_seconds", "outcome"), "{{outcome}}")],
                unit=Unit.PER_SECOND,
                stacked=True,
            ),
        ],
    )


def _second_chances() -> Row:
    return Row(
        "Second chances",
        [
            TimeSeries(
                title="Hedges, by outcome",
                description="Requests that were overdue at their replica (docs/hedging.md). won: the second replica was first. refused_budget: scheduling.retry_budget_ratio is spent. Many: a replica is slow, or predictions are off.",
                queries=[Query(events("hedges_total", "outcome"), "{{outcome}}")],
                unit=Unit.COUNT,
                bars=True,
            ),
            shared.pauses("A stream's pause when it changes replicas"),
            TimeSeries(
                title="Predictions that were wrong, p90",
                description="What was predicted against what happened, over the greater of both; 50 % is off by a factor of two. Placement, hedges and refusals rest on these. High for a new replica, then falling.",
                queries=[Query(quantile(0.9, "prediction_error_ratio", "signal"), "{{signal}}")],
                unit=Unit.RATIO,
                at_most=1,
            ),
        ],
    )  # fmt: skip


def _percentiles(title: str, metric: str, description: str, steps: tuple[Step, ...], width: int) -> TimeSeries:
    return shared.percentiles(title, description, metric, steps=steps, width=width)


def _by(title: str, metric: str, label: str, description: str, which: float = 0.95) -> TimeSeries:
    return TimeSeries(
        title=title,
        description=description,
        queries=[Query(quantile(which, metric, label), f"{{{{{label}}}}}")],
        unit=Unit.SECONDS,
        model_links=label == "model",
    )
