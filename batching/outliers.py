"""Whether a replica may be taken out of service because it is doubted: never the last of a model, nor more than half of them (pure).

A doubt may be wrong, and shared by all: a network that stutters makes every replica look frozen. A dead one goes without asking here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from batching.replica import Lifecycle
from batching.request import ReplicaId


@dataclass(frozen=True, slots=True)
class Standing:
    """One replica, as far as this matters."""

    models: Collection[str]
    lifecycle: Lifecycle
    doubted: bool  # out of service, or about to be, for a doubt


def may_go(replica: ReplicaId, fleet: Mapping[ReplicaId, Standing]) -> bool:
    """Each of its models keeps another ready replica, and at least half of its replicas undoubted."""
    others = [standing for name, standing in fleet.items() if name != replica]
    for model in fleet[replica].models:
        serving = [standing for standing in others if model in standing.models]
        if not any(standing.lifecycle is Lifecycle.READY for standing in serving):
            return False
        doubted = 1 + sum(standing.doubted for standing in serving)
        if 2 * doubted > 1 + len(serving):
            return False
    return True


def needed(replica: ReplicaId, fleet: Mapping[ReplicaId, Standing]) -> bool:
    """Whether one of its models has no other ready replica now: then even a doubtful one is better than none."""
    return any(
        not any(
            other.lifecycle is Lifecycle.READY
            for name, other in fleet.items()
            if name != replica and model in other.models
        )
        for model in fleet[replica].models
    )
