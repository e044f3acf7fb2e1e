"""`scheduling.policy`: another router's rule behind the same front door, over simulated replicas in virtual time."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from backends.backend import ProbeResult
from backends.simulated.backend import SimulatedBackend
from backends.simulated.options import EngineOptions
from config.checks import OWN_POLICY
from config.schema import Config, ModelKind
from tests.support.asgi import Call, chat, post
from tests.support.simulated_fleet import CHAT, contents, fleet, fleet_config, mixed_load, play
from tests.support.virtual_time import run_virtual

ROUTING = re.compile(r"^penstock_routing_decisions_total\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)


def decisions(page: str) -> Counter[tuple[str, str]]:
    """(replica, reason) of every placement on a /metrics page."""
    found: Counter[tuple[str, str]] = Counter()
    for match in ROUTING.finditer(page):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"]))
        found[labels["replica"], labels["reason"]] += int(float(match["value"]))
    return found


async def get(app: object, path: str) -> Call:
    return await Call(app, path, method="GET").run()


@pytest.mark.parametrize("policy", ["round_robin", "least_requests", "llm_d"])
def test_a_baseline_serves_behind_the_same_door(policy: str) -> None:
    """Every answer is whole, every placement has the reason `policy`, /metrics and /readyz answer, and nothing is left over."""
    plans = [replace(plan, hang_up_s=None) for plan in mixed_load(60, seed=5, over_s=10.0)]

    async def main() -> tuple[dict[str, Call], str, int | None]:
        async with fleet(fleet_config("a", "b", scheduling={"policy": policy})) as subject:
            calls = await play(subject, plans)
            page = await get(subject.running.app, "/metrics")
            ready = await get(subject.running.app, "/readyz")
            await subject.check_rest()
            return calls, page.data.decode(), ready.status

    calls, page, ready = run_virtual(main())
    assert {name: call.status for name, call in calls.items()} == dict.fromkeys(calls, 200)
    assert [plan.name for plan in plans if contents(calls[plan.name]) != plan.text] == []
    placed = decisions(page)
    assert {reason for _, reason in placed} == {"policy"}
    assert {replica for replica, _ in placed} == {"a", "b"}
    assert placed.total() == len(plans)
    assert ready == 200
    assert 'penstock_replica_up{cost_tier="on_demand",gpu="A100-80G",replica="a"} 1.0' in page


def test_ours_is_what_runs_unless_another_is_named() -> None:
    """Without a word, and under its own name, our own rule places: its reasons are its own."""

    async def reasons(config: Config) -> set[str]:
        async with fleet(config) as subject:
            await post(subject.running.app, CHAT, chat("Hello", max_tokens=3)).run()
            return {reason for _, reason in decisions((await get(subject.running.app, "/metrics")).data.decode())}

    for config in (fleet_config("a", "b"), fleet_config("a", "b", scheduling={"policy": OWN_POLICY})):
        assert "policy" not in run_virtual(reasons(config))


def test_round_robin_takes_turns() -> None:
    """Requests one after another go to the replicas in turn."""

    async def main() -> list[str | None]:
        async with fleet(fleet_config("a", "b", "c", scheduling={"policy": "round_robin"})) as subject:
            return [await replica_of(subject.running.app) for _ in range(6)]

    assert run_virtual(main()) == ["a", "b", "c", "a", "b", "c"]


async def replica_of(app: object) -> str | None:
    call = await post(app, CHAT, chat("Hello", max_tokens=3)).run()
    return call.header("x-penstock-replica")


class Watched(SimulatedBackend):
    """Notes when it is looked at."""

    def __init__(self) -> None:
        super().__init__(EngineOptions(kv_blocks=256), {"m": ModelKind.CHAT}, wall_clock=lambda: 0.0)
        self.looks_s: list[float] = []

    async def probe(self) -> ProbeResult:
        self.looks_s.append(asyncio.get_running_loop().time())
        return await super().probe()


def looks_and_reports(policy: str, seconds: float) -> tuple[Sequence[float], set[float]]:
    """When the engine was looked at, and the times of the reports that the scheduler was given meanwhile."""
    engine = Watched()

    async def main() -> set[float]:
        told: set[float] = set()
        async with fleet(fleet_config("a", scheduling={"policy": policy}), {"a": engine}) as subject:
            loop = asyncio.get_running_loop()
            end_s = loop.time() + seconds
            while loop.time() < end_s:
                [state] = subject.running.gateway.scheduler.states(loop.time())
                if state.load is not None:
                    told.add(state.load.observed_s)
                await asyncio.sleep(0.01)
        return told

    told = run_virtual(main())
    return engine.looks_s, told


@pytest.mark.parametrize(
    ("policy", "reports"), [("penstock", 30), ("round_robin", 30), ("llm_d", 600), ("least_load", 3)]
)
def test_a_rule_sees_load_as_often_as_its_original(policy: str, reports: int) -> None:
    """Engines' load is told at the rule's own interval, or at the probe's if it has none."""
    _, told = looks_and_reports(policy, seconds=29.9)
    assert abs(len(told) - reports) <= reports * 0.02


def test_a_rule_that_reads_seldom_still_has_its_engines_watched() -> None:
    """Whether a replica lives is known by the probe's interval, however seldom the rule reads its load."""
    looks_s, _ = looks_and_reports("least_load", seconds=29.9)
    assert len(looks_s) == 30
