"""Candidates and loads for tests of the baselines, each with what a test varies."""

from collections.abc import Sequence
from typing import Any

from batching.policies.policy import Candidate, Policy
from batching.replica import EngineLoad
from batching.request import ReplicaId, Request
from tests.support.scheduling import profile

A, B, C, D = (ReplicaId(name) for name in "abcd")


def candidate(name: str = "a", load: EngineLoad | None = None, **changes: Any) -> Candidate:
    """An H100 of 1000 blocks of 16 tokens, 8 sequences and 2048 tokens a step."""
    return Candidate(profile(name, **changes), load)


def load(*, waiting: int | None = 0, kv: float | None = 0.0, at: float = 0.0) -> EngineLoad:
    return EngineLoad(observed_s=at, running=0, waiting=waiting, kv_usage_ratio=kv)


def place(policy: Policy, request: Request, candidates: Sequence[Candidate], now: float = 0.0) -> ReplicaId | None:
    """Asks and, unless it is held, tells that it was done."""
    chosen = policy.choose(request, candidates, now)
    if chosen is not None:
        policy.placed(request, chosen, now)
    return chosen
