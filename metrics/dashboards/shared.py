"""Panels that more than one dashboard shows, so that a figure means the same on each."""

from metrics.dashboards.panels import Heatmap, TimeSeries
from metrics.dashboards.parts import Query, Step, Unit
from metrics.dashboards.promql import Expr, buckets, folded, gauge, quantile, quantile_of_events, rate, ratio

PERCENTILES = (0.5, 0.95, 0.99)
MACHINE = ("replica", "gpu", "cost_tier")


def percentiles(
    title: str,
    description: str,
    metric: str,
    *,
    steps: tuple[Step, ...] = (),
    width: int = 8,
    unit: Unit = Unit.SECONDS,
) -> TimeSeries:
    """p50, p95, p99 of a histogram over all that the variables choose."""
    queries = [Query(quantile(which, metric), f"p{which * 100:g}") for which in PERCENTILES]
    return TimeSeries(title=title, description=description, queries=queries, unit=unit, steps=steps, width=width)


def pauses(title: str = "The pause that clients saw") -> TimeSeries:
    """Few, so each of them is shown as a point."""
    return TimeSeries(
        title=title,
        description="From the last token of a lost or left engine to the next one of its successor, median and worst twentieth (docs/migration.md). Seconds: no replica had room, or the whole prompt had to be prefilled again.",
        queries=[
            Query(quantile_of_events(which, "stream_seam_seconds", "mode"), f"p{which * 100:g} {{{{mode}}}}")
            for which in (0.5, 0.95)
        ],
        unit=Unit.SECONDS,
        points=True,
    )


def ttft_heatmap(width: int = 12) -> Heatmap:
    return Heatmap(
        title="Time to first token, all of it",
        description="Each column is a moment, each row a bucket, the colour how many requests. Two bands are two kinds of requests (long prompts, a cold cache, "
        "a slow replica): choose a replica or a service tier above to see which.",
        query=Query(buckets("time_to_first_token_seconds")),
        unit=Unit.SECONDS,
        width=width,
    )


def requests_by_status(width: int = 8) -> TimeSeries:
    return TimeSeries(
        title="Requests by status",
        description="Requests that ended, by the status that their client got. 499: the client left first. 429 and 503 are refusals - see 'Refused, by reason'; 502 "
        "and 504 are engines - see the attempts in Gateway internals.",
        queries=[Query(rate("requests_total", "status"), "{{status}}")],
        unit=Unit.REQUESTS_PER_SECOND,
        stacked=True,
        width=width,
    )


def errors_by_code(width: int = 8) -> TimeSeries:
    return TimeSeries(
        title="Errors by code",
        description="Requests that ended in an error, by its code (docs/api.md lists them). engine_overloaded and queue_timeout: too little capacity. "
        "upstream_error and timeout: broken engines. Others are the clients' own.",
        queries=[Query(rate("requests_total", "error_code", error_code="!=none"), "{{error_code}}")],
        unit=Unit.REQUESTS_PER_SECOND,
        stacked=True,
        width=width,
    )


def refused_by_reason(width: int = 8) -> TimeSeries:
    return TimeSeries(
        title="Refused, by reason",
        description="Requests refused or evicted because too much came. queue_full and shed: the queue's bounds; overload and deadline: they would have been late; "
        "no_replica: nobody can take them. More replicas help, see 'Replicas wanted'; docs/overload.md says who goes first.",
        queries=[Query(rate("requests_dropped_total", "reason", "service_tier"), "{{reason}} ({{service_tier}})")],
        unit=Unit.REQUESTS_PER_SECOND,
        stacked=True,
        width=width,
    )


def tokens_by_kind(width: int = 8) -> TimeSeries:
    return TimeSeries(
        title="Tokens by kind",
        description="Tokens a second: input that engines computed, input found in their caches, output. Counted when a request ends. Much input and little cached_input "
        "with prompts that begin alike: look at the cache hit rate.",
        queries=[Query(rate("tokens_total", "kind"), "{{kind}}")],
        unit=Unit.TOKENS_PER_SECOND,
        stacked=True,
        width=width,
    )


