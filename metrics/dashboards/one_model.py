"""One model: who asks it for what, whether it answers in time, where, and for how much."""

from metrics.dashboards import shared
from metrics.dashboards.dashboard import Dashboard, Row
from metrics.dashboards.panels import Heatmap, Stat, TimeSeries
from metrics.dashboards.parts import Color, Query, Step, Unit
from metrics.dashboards.promql import buckets, events, gauge, quantile, rate, ratio


def dashboard() -> Dashboard:
    return Dashboard(
        uid="penstock-model",
        title="Penstock / One model",
        description="One model: what is asked of it, whether it answers in time, where, and for how much.",
        rows=[_now(), _traffic(), _latency(), _shapes(), _places(), _ends()],
        one_model=True,
    )


def _now() -> Row:
    failed = ratio(rate("requests_total", status="=~5.."), rate("requests_total", status="!=499"))
    return Row(
        "Now",
        [
            Stat(title="Requests", description="Requests for this model that end, a second.", query=Query(rate("requests_total")), unit=Unit.REQUESTS_PER_SECOND, width=4),
            Stat(title="Failed", description="Share that ended with a status of 500 or more.", query=Query(failed), unit=Unit.RATIO, decimals=1,
                 steps=(Step(0.01, Color.YELLOW), Step(0.05, Color.RED)), width=4, empty="no requests"),
            Stat(title="Replicas ready", description="Replicas that are ready and serve it. 0: its requests wait, then are refused.", query=Query(gauge("ready_replicas")), unit=Unit.COUNT,
                 steps=(Step(float("-inf"), Color.RED), Step(1, Color.GREEN)), width=4),
            Stat(title="Overloaded", description="1: more comes than can be answered in time, and who would be late is refused (docs/overload.md).",
                 query=Query(gauge("overloaded", fold="max")), unit=Unit.COUNT, steps=(Step(1, Color.RED),), width=4),
            Stat(title="First token, p95", description="19 of 20 requests had their first token within this time, the queue included. High: see Latency below, by replica.", query=Query(quantile(0.95, "time_to_first_token_seconds")), unit=Unit.SECONDS,
                 steps=(Step(1, Color.YELLOW), Step(2.5, Color.RED)), width=4, empty="no tokens"),
            Stat(title="Dollars a million tokens", description="Machine time that its requests used, over all their tokens.",
                 query=Query(shared.usd_per_million_tokens()), unit=Unit.USD, decimals=3, width=4, empty="no tokens"),
        ],
    )  # fmt: skip


def _traffic() -> Row:
    return Row(
        "Traffic",
        [
            shared.requests_by_status(),
            shared.errors_by_code(),
            TimeSeries(
                title="In flight, by phase",
                description="queued here, dispatched (prefilled by an engine), streaming.",
                queries=[Query(gauge("requests_in_flight", "phase"), "{{phase}}")],
                unit=Unit.NUMBER,
                stacked=True,
            ),
            shared.tokens_by_kind(),
            shared.cache_hits(),
            shared.refused_by_reason(),
            shared.queue_depth(8),
            shared.oldest_age(8),
            shared.queue_wait(8),
        ],
    )


def _latency() -> Row:
    return Row(
        "Latency",
        [
            shared.percentiles(
                "Time to first token",
                "From arrival to the first token, the queue included. Compare with prompt lengths below.",
                "time_to_first_token_seconds",
            ),
            shared.percentiles("Between tokens", "Between two tokens of a stream.", "inter_token_latency_seconds"),
            shared.percentiles(
                "Whole answers",
                "From arrival to the last byte. Mostly the answer's length, see below.",
                "request_duration_seconds",
            ),
            shared.ttft_heatmap(),
            TimeSeries(
                title="First token, p95 by replica",
                description="Which replica is slow for this model.",
                queries=[
                    Query(quantile(0.95, "time_to_first_token_seconds", "replica", "gpu"), "{{replica}} ({{gpu}})")
                ],
                unit=Unit.SECONDS,
                width=12,
                height=9,
            ),
        ],
    )


