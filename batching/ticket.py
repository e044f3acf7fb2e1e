"""A place in the queue and what becomes of it: the states, as one table.

Ownership: `Scheduler.submit` returns a Ticket and from then on owes it exactly one Decision, `Placed` or `Evicted`, unless the
caller cancels it first. A `Placed` carries a Lease, which the caller owes back exactly once, by `finish`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from batching.placement import Placement
from batching.request import Reason, ReplicaId, Request

TicketId = NewType("TicketId", int)
LeaseId = NewType("LeaseId", int)


class TicketState(StrEnum):
    """QUEUED -> PLACED | EVICTED | CANCELLED; the last three are final."""

    QUEUED = "queued"
    PLACED = "placed"
    EVICTED = "evicted"
    CANCELLED = "cancelled"


@dataclass(slots=True, eq=False)
class Ticket:
    """A queued request. Only the scheduler changes its state."""

    id: TicketId
    request: Request
    queued_s: float
    state: TicketState = TicketState.QUEUED


# What every placement makes is not `frozen`, though nobody writes to it: freezing makes making it cost three times as much.


@dataclass(slots=True)
class Lease:
    """KV blocks, sequence slots and prefill tokens held on a replica until `Scheduler.finish`."""

    id: LeaseId
    replica: ReplicaId
    request: Request


@dataclass(slots=True)
class Placed:
    """Send it: the caller now owns `lease` and must finish it however the stream ends."""

    ticket: Ticket
    placement: Placement
    lease: Lease
    hedges: Lease | None = None  # which the caller owns already: the first of the two to give a token is to win
    decided_s: float = 0.0  # when, on the clock of whoever asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """It will not be placed: queued, then removed."""

    ticket: Ticket
    reason: Reason
    retry_after_s: float | None = None


Decision = Placed | Evicted
