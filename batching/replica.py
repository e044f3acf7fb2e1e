"""A replica as the scheduler sees it: what it is (profile), what it is doing (state), and what its engine last said (load).

Unknown is None, never zero: an engine that tells nothing must still be given work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from batching.audit import Errors, Signal
from batching.request import ReplicaId
from batching.shares import ALONE, Share
from config.gpus import ShapeName
from config.schema import CostTier, ModelKind


class Lifecycle(StrEnum):
    """Where a replica is in its life; `TRANSITIONS` is the whole machine."""

    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    SUSPECT = "suspect"  # it may have stopped working: no new work while it is asked for one token, its streams run on
    DRAINING = "draining"
    RECLAIMING = "reclaiming"  # a spot notice is running; within a window it takes what will have ended by then
    ASLEEP = "asleep"
    WAKING = "waking"
    DOWN = "down"


_S: Final = Lifecycle
TRANSITIONS: Final[Mapping[Lifecycle, frozenset[Lifecycle]]] = {
    _S.STARTING: frozenset({_S.WARMING, _S.READY, _S.ASLEEP, _S.DRAINING, _S.DOWN}),
    _S.WARMING: frozenset({_S.READY, _S.DRAINING, _S.DOWN}),
    _S.READY: frozenset({_S.SUSPECT, _S.DRAINING, _S.RECLAIMING, _S.ASLEEP, _S.DOWN}),
    _S.SUSPECT: frozenset({_S.READY, _S.DRAINING, _S.RECLAIMING, _S.ASLEEP, _S.DOWN}),
    _S.DRAINING: frozenset({_S.READY, _S.DOWN}),
    _S.RECLAIMING: frozenset({_S.READY, _S.DRAINING, _S.DOWN}),
    _S.ASLEEP: frozenset({_S.WAKING, _S.DRAINING, _S.DOWN}),
    _S.WAKING: frozenset({_S.READY, _S.ASLEEP, _S.DRAINING, _S.DOWN}),
    _S.DOWN: frozenset({_S.STARTING, _S.WARMING, _S.READY, _S.ASLEEP}),
}
# A lifecycle that may become ready by itself: requests for its models wait.
HOPEFUL: Final = frozenset({_S.READY, _S.SUSPECT, _S.STARTING, _S.WARMING, _S.ASLEEP, _S.WAKING})
CACHE_LOST: Final = frozenset({_S.DOWN, _S.ASLEEP, _S.STARTING})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaProfile:
    """What a replica is. Capacity fields are None where neither config nor engine has told them."""

    id: ReplicaId
    models: Mapping[str, ModelKind]  # served name -> kind; LoRA adapters are names of their own
    gpu: str = "unknown"
    gpu_count: int = 1
    shape: ShapeName = "8b"  # the model's size, for the prior; a simulated engine's, unknown of real ones
    pipeline_parallel: int = 1  # stages that share the GPUs
    cost_tier: CostTier = CostTier.ON_DEMAND
    usd_per_hour: float = 0.0
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_blocks: int | None = None
    block_size: int | None = None  # tokens a KV block
    max_model_len: int | None = None
    speed: float = 1.0  # of the GPU type's prior; a simulated engine's --speed


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """What the engine said of itself at `observed_s` (loop clock). None: it did not say."""

    observed_s: float
    running: int | None = None
    waiting: int | None = None
    kv_usage_ratio: float | None = None  # 0..1 of the KV blocks in use
    preemptions_total: int | None = None
    prefix_queries_total: int | None = None  # tokens
    prefix_hits_total: int | None = None  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """A frozen look at one replica: for metrics, admin and tests."""

    profile: ReplicaProfile
    lifecycle: Lifecycle
    running: int  # sequences our leases hold
    max_num_seqs: int | None  # declared, asked or learned; None: no bound known
    prefill_tokens: int  # admitted, not yet prefilled
    held_blocks: int  # prompt and tokens emitted so far
    reserved_blocks: int  # held plus forecast growth
    foreign_blocks: int  # the engine's figure beyond ours: other traffic, estimate error
    share: Share = ALONE  # that this gateway may use, where it is one of several
    load: EngineLoad | None = None
    load_age_s: float | None = None
    ledger_only: bool = False  # no figure of the engine about its KV cache is gone by: missing or stale
    audit: Mapping[Signal, Errors] = field(default_factory=dict)  # what predictions have been worth lately
    extras: Mapping[str, float] = field(default_factory=dict)

    @property
    def headroom_blocks(self) -> int | None:
        """KV blocks a new placement may take; None where the engine's size is unknown."""
        if self.profile.kv_blocks is None:
            return None
        return max(0, self.share.of(self.profile.kv_blocks - self.foreign_blocks) - self.reserved_blocks)
