"""Which backend a configured replica gets; the one place that knows all kinds.

Imports sit in the branches: a gateway without Triton replicas never pays for loading gRPC and numpy.
"""

from typing import TYPE_CHECKING

import httpx

from backends.backend import Backend
from config.schema import BackendKind, Config, ReplicaConfig

if TYPE_CHECKING:
    from backends.simulated.options import EngineOptions


def build_backend(replica: ReplicaConfig, config: Config, http: httpx.AsyncClient) -> Backend:
    """A backend for `replica`, not yet connected. `http` serves its probes and stays the caller's."""
    if replica.backend is BackendKind.SIMULATED:
        return _simulated(replica)
    if replica.backend is BackendKind.TRITON:
        from backends.triton import TritonBackend  # noqa: PLC0415

        return TritonBackend(
            replica,
            upstream=config.upstream,
            microbatch=config.microbatch,
            http=http,
            probe_timeout_s=config.probe.timeout_s,
        )
    from backends.vllm import HttpBackend  # noqa: PLC0415

    return HttpBackend(replica, upstream=config.upstream, probe_timeout_s=config.probe.timeout_s)


def engine_options(replica: ReplicaConfig) -> "EngineOptions":
    """What a simulated replica runs: its GPU, what it declares, and defaults for the rest."""
    from backends.simulated.options import EngineOptions  # noqa: PLC0415

    simulated = replica.simulated
    declared = {name: value for name, value in replica.capacity.model_dump().items() if value is not None}
    return EngineOptions(
        model=next((spec.name for spec in replica.models), EngineOptions().model),
        gpu=replica.gpu.type,
        gpu_count=replica.gpu.count,
        shape=simulated.shape,
        pipeline_parallel=simulated.pipeline_parallel,
        memory_ratio=simulated.memory_ratio,
        speed=simulated.speed,
        seed=simulated.seed,
        speculative_tokens=simulated.speculative_tokens,
        speculative_acceptance=simulated.speculative_acceptance,
        **declared,
    )


def _simulated(replica: ReplicaConfig) -> Backend:
    from backends.simulated.backend import SimulatedBackend  # noqa: PLC0415

    models = {spec.name: spec.kind for spec in replica.models}
    return SimulatedBackend(engine_options(replica), models or None)
