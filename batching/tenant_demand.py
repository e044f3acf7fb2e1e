"""Of what several processes share, how much the tenants of one should have together: demand weighed by tenants, not by who has the longest queue.

Shares that followed requests alone would go where a greedy tenant's queue is, and shares in equal parts to whoever has one tenant where another has ten. Here every
tenant has its part of the whole by its weight, none more than it wants, and the part of one that spreads is split among the processes where it
wants. Demands are parts of `WHOLE` of all replicas of a model: the larger of sequences and KV blocks, of what runs and what waits. Pure.
"""

from collections.abc import Iterable, Mapping
from heapq import nlargest
from typing import Final, NamedTuple

from batching.fleet import Fleet
from batching.queue import WaitingQueue
from batching.shares import WHOLE, parts_for

REST: Final = ""  # all tenants that are not named, as one of their weights together

MOST_NAMED: Final = 32  # of all models together


class Demand(NamedTuple):
    """Of one tenant at one process."""

    weight: float
    parts: int


Demands = Mapping[str, Demand]


def fair_parts(own: Demands, others: Iterable[Demands]) -> int:
    """What the tenants of `own` should have here; `WHOLE` where all that everybody wants has room."""
    totals: dict[str, Demand] = {}
    for demands in (own, *others):
        for tenant, demand in demands.items():
            weight, parts = totals.get(tenant, (0.0, 0))
            weight = weight + demand.weight if tenant == REST else max(weight, demand.weight)
            totals[tenant] = Demand(weight, parts + demand.parts)
    if not any(demand.parts for demand in own.values()) or sum(demand.parts for demand in totals.values()) <= WHOLE:
        return WHOLE
    rest, weights = float(WHOLE), sum(demand.weight for demand in totals.values())
    found = 0.0
    for tenant, total in sorted(totals.items(), key=lambda entry: entry[1].parts / entry[1].weight):
        given = min(total.parts, rest * total.weight / weights)
        rest, weights = rest - given, weights - total.weight
        if tenant in own and total.parts:
            found += given * own[tenant].parts / total.parts
    return min(WHOLE, round(found))


def named(demands: Demands, most: int) -> dict[str, Demand]:
    """The `most` largest, and the others as one: what is told of them is bounded."""
    if len(demands) <= most:
        return dict(demands)
    largest = dict(nlargest(most, demands.items(), key=lambda entry: entry[1].parts))
    others = [demand for tenant, demand in demands.items() if tenant not in largest]
    rest = Demand(sum(demand.weight for demand in others), sum(demand.parts for demand in others))
    return {**largest, REST: rest}


class _Use:
    """Of one tenant."""

    __slots__ = ("sequences", "tokens", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.sequences = 0
        self.tokens = 0


def demands(fleet: Fleet, queue: WaitingQueue) -> dict[str, dict[str, Demand]]:
    """By model that somebody waits for, and by tenant. O(leases + tenants that wait)."""
    queue.settle()
    uses: dict[str, dict[str, _Use]] = {model: {} for model, lane in queue.lanes.items() if lane.size}
    if not uses:
        return {}
    for record in fleet.leases.values():
        request = record.lease.request
        if (of_model := uses.get(request.model)) is not None:
            use = of_model.setdefault(request.tenant, _Use(request.weight))
            use.sequences += request.sequences
            use.tokens += record.reserved_blocks * record.block_size
    for model, of_model in uses.items():
        for tenant, weight, tickets, work in queue.lanes[model].backlog.waiting():
            use = of_model.setdefault(tenant, _Use(weight))
            use.sequences += tickets
            use.tokens += (
                work  # about what they will hold: more of the answer than is expected, as a reservation has it
            )
    return {model: _in_parts(of_model, fleet, model) for model, of_model in uses.items()}


def _in_parts(uses: Mapping[str, _Use], fleet: Fleet, model: str) -> dict[str, Demand]:
    """Of all replicas that take work; of KV blocks where all of them tell how many they have."""
    sequences = tokens = 0
    known = True
    for live in fleet.serving(model):
        if live.offer.open:
            usable = live.usable_blocks
            sequences += live.max_num_seqs
            tokens += (usable or 0) * live.block_size
            known = known and usable is not None
    return {
        tenant: Demand(
            use.weight,
            max(parts_for(use.sequences, sequences), parts_for(use.tokens, tokens) if known else 0),
        )
        for tenant, use in uses.items()
    }
