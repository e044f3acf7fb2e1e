"""The machines of a run, from a file in the gateway's own `replicas:` form: each an engine and what the scheduler knows of it.

Every replica is simulated, whatever `backend` it names: its GPU type and declared capacity say what it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from backends.backend import ProbeResult, ServedModel
from backends.simulated.engine import Engine
from backends.simulated.options import EngineOptions
from batching.replica import ReplicaProfile
from batching.request import ReplicaId
from config.load import load
from config.schema import Config, ReplicaConfig
from router.engines import engine_options
from router.profiles import profile_of


@dataclass(slots=True, eq=False, kw_only=True)
class Machine:
    """One replica of the run."""

    profile: ReplicaProfile
    engine: Engine
    stepping: bool = False  # a step is under way: what is added joins the next one
    busy_s: float = 0.0
    requests: int = 0

    @property
    def id(self) -> ReplicaId:
        return self.profile.id


def read_fleet(path: Path) -> Config:
    """The file as the gateway would read it, but for the environment; its other sections count as well.

    Raises ConfigError with every problem.
    """
    return load(path, environ={})


def build_machines(replicas: Iterable[ReplicaConfig], seed: int) -> list[Machine]:
    """Engines at rest. `seed` varies step times (0: exact), differently on each machine that has no seed of its own."""
    return [_machine(replica, seed and seed * 1_000_003 + number) for number, replica in enumerate(replicas)]


def model_of(machines: Iterable[Machine]) -> str:
    """The one model that all serve; raises ValueError where there is none, because a trace names none."""
    common = set.intersection(*(set(machine.profile.models) for machine in machines))
    if len(common) != 1:
        raise ValueError("the fleet must serve exactly one common model")
    return common.pop()


def _machine(replica: ReplicaConfig, seed: int) -> Machine:
    options = engine_options(replica)
    options = replace(options, seed=options.seed or seed)
    return Machine(profile=profile_of(replica, _probed(options)), engine=Engine(options))


def _probed(options: EngineOptions) -> ProbeResult:
    """What the gateway's first probe would find."""
    return ProbeResult(
        ready=True,
        detail="",
        models=(ServedModel(name=options.model, max_model_len=options.context_tokens),),
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        kv_blocks=options.total_blocks,
        block_size=options.block_size,
    )
