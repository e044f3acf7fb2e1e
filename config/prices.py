"""What a fleet would cost if every machine were paid on demand: the measure of what reserved and spot machines save (docs/cost.md). Pure."""

from collections.abc import Iterable, Mapping

from config.schema import CostTier, ReplicaConfig


def on_demand_usd_per_hour(replicas: Iterable[ReplicaConfig]) -> Mapping[str, float | None]:
    """By replica: as declared; else its own price, if it is on demand and has one; else that of its like; None: nobody has said.

    Its like is a replica with as many of the same GPUs whose price on demand is known; of several the dearest, so that no saving is
    made of a bargain. A price of 0 is none.
    """
    listed = list(replicas)
    own = {replica.name: _own(replica) for replica in listed}
    known: dict[tuple[str, int], float] = {}
    for replica in listed:
        usd, kind = own[replica.name], (replica.gpu.type, replica.gpu.count)
        if usd is not None and replica.gpu.type != "unknown":
            known[kind] = max(usd, known.get(kind, 0.0))
    return {
        replica.name: usd
        if (usd := own[replica.name]) is not None
        else known.get((replica.gpu.type, replica.gpu.count))
        for replica in listed
    }


def fleet_usd_per_hour(replicas: Iterable[ReplicaConfig]) -> tuple[float, float | None]:
    """What all machines cost an hour, and what they would on demand; None: of one nobody has said."""
    listed = list(replicas)
    on_demand = list(on_demand_usd_per_hour(listed).values())
    known = [usd for usd in on_demand if usd is not None]
    return sum(r.cost.usd_per_hour for r in listed), sum(known) if len(known) == len(listed) else None


def _own(replica: ReplicaConfig) -> float | None:
    cost = replica.cost
    if cost.on_demand_usd_per_hour is not None:
        return cost.on_demand_usd_per_hour
    return cost.usd_per_hour if cost.tier is CostTier.ON_DEMAND and cost.usd_per_hour else None
