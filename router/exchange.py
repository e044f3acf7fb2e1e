"""What is known of one request while it lives: its parsed form, where it was placed, what came back, how it ended.

A record, not a decider: the dispatcher writes it, the report turns it into metrics and one log line.
"""

import asyncio
from dataclasses import dataclass, field

from batching.bill import Bill
from batching.request import Outcome, ReplicaId, Request
from batching.ticket import Placed
from metrics.handles import StreamHandles
from metrics.timeline import Timeline
from router.client import JSON_HEADERS, SSE_HEADERS, Client, Headers
from router.inbound import Inbound
from router.openai.call_spec import CallSpec
from router.openai.chunks import ChunkFilter, Document
from router.openai.errors import ApiError
from router.openai.journal import Journal, Mode
from router.openai.usage import Usage
from router.relay import KeepAlive
from router.tenants.account import Hold
from router.tracing.record import Trace

ENDPOINTS = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/embeddings": "embeddings"}


@dataclass(slots=True, eq=False)
class Move:
    """How an answer goes from one replica to another. Tokens and seconds on the loop's clock."""

    count: int = 0  # moves so far
    mode: Mode = Mode.NONE  # of the attempt under way
    tokens_before: int = 0  # said by engines before the one that speaks now
    heard_before: int = 0  # the same, as the timeline counts
    since_s: float | None = None  # when the last engine was let go; None: its successor has spoken
    until_s: float | None = None  # so long another place is looked for; None: it has one that speaks
    avoid: frozenset[ReplicaId] = frozenset()  # that brought nothing since a token came last
    cut: asyncio.Timeout | None = None  # ends the attempt under way; None: there is none, or nothing to be saved
    silence: KeepAlive | None = None  # knows when something came last
    next: Placed | None = None  # where it is to go when it has been cut


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
    bill: Bill | None = None  # on which every replica that works for it writes what it cost; None: not read yet
    meters: StreamHandles | None = None  # of the replica it was placed on
    placed: Placed | None = None
    attempts: int = 0
    failures: int = 0  # of attempts in a row that brought nothing
    journal: Journal | None = None  # of a stream
    chunks: ChunkFilter | None = None  # once the client has seen something of a stream: of all that is to come
    move: Move = field(default_factory=Move)
    queue_s: float = 0.0  # all its waits in the queue, of repeated attempts too
    timeline: Timeline = field(init=False)  # tokens are counted as they come; usage corrects them
    usage: Usage | None = None  # of the whole answer
    engine_usage: Usage | None = None  # of what the last engine did of it
    outcome: Outcome = Outcome.COMPLETED
    status: int = 0
    error: ApiError | None = None
    hold: Hold | None = None  # of its tenant's limits
    limit_headers: Headers = ()  # how those stood when it came
    aborted: ApiError | None = None  # the gateway itself ends it (drain deadline)
    document: Document | None = None  # an answer that came whole
    trace: Trace | None = None  # None: traces are off

    def __post_init__(self) -> None:
        self.timeline = Timeline(self.inbound.received_s)

    @property
    def endpoint(self) -> str:
        return ENDPOINTS[self.inbound.path]

    @property
    def usd(self) -> float | None:
        """Of machines' time so far, all attempts and moves; whole once its leases are given back (docs/cost.md). None: not read yet."""
        return None if self.bill is None else self.bill.usd

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Of each choice that has one, in the engine's words."""
        told = self.chunks or self.document
        return () if told is None else told.finish_reasons

    @property
    def answer_model(self) -> str | None:
        """As the engine calls it."""
        told = self.chunks or self.document
        return None if told is None else told.model

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
            *self.limit_headers,
        ]

    def stream_headers(self) -> Headers:
        return [*SSE_HEADERS, *self.decision_headers()]

    def document_headers(self, now: float) -> Headers:
        total_ms = round((now - self.inbound.received_s) * 1e3)
        headers = [*JSON_HEADERS, *self.decision_headers(), (b"openai-processing-ms", b"%d" % total_ms)]
        if (ttft_s := self.timeline.ttft_s) is not None:
            headers.append((b"x-penstock-ttft-ms", b"%d" % round(ttft_s * 1e3)))
        return headers
