"""Requests made up for a question, played over a fleet under a policy: what `penstock simulate` does with those of a trace."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batching.policies import BASELINES
from batching.scheduler import Scheduler
from config.schema import TierShares
from router.simulation.fleet import build_machines, model_of, read_fleet
from router.simulation.report import figures
from router.simulation.run import PROBE_INTERVAL_S, Life, Simulation, Watcher
from router.simulation.simulate import ORACLE, OURS
from router.simulation.trace import Call


@dataclass(frozen=True, slots=True)
class Ended:
    """One request and what became of it."""

    call: Call
    life: Life
    end_s: float


@dataclass(frozen=True, slots=True)
class Played:
    """A run: its requests in order of arrival, and its figures as `penstock simulate` writes them."""

    requests: Sequence[Ended]
    figures: dict[str, Any]


class _Ends(Watcher):
    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def ended(self, number: int, life: Life, now: float) -> None:  # noqa: ARG002
        self.at[number] = now


def replicas_of(fleet: Path) -> int:
    return len(read_fleet(fleet).replicas)


def played(fleet: Path, calls: Iterable[Call], policy_name: str, seed: int) -> Played:
    """The queue is as long as it must be, for every tier: nobody is refused for its length."""
    ordered = sorted(calls, key=lambda call: call.arrival_s)
    config = read_fleet(fleet)
    machines = build_machines(config.replicas, seed)
    ours = policy_name in {OURS, ORACLE}
    policy = None if ours else BASELINES[policy_name](seed)
    queue = config.queue.model_copy(
        update={"max_requests": len(ordered) + 1, "tier_shares": TierShares(flex=1, batch=1)}
    )
    ends = _Ends()
    observed = Simulation(
        ordered,
        machines,
        Scheduler(config.scheduling, queue, stale_after_s=config.probe.stale_after_s, policy=policy),
        model=model_of(machines),
        max_wait_s=config.queue.max_wait_s,
        clairvoyant=policy_name == ORACLE,
        probe_interval_s=(policy and policy.scrape_interval_s) or PROBE_INTERVAL_S,
        ours=ours,
        watcher=ends,
    ).run()
    requests = [
        Ended(call, life, ends.at[number])
        for number, (call, life) in enumerate(zip(ordered, observed.lives, strict=True))
    ]
    return Played(requests, figures(observed, ordered, machines))
