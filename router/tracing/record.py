"""What is noted of one request for its trace while it runs: ids, waits, attempts, and when each began, spoke and ended.

Kept on its `Exchange`, where traces are on; appends a few small objects a request and nothing a token. Decides nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batching.ticket import Lease, LeaseId, Placed
from router.openai.journal import Mode
from router.tracing.content import KeptText
from router.tracing.context import TRACEPARENT, TRACESTATE, traceparent


@dataclass(slots=True, eq=False)
class Wait:
    """For a place in the queue: until there was one, or it was refused. Seconds on the loop's clock."""

    since_s: float
    until_s: float
    outcome: str  # placed, or why not


@dataclass(slots=True, eq=False)
class Try:
    """One send to one replica. Seconds on the loop's clock; None: not yet, or never."""

    span_id: int
    lease: Lease
    began_s: float
    mode: Mode  # how it goes on with what others have said; NONE: it begins
    spoke_s: float | None = None
    gap_s: float | None = None  # that its client waited for the next token, where others had spoken before
    ended_s: float | None = None
    outcome: str = "cancelled"  # until it is known


@dataclass(slots=True, eq=False)
class Trace:
    """One request's. `sampled`: somebody will see it; else only its ids travel on."""

    trace_id: int
    root_id: int
    parent_id: int | None  # the client's span
    sampled: bool
    state: str  # the client's `tracestate`
    new_id: Callable[[], int]
    kept: KeptText | None = None  # words, where they are asked for
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the body, parsed
    depth: int = 0  # requests in the queue as this one came
    waits: list[Wait] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)
    placements: dict[LeaseId, tuple[Placed, float]] = field(default_factory=dict)  # and when its request heard of it

    @property
    def trace_hex(self) -> str:
        return f"{self.trace_id:032x}"

    @property
    def root_hex(self) -> str:
        return f"{self.root_id:016x}"

    def placed(self, placed: Placed, now: float) -> None:
        """Also of a second attempt beside the first, which has waited for nothing."""
        self.placements[placed.lease.id] = placed, now
        if placed.hedges is None:
            until_s = min(now, placed.decided_s or now)
            self.waits.append(Wait(placed.ticket.queued_s, until_s, "placed"))

    def begun(self, lease: Lease, now: float, mode: Mode) -> dict[str, str]:
        """An engine is asked; the headers by which its own spans find their place."""
        attempt = Try(self.new_id(), lease, now, mode)
        self.tries.append(attempt)
        headers = {TRACEPARENT: traceparent(self.trace_id, attempt.span_id, sampled=self.sampled)}
        if self.state:
            headers[TRACESTATE] = self.state
        return headers

    def spoke(self, lease: Lease, now: float, since_s: float | None) -> None:
        """Its first token is here; `since_s`: when the last one of another engine was."""
        attempt = self._of(lease)
        if attempt is not None:
            attempt.spoke_s = now
            attempt.gap_s = None if since_s is None else now - since_s

    def ended(self, lease: Lease, now: float, outcome: str) -> None:
        """`outcome`: as the metric's label."""
        attempt = self._of(lease)
        if attempt is not None:
            attempt.ended_s, attempt.outcome = now, outcome

    def _of(self, lease: Lease) -> Try | None:
        return next((attempt for attempt in reversed(self.tries) if attempt.lease is lease), None)