def _shapes() -> Row:
    return Row(
        "What is asked and answered",
        [
            Heatmap(
                title="Prompt lengths",
                description="Prompts by their tokens, as the engines counted them. A new band of long ones explains slower first tokens and fuller KV caches.",
                query=Query(buckets("prompt_length_tokens")),
                unit=Unit.TOKENS,
            ),
            Heatmap(
                title="Output lengths",
                description="Answers by their tokens. KV is promised by a forecast of these: a sudden change makes predictions worse for a while.",
                query=Query(buckets("output_length_tokens")),
                unit=Unit.TOKENS,
            ),
            TimeSeries(
                title="Finish reasons",
                description="Why answers ended. Much `length`: clients' max_tokens cuts answers, or they ask for no limit and meet the context's. `tool_calls`: agents at work.",
                queries=[Query(rate("finish_reasons_total", "reason"), "{{reason}}")],
                unit=Unit.PER_SECOND,
                stacked=True,
            ),
            TimeSeries(
                title="Clients that left early",
                description="By the phase in which they left. Many in `queued`: their time-outs are shorter than our queue. Many in `streaming`: people stop reading, or proxies cut.",
                queries=[Query(events("client_disconnects_total", "phase"), "{{phase}}")],
                unit=Unit.COUNT,
                bars=True,
            ),
            TimeSeries(
                title="Requests that clients send again",
                description="Requests that their client says it sends again (x-stainless-retry-count, of OpenAI's SDKs). They follow errors, refusals and time-outs: see 'Errors by code'.",
                queries=[Query(events("client_retries_total"), "sent again")],
                unit=Unit.COUNT,
                bars=True,
            ),
        ],
    )


def _places() -> Row:
    return Row(
        "Where it runs",
        [
            shared.routing_reasons("replica", width=12),
            TimeSeries(
                title="Output, by replica",
                description="Tokens that each replica gave for this model, a second.",
                queries=[
                    Query(rate("tokens_total", "replica", "gpu", kind="=~output|reasoning"), "{{replica}} ({{gpu}})")
                ],
                unit=Unit.TOKENS_PER_SECOND,
                stacked=True,
                width=12,
            ),
            shared.replicas_wanted(),
            TimeSeries(
                title="Dollars an hour, by replica",
                description="Machine time that this model's requests used.",
                queries=[Query(rate("cost_units_total", "replica", "cost_tier") * 3600, "{{replica}} ({{cost_tier}})")],
                unit=Unit.USD,
                stacked=True,
            ),
            TimeSeries(
                title="Dollars a million tokens, by replica",
                description="The same token costs more on a dear machine, and on an empty one.",
                queries=[Query(shared.usd_per_million_tokens("replica", "cost_tier"), "{{replica}} ({{cost_tier}})")],
                unit=Unit.USD,
            ),
        ],
    )


def _ends() -> Row:
    return Row(
        "When engines fail it",
        [
            TimeSeries(
                title="Answers whose engine broke off",
                description="resumed: another replica went on; errored: nobody could, and the client was told (docs/migration.md).",
                queries=[Query(events("stream_interruptions_total", "action", "mode"), "{{action}} {{mode}}")],
                unit=Unit.COUNT,
                bars=True,
            ),
            TimeSeries(
                title="Hedges, by outcome",
                description="Requests that were overdue at their replica and were sent to a second one, or were not (docs/hedging.md).",
                queries=[Query(events("hedges_total", "outcome"), "{{outcome}}")],
                unit=Unit.COUNT,
                bars=True,
            ),
            TimeSeries(
                title="Not repeated",
                description="Requests that got their engine's error because the retry budget was spent: the fleet is too broken to be asked twice.",
                queries=[Query(events("retries_refused_total", "model"), "{{model}}")],
                unit=Unit.COUNT,
                bars=True,
            ),
        ],
    )
