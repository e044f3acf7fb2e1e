"""One client call as the scheduler sees it, and how it ends.

Decides nothing: these are the values that pass between the front door and the scheduler.
"""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Final, NewType

from config.schema import CostTier, ModelKind

if TYPE_CHECKING:
    from batching.bill import Bill

RequestId = NewType("RequestId", str)
ReplicaId = NewType("ReplicaId", str)
NOWHERE: Final[frozenset[ReplicaId]] = frozenset()  # one for all: each empty set of its own takes 0.2 kB


class ServiceTier(IntEnum):
    """A request's class; lower goes first. OpenAI's `service_tier` names map onto these."""

    PRIORITY = 0
    DEFAULT = 1
    FLEX = 2
    BATCH = 3

    @property
    def label(self) -> str:
        """The metric label value."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What placement needs to know of a call; tokens are estimates until the engine says otherwise."""

    id: RequestId
    model: str
    arrived_s: float
    prompt_tokens: int
    max_output_tokens: int | None = None  # as the client bounded it; None: up to the context
    kind: ModelKind = ModelKind.CHAT
    tenant: str = "anonymous"
    weight: float = 1.0  # of its tenant: of twice the weight, twice as much is served while both wait
    service_tier: ServiceTier = ServiceTier.DEFAULT
    sequences: int = 1  # `n`: each holds a sequence slot and its own output blocks
    deadline_s: float | None = None  # absolute, on the loop's clock: leave the queue by then
    body_bytes: int = 0
    prefix_hashes: tuple[int, ...] = ()  # chained hashes of fixed-size chunks of the prompt
    prefix_chunk_tokens: int = 0  # estimated tokens a chunk
    cost_tiers: frozenset[CostTier] | None = None  # None: any
    avoid: frozenset[ReplicaId] = NOWHERE  # tried already
    prompt_chars: int | None = None  # what `prompt_tokens` was estimated from; None: counted, nothing to learn
    known_output_tokens: int | None = None  # a clairvoyant's, for comparison; nobody knows it in life
    may_hedge: bool = False  # whoever owns the answer can deal with a second replica that is asked for it, too
    resumes: bool = (
        False  # its client has part of the answer: never refused for the queue's or a drain's sake, and first in line
    )
    fingerprint: int = 0  # of the body: who was refused and comes back is known by it; 0: nobody is
    streaming: bool = True  # False: the first token is never seen, so its time is taken from the prediction
    bill: "Bill | None" = field(
        default=None, compare=False, repr=False
    )  # of the call: all its attempts and moves write on it


class Outcome(StrEnum):
    """The one end of a request; low cardinality, used as a metric label."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"  # never queued
    EVICTED = "evicted"  # was queued, then removed
    FAILED = "failed"


class Reason(StrEnum):
    """Why a request was rejected or evicted."""

    QUEUE_FULL = "queue_full"
    SHED = "shed"  # its place in the full queue went to a higher tier, or to a tenant that has less of it
    OVERLOAD = "overload"  # more comes than can be answered in time
    DEADLINE = "deadline"  # waited as long as it may
    UNKNOWN_MODEL = "unknown_model"  # no replica was ever known to serve it
    NO_REPLICA = "no_replica"  # known, but none can take it now or soon
    CONTEXT_LENGTH = "context_length"  # longer than any replica's context
    DRAINING = "draining"


class Rejected(Exception):
    """`submit` refuses: the request was never queued and the caller still owns it.

    Args of note: `retry_after_s` is predicted from the drain rate (None: retrying will not help within what clients wait),
    `limit` the number that was hit.
    """

    def __init__(self, reason: Reason, *, retry_after_s: float | None = None, limit: int | None = None) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.limit = limit
