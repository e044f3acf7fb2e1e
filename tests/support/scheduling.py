"""Small valid values for tests of the scheduler: a request, a replica and a scheduler, each with what a test varies."""

from typing import Any

from batching.replica import Lifecycle, ReplicaProfile
from batching.request import ReplicaId, Request, RequestId
from batching.scheduler import Scheduler
from batching.ticket import Decision, Evicted, Lease, Placed
from config.schema import ModelKind, Queue, Scheduling

MODEL = "m"


def request(name: str = "r", **changes: Any) -> Request:
    """One sequence of 100 prompt and at most 60 output tokens: 10 blocks of 16."""
    values: dict[str, Any] = {
        "id": RequestId(name),
        "model": MODEL,
        "arrived_s": 0.0,
        "prompt_tokens": 100,
        "max_output_tokens": 60,
    }
    return Request(**{**values, **changes})


def profile(name: str = "a", **changes: Any) -> ReplicaProfile:
    """An H100 of 1000 blocks, 8 sequences and 2048 tokens a step."""
    values: dict[str, Any] = {
        "id": ReplicaId(name),
        "models": {MODEL: ModelKind.CHAT},
        "gpu": "H100-80G",
        "usd_per_hour": 3.6,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 2048,
        "kv_blocks": 1000,
        "block_size": 16,
        "max_model_len": 8192,
    }
    return ReplicaProfile(**{**values, **changes})


def unknown_profile(name: str = "a", **changes: Any) -> ReplicaProfile:
    """An engine that has told nothing of itself."""
    return ReplicaProfile(**{"id": ReplicaId(name), "models": {MODEL: ModelKind.CHAT}, **changes})


def scheduler(
    *replicas: ReplicaProfile, scheduling: dict[str, Any] | None = None, queue: dict[str, Any] | None = None
) -> Scheduler:
    """All replicas ready at time 0."""
    built = Scheduler(Scheduling(**(scheduling or {})), Queue(**(queue or {})))
    for replica in replicas:
        built.add_replica(replica, Lifecycle.READY, 0.0)
    return built


def placed(decisions: list[Decision]) -> list[str]:
    """Ids of the requests placed, in order."""
    return [d.ticket.request.id for d in decisions if isinstance(d, Placed)]


def evicted(decisions: list[Decision]) -> list[tuple[str, str]]:
    """(request id, reason) of those evicted, in order."""
    return [(d.ticket.request.id, d.reason.value) for d in decisions if isinstance(d, Evicted)]


def leases(decisions: list[Decision]) -> list[Lease]:
    return [d.lease for d in decisions if isinstance(d, Placed)]
