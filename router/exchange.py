"""What is known of one request while it lives: its parsed form, where it was placed, what came back, how it ended.

A record, not a decider: the dispatcher writes it, the report turns it into metrics and one log line.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from batching.bill import Bill
from batching.request import NOWHERE, Outcome, ReplicaId, Request
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

ENDPOINTS: Final = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/embeddings": "embeddings"}


@dataclass(init=False, slots=True, eq=False)
class Move:
    """How an answer goes from one replica to another. Tokens and seconds on the loop's clock."""

    count: int  # moves so far
    mode: Mode  # of the attempt under way
    tokens_before: int  # said by engines before the one that speaks now
    heard_before: int  # the same, as the timeline counts
    since_s: float | None  # when the last engine was let go; None: its successor has spoken
    until_s: float | None  # so long another place is looked for; None: it has one that speaks
    avoid: frozenset[ReplicaId]  # that brought nothing since a token came last
    cut: asyncio.Timeout | None  # ends the attempt under way; None: there is none, or nothing to be saved
    silence: KeepAlive | None  # knows when something came last
    next: Placed | None  # where it is to go when it has been cut

    def __init__(self) -> None:
        self.count = 0
        self.mode = Mode.NONE
        self.tokens_before = 0
        self.heard_before = 0
        self.since_s = None
        self.until_s = None
        self.avoid = NOWHERE
        self.cut = None
        self.silence = None
        self.next = None


@dataclass(init=False, slots=True, eq=False)
class Exchange:
    """One request's life so far. Times are the loop's clock, in seconds; None: not yet, or never."""

    inbound: Inbound
    client: Client
    spec: CallSpec | None
    request: Request | None
    task: "asyncio.Task[object] | None"
    phase: str  # queued | dispatched | streaming
    labels: tuple[str, str] | None  # (model, service tier), of its metrics; None: not read yet
    bill: Bill | None  # on which every replica that works for it writes what it cost; None: not read yet
    meters: StreamHandles | None  # of the replica it was placed on
    placed: Placed | None
    attempts: int
    failures: int  # of attempts in a row that brought nothing
    journal: Journal | None  # of a stream
    chunks: ChunkFilter | None  # once the client has seen something of a stream: of all that is to come
    move: Move
    queue_s: float  # all its waits in the queue, of repeated attempts too
    timeline: Timeline  # tokens are counted as they come; usage corrects them
    usage: Usage | None  # of the whole answer
    engine_usage: Usage | None  # of what the last engine did of it
    outcome: Outcome
    status: int
    error: ApiError | None
    hold: Hold | None  # of its tenant's limits
    limit_headers: Headers  # how those stood when it came
    aborted: ApiError | None  # the gateway itself ends it (drain deadline)
    document: Document | None  # an answer that came whole
    trace: Trace | None  # None: traces are off

    def __init__(self, inbound: Inbound, client: Client, task: "asyncio.Task[object] | None" = None) -> None:
        self.inbound = inbound
        self.client = client
        self.spec = None
        self.request = None
        self.task = task
        self.phase = "queued"
        self.labels = None
        self.bill = None
        self.meters = None
        self.placed = None
        self.attempts = 0
        self.failures = 0
        self.journal = None
        self.chunks = None
        self.move = Move()
        self.timeline = Timeline(inbound.received_s)
        self.queue_s = 0.0
        self.usage = None
        self.engine_usage = None
        self.outcome = Outcome.COMPLETED
        self.status = 0
        self.error = None
        self.hold = None
        self.limit_headers = ()
        self.aborted = None
        self.document = None
        self.trace = None

    @property
    def endpoint(self) -> str:
        return ENDPOINTS[self.inbound.path]

    @property
    def collected(self) -> bool:
        """Whether a document is as good as the stream that was asked for: some engines know no streams. Its client sees no first token."""
        return self.spec is not None and self.spec.collected

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
