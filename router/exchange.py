"""What is known of one request while it lives: its parsed form, where it was placed, what came back, how it ended.

A record, not a decider: the dispatcher writes it, the report turns it into metrics and one log line.
"""

import asyncio
from dataclasses import dataclass, field

from batching.request import Outcome, Request
from batching.ticket import Placed
from metrics.handles import StreamHandles
from metrics.timeline import Timeline
from router.client import JSON_HEADERS, SSE_HEADERS, Client, Headers
from router.inbound import Inbound
from router.openai.errors import ApiError
from router.openai.request import CallSpec
from router.openai.usage import Usage

ENDPOINTS = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/embeddings": "embeddings"}


@dataclass(slots=True, eq=False)
class Exchange:
    """One request's life so far. Times are the loop's clock, in seconds; None: not yet, or never."""

    inbound: Inbound
    client: Client
    spec: CallSpec | None = None
    request: Request | None = None
    task: "asyncio.Task[object] | None" = None
    phase: str = "queued"  # queued | dispatched | streaming
    labels: tuple[str, str] | None = None  # (model, service tier), of its metrics; None: not read yet
    meters: StreamHandles | None = None  # of the replica it was placed on
    placed: Placed | None = None
    attempts: int = 0
    queue_s: float = 0.0  # all its waits in the queue, of repeated attempts too
    timeline: Timeline = field(init=False)  # tokens are counted from events; usage corrects them
    usage: Usage | None = None
    outcome: Outcome = Outcome.COMPLETED
    status: int = 0
    error: ApiError | None = None
    aborted: ApiError | None = None  # the gateway itself ends it (drain deadline)

    def __post_init__(self) -> None:
        self.timeline = Timeline(self.inbound.received_s)

    @property
    def endpoint(self) -> str:
        return ENDPOINTS[self.inbound.path]

    def decision_headers(self) -> list[tuple[bytes, bytes]]:
        """Where it went and how long it waited, for whoever debugs a client."""
        if self.placed is None:
            return []
        placement = self.placed.placement
        return [
            (b"x-penstock-replica", placement.replica.encode("ascii")),
            (b"x-penstock-cost-tier", placement.cost_tier.encode("ascii")),
            (b"x-penstock-queue-ms", b"%d" % round(self.queue_s * 1e3)),
            (b"x-penstock-attempts", b"%d" % self.attempts),
        ]

    def stream_headers(self) -> Headers:
        return [*SSE_HEADERS, *self.decision_headers()]

    def document_headers(self, now: float) -> Headers:
        total_ms = round((now - self.inbound.received_s) * 1e3)
        headers = [*JSON_HEADERS, *self.decision_headers(), (b"openai-processing-ms", b"%d" % total_ms)]
        if (ttft_s := self.timeline.ttft_s) is not None:
            headers.append((b"x-penstock-ttft-ms", b"%d" % round(ttft_s * 1e3)))
        return headers
