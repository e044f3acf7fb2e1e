"""What a request has cost, and under which names: values that pass between whoever splits money (`batching.meter`) and whoever shows it."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from batching.request import ReplicaId
from config.schema import CostTier


class Machine(NamedTuple):
    """What money is spent on, as labels have it."""

    replica: ReplicaId
    gpu: str
    cost_tier: CostTier


class Account(NamedTuple):
    """Whom it is spent for, as labels have it: few, whatever clients say."""

    model: str
    service_tier: str
    tenant_class: str


NOBODY: Final = Account(
    "other", "default", "anonymous"
)  # of requests that come without a bill: tests', the simulator's


@dataclass(slots=True, eq=False)
class Bill:
    """What one request has cost so far: all its attempts, seconds and moves, by machine. What is under way is not in it yet."""

    account: Account
    usd: float = 0.0
    parts: dict[Machine, float] = field(default_factory=dict)

    def add(self, machine: Machine, usd: float) -> None:
        self.usd += usd
        self.parts[machine] = self.parts.get(machine, 0.0) + usd
