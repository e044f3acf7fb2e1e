"""From what the config declares and what an engine says of itself to what the scheduler is told (pure).

Declared wins, then asked; what neither tells stays None and is learned by the scheduler.
"""

from dataclasses import replace

from backends.backend import ProbeResult
from batching.replica import EngineLoad, Lifecycle, ReplicaProfile
from batching.request import ReplicaId
from config.schema import BackendKind, ModelKind, ReplicaConfig, SimulatedEngine


def profile_of(replica: ReplicaConfig, found: ProbeResult | None) -> ReplicaProfile:
    """The profile after a probe; `found` None: before the first one that answered."""
    capacity = replica.capacity
    simulated = replica.simulated if replica.backend is BackendKind.SIMULATED else SimulatedEngine()
    return ReplicaProfile(
        id=ReplicaId(replica.name),
        models=_models(replica, found),
        gpu=replica.gpu.type,
        gpu_count=replica.gpu.count,
        cost_tier=replica.cost.tier,
        usd_per_hour=replica.cost.usd_per_hour,
        max_num_seqs=capacity.max_num_seqs or (found and found.max_num_seqs) or None,
        max_num_batched_tokens=capacity.max_num_batched_tokens or (found and found.max_num_batched_tokens) or None,
        kv_blocks=capacity.kv_blocks or (found and found.kv_blocks) or None,
        block_size=capacity.block_size or (found and found.block_size) or None,
        max_model_len=capacity.max_model_len or _context(found),
        speed=simulated.speed,
        shape=simulated.shape,
        pipeline_parallel=simulated.pipeline_parallel,
    )


def remembered(before: ProbeResult | None, found: ProbeResult) -> ProbeResult:
    """What is known after a look: a page that could not be read says nothing, and what was told before still holds.

    Else one failed `/v1/models` would empty a healthy replica, one failed `/metrics` would make its KV cache boundless.
    """
    if before is None:
        return found
    return replace(
        found,
        models=found.models or before.models,
        max_num_seqs=found.max_num_seqs or before.max_num_seqs,
        max_num_batched_tokens=found.max_num_batched_tokens or before.max_num_batched_tokens,
        kv_blocks=found.kv_blocks or before.kv_blocks,
        block_size=found.block_size or before.block_size,
    )


def load_of(found: ProbeResult, now: float) -> EngineLoad | None:
    """The engine's own figures, or None where it has no metrics."""
    figures = found.metrics
    if not figures:
        return None

    def whole(name: str) -> int | None:
        value = figures.get(name)
        return None if value is None else int(value)

    return EngineLoad(
        observed_s=now,
        running=whole("running"),
        waiting=whole("waiting"),
        kv_usage_ratio=figures.get("kv_usage_ratio"),
        preemptions_total=whole("preemptions_total"),
        prefix_queries_total=whole("prefix_queries_total"),
        prefix_hits_total=whole("prefix_hits_total"),
    )


_MAY_SLEEP = frozenset({Lifecycle.READY, Lifecycle.SUSPECT, Lifecycle.STARTING, Lifecycle.DOWN})
# Ended by whoever began it: a drain, a notice, a doubt, the one-token request of a replica that comes back.
_OTHERS = frozenset({Lifecycle.DRAINING, Lifecycle.RECLAIMING, Lifecycle.SUSPECT, Lifecycle.WARMING})


def lifecycle_after(current: Lifecycle, found: ProbeResult | None, failures: int, unhealthy_after: int) -> Lifecycle:
    """Where a probe leaves a replica; `found` None or not ready counts as a failure, `failures` includes this one.

    A replica that was down warms up first; one that was never seen before does not, so that a gateway starts at once.
    """
    if found is None or not found.ready:
        if found is not None and found.asleep and current in _MAY_SLEEP:
            return Lifecycle.ASLEEP
        return Lifecycle.DOWN if failures >= unhealthy_after else current
    if current in _OTHERS:
        return current
    if current is Lifecycle.ASLEEP:
        return Lifecycle.WAKING  # one look later it is ready
    return Lifecycle.WARMING if current is Lifecycle.DOWN else Lifecycle.READY


def missing_models(replica: ReplicaConfig, found: ProbeResult) -> tuple[str, ...]:
    """Models that the config declares and the engine, which can tell, does not serve."""
    if not found.models:
        return ()
    served = {model.name for model in found.models}
    return tuple(spec.name for spec in replica.models if spec.name not in served)


def _models(replica: ReplicaConfig, found: ProbeResult | None) -> dict[str, ModelKind]:
    declared = {spec.name: spec.kind for spec in replica.models}
    if found is None or not found.models:
        return declared
    asked = {model.name: ModelKind(model.kind) for model in found.models}
    if not declared:
        return asked
    adapters = {model.name: ModelKind(model.kind) for model in found.models if model.parent in declared}
    return {name: kind for name, kind in declared.items() if name in asked} | adapters


def _context(found: ProbeResult | None) -> int | None:
    lengths = [model.max_model_len for model in found.models if model.max_model_len is not None] if found else []
    return min(lengths, default=None)
