"""The instruments of requests: how they went, what waits, what tokens and seconds they took. Declared here, created by `metrics.catalog`."""

from dataclasses import dataclass
from typing import Annotated

from metrics.buckets import (
    DURATION_BUCKETS_S,
    ITL_BUCKETS_S,
    LENGTH_BUCKETS_TOKENS,
    OVERHEAD_BUCKETS_S,
    QUEUE_WAIT_BUCKETS_S,
    TPOT_BUCKETS_S,
    TTFT_BUCKETS_S,
)
from metrics.count import Counter, Gauge
from metrics.histogram import Histogram
from metrics.spec import CLASS, MACHINE, STREAM, Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """By request, model and service tier."""

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
