"""What a scheduler has of each replica, and what those who wait would need: its claims in the book of shares."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from batching.fleet import Fleet
from batching.lane import Lane
from batching.live_replica import LiveReplica
from batching.placement import Need, blocks_needed, could_ever_hold
from batching.queue import WaitingQueue
from batching.request import ReplicaId
from batching.shares import WHOLE, Claim, Running, parts_for

_COUNTED: Final = 64  # of those who wait, for what all of them would like: a claim is a wish, not a budget


class _Demand(NamedTuple):
    """Of one model: the head of its lane, and all who wait."""

    head: Need | None
    sequences: int
    tokens: int
    parts: int  # at most so much is wanted


def claims(
    fleet: Fleet, queue: WaitingQueue, fair_parts: Callable[[str], int] = lambda _model: WHOLE
) -> dict[ReplicaId, Claim]:
    """Of every replica, those that are on their way out included. O(replicas + some of those who wait).

    `fair_parts`: of a model's replicas, what those who wait here have a right to beside the tenants of others; no more is wanted.
    """
    queue.settle()
    demands = {model: _demand(lane, queue, fair_parts(model)) for model, lane in queue.lanes.items() if lane.size}
    held: dict[ReplicaId, Need] = {}
    for waiting in islice(queue, _COUNTED):
        if waiting.held and waiting.held_for is not None:
            held.setdefault(waiting.held_for, waiting.need)
    return {live.profile.id: _claim(live, demands, held, queue) for live in fleet}


def running_on(live: LiveReplica) -> Running:
    """What this scheduler has there."""
    ledger = live.ledger
    return Running(ledger.sequences, ledger.held_blocks, round(ledger.prefill_s, 4))


def blocks_in_use(live: LiveReplica) -> int:
    """KV blocks that its leases need at least: the forecast of their sum where there is one, else each one's own."""
    reserved, free = live.ledger.reserved_blocks, live.offer.free_tokens()
    usable = live.usable_blocks
    if free is None or usable is None:
        return reserved
    peak_tokens = live.share.of(usable) * live.block_size - min(free)
    return min(reserved, max(live.ledger.held_blocks, int(-(-peak_tokens // live.block_size))))


def _demand(lane: Lane, queue: WaitingQueue, parts: int) -> _Demand:
    some = list(islice((w for w in queue if w.ticket.request.model == lane.model), _COUNTED))
    head = lane.peek()  # whoever has aged past it is asked for soon enough
    first = None if head is None else head[1]
    if first is not None and first.held:  # it wants something of one replica only
        first = next((waiting for waiting in some if not waiting.held), None)
    times = max(1, lane.size // max(1, len(some)))
    return _Demand(
        None if first is None else first.need,
        times * sum(waiting.ticket.request.sequences for waiting in some),
        times * sum(waiting.need.request.prompt_tokens + waiting.need.forecast_tokens for waiting in some),
        parts,
    )


def _claim(live: LiveReplica, demands: dict[str, _Demand], held: dict[ReplicaId, Need], queue: WaitingQueue) -> Claim:
    sequences, limit = live.ledger.sequences, live.max_num_seqs
    blocks, usable = blocks_in_use(live), live.usable_blocks
    enforced = live.share.parts

    def parts(more_sequences: int, more_blocks: int) -> int:
        found = parts_for(sequences + more_sequences, limit)
        return found if usable is None else max(found, parts_for(blocks + more_blocks, usable))

    needed = wanted = 0
    in_use = parts(0, 0) if live.ledger.leases else 0  # after a lapse more than it may place
    if live.offer.open:
        wishes = [demands[model] for model in live.profile.models if model in demands]
        for need in _heads(live, wishes, held, queue):
            needed = max(needed, parts(need.request.sequences, blocks_needed(need, live.offer)))
        if needed:
            tokens = sum(wish.tokens for wish in wishes)
            wanted = max(needed, parts(sum(wish.sequences for wish in wishes), tokens // live.block_size))
            wanted = min(wanted, sum(wish.parts for wish in wishes))
    return Claim(enforced, in_use, needed, min(wanted, WHOLE), running_on(live))


def _heads(
    live: LiveReplica, wishes: Iterable[_Demand], held: dict[ReplicaId, Need], queue: WaitingQueue
) -> Iterator[Need]:
    """Who goes first for its models, who waits for what it holds, and whom it is kept for; those that it could ever take."""
    kept = [
        waiting.need
        for model in live.profile.models
        if (lane := queue.lanes.get(model)) is not None
        for waiting in lane.protected
        if waiting.protected_at == live.profile.id
    ]
    if live.profile.id in held:
        kept.append(held[live.profile.id])
    for need in [*kept, *(wish.head for wish in wishes if wish.head is not None)]:
        if could_ever_hold(need.request, live.offer, min_output_tokens=need.min_output_tokens):
            yield need