def cache_hits(*by: str, width: int = 8) -> TimeSeries:
    """Of prompt tokens."""
    prompt = rate("tokens_total", *by, kind="=~input|cached_input")
    cached = rate("tokens_total", *by, kind="cached_input")
    return TimeSeries(
        title="Prefix-cache hit rate" + (f" by {' and '.join(by)}" if by else ""),
        description="Share of prompt tokens that engines had in their prefix cache, as they report it. Each is a token that nobody prefilled. A fall: prompts changed at their "
        "beginning, caches are too small, or replicas came and went.",
        queries=[Query(ratio(cached, prompt), " ".join(f"{{{{{label}}}}}" for label in by) or "of all prompt tokens")],
        unit=Unit.RATIO,
        at_most=1,
        width=width,
    )


def queue_depth(width: int = 6) -> TimeSeries:
    return TimeSeries(
        title="Waiting, by service tier",
        description="Requests in the gateway's queue. Engines' own queues stay short, by design: what waits, waits here. A queue that only grows needs replicas or overload refusals.",
        queries=[Query(gauge("queue_depth", "service_tier"), "{{service_tier}}")],
        unit=Unit.NUMBER,
        stacked=True,
        width=width,
    )


def oldest_age(width: int = 6) -> TimeSeries:
    return TimeSeries(
        title="Oldest request in the queue",
        description="Age of the request that waits longest, by service tier; at queue.max_wait_s (30 s unless set) it is refused. One old request amid a short queue: it fits nowhere - its context, "
        "or a model that few replicas serve.",
        queries=[Query(gauge("oldest_queued_seconds", "service_tier", fold="max"), "{{service_tier}}")],
        unit=Unit.SECONDS,
        width=width,
    )


def queue_wait(width: int = 6) -> TimeSeries:
    return TimeSeries(
        title="Time in the queue, p95",
        description="Of requests that left the queue, however they left it, by service tier. It is part of the time to first token: where this is most of it, capacity is what is missing.",
        queries=[Query(quantile(0.95, "queue_wait_seconds", "service_tier"), "{{service_tier}}")],
        unit=Unit.SECONDS,
        width=width,
    )


def routing_reasons(*by: str, width: int = 8) -> TimeSeries:
    return TimeSeries(
        title="Placements, by what decided",
        description="prefix_hit: a replica had the prompt's beginning. cost: the cheapest that is in time. kv_headroom: the one with most room. fallback: none would be in time, the soonest was taken - "
        "much of it means too little capacity. `penstock explain` shows one placement's formula.",
        queries=[
            Query(
                rate("routing_decisions_total", "reason", *by),
                " ".join(["{{reason}}", *(f"{{{{{label}}}}}" for label in by)]),
            )
        ],
        unit=Unit.PER_SECOND,
        stacked=True,
        width=width,
    )


def replicas_wanted(width: int = 8) -> TimeSeries:
    return TimeSeries(
        title="Replicas wanted and ready",
        description="What runs and waits needs so many replicas to be in time (penstock_desired_replicas: what an autoscaler reads), and so many are ready. Wanted above ready for minutes: add some; "
        "far below: some could go.",
        queries=[
            Query(gauge("desired_replicas", "model", "cost_tier"), "{{model}} {{cost_tier}} wanted"),
            Query(gauge("ready_replicas", "model", "cost_tier"), "{{model}} {{cost_tier}} ready"),
        ],
        unit=Unit.NUMBER,
        width=width,
    )


def usd_per_hour(*by: str) -> Expr:
    """The price of replicas that are up."""
    price, up = gauge("replica_price_usd_per_hour", *MACHINE), gauge("replica_up", *MACHINE)
    return folded("sum", price * up, *by)


def usd_on_demand_per_hour(*by: str) -> Expr:
    """What the same machines cost on demand; their own price where nobody has said."""
    price = gauge("replica_on_demand_usd_per_hour", *MACHINE).or_(gauge("replica_price_usd_per_hour", *MACHINE))
    return folded("sum", price * gauge("replica_up", *MACHINE), *by)


def usd_per_million_tokens(*by: str) -> Expr:
    """Money of requests over all their tokens, cached ones included."""
    money, tokens = rate("cost_units_total", *by), rate("tokens_total", *by)
    return money / (tokens > 0) * 1e6
