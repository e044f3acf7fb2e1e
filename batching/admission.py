"""Whether any replica could ever take a request: known model, sizes that some replica could hold.

Refuses at once what waiting cannot help. Does not place, order or predict; what comes of too many is `batching.overload`'s.
"""

from collections.abc import Sequence
from typing import Final

from batching.blocks import UNBOUNDED
from batching.desired import Desired
from batching.fleet import Fleet
from batching.live_replica import LiveReplica
from batching.placement import could_ever_hold
from batching.replica import HOPEFUL
from batching.request import Reason, Rejected, Request
from config.schema import ModelKind

RECOVERY_S: Final = (
    5.0  # a replica that is down is probed every second and warms up for some; asking again sooner is noise
)
_EMBEDDING: Final = (
    ModelKind.EMBEDDING
)  # beside the prompt one token must fit, of these none; a member costs a call to look up
_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0  # Retry-After is whole seconds; a prediction beyond a minute is a guess


def refuse_unservable(request: Request, fleet: Fleet, desired: Desired, now: float) -> None:
    """Raises `Rejected` where no replica could ever, or none can soon, take it; `desired` is told of the latter."""
    if request.model not in fleet.known_models:
        raise Rejected(Reason.UNKNOWN_MODEL)
    minimum = 0 if request.kind is _EMBEDDING else 1
    for offer in fleet.each_offer(request.model):  # the first that could is enough
        if offer.open and could_ever_hold(request, offer, min_output_tokens=minimum):
            return
    serving = fleet.serving(request.model)
    if not serving:
        desired.missed(request.model, now)
        raise Rejected(Reason.NO_REPLICA)
    allowed = [
        live
        for live in serving
        if (request.cost_tiers is None or live.profile.cost_tier in request.cost_tiers)
        and live.profile.id not in request.avoid
    ]
    hopeful = [live for live in allowed if live.lifecycle in HOPEFUL]
    if not hopeful:
        desired.missed(request.model, now)
        raise Rejected(Reason.NO_REPLICA, retry_after_s=RECOVERY_S)
    _refuse_long(request, hopeful, minimum)


def _refuse_long(request: Request, serving: Sequence[LiveReplica], min_output_tokens: int) -> None:
    limit = max(live.offer.longest_tokens for live in serving)
    if limit < UNBOUNDED and request.prompt_tokens + min_output_tokens > limit:
        raise Rejected(Reason.CONTEXT_LENGTH, limit=limit)


def retry_after_s(predicted_wait_s: float | None, *, unknown_s: float) -> float:
    """A prediction as something to tell a client."""
    wait_s = unknown_s if predicted_wait_s is None else predicted_wait_s
    return min(max(wait_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
