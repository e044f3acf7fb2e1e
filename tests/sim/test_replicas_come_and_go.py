"""Replicas that vanish under load and come back, in virtual time: nothing hangs, nobody is lied to, work resumes."""

import asyncio
from collections.abc import Mapping

from backends.backend import ConnectFailed, EngineCall, EngineReply, ProbeResult
from backends.simulated.backend import SimulatedBackend
from config.schema import ModelKind
from router.engines import engine_options
from tests.support.asgi import Call, chat, post
from tests.support.conditions import at_rest
from tests.support.fake_engine import FakeEngine, Script
from tests.support.gateways import gateway_over
from tests.support.simulated_fleet import CHAT, Fleet, Plan, contents, fleet, fleet_config, mixed_load, play
from tests.support.virtual_time import run_virtual

NAMES = ("a", "b", "c")
CAPACITY = {"max_num_seqs": 16, "kv_blocks": 2000, "max_num_batched_tokens": 2048, "max_model_len": 4096}
CONFIG = fleet_config(*NAMES, capacity=CAPACITY, queue={"max_wait_s": 15.0})


class Mortal:
    """A simulated engine whose machine can be taken away; what it ran is lost, and it comes back empty."""

    def __init__(self, name: str) -> None:
        replica = next(replica for replica in CONFIG.replicas if replica.name == name)
        self._options = engine_options(replica)
        self._engine = self._fresh()
        self.alive = True

    def _fresh(self) -> SimulatedBackend:
        return SimulatedBackend(self._options, {"m": ModelKind.CHAT})

    async def die(self) -> None:
        self.alive = False
        await self._engine.aclose()

    def rise(self) -> None:
        self.alive = True
        self._engine = self._fresh()

    async def send(self, call: EngineCall) -> EngineReply:
        if not self.alive:
            raise ConnectFailed("connection refused")
        return await self._engine.send(call)

    async def probe(self) -> ProbeResult:
        if not self.alive:
            raise ConnectFailed("connection refused")
        return await self._engine.probe()

    async def aclose(self) -> None:
        await self._engine.aclose()

    @property
    def running(self) -> int:
        figures = self._engine._api.runner.engine.statistics()
        return figures.running + figures.waiting


def check_honest(plan: Plan, call: Call) -> str:
    """How it ended: whole, cut (said aloud in the stream), or refused with a time to come back."""
    assert call.complete
    if call.status == 200:
        if plan.body["stream"] and call.events()[-1] != "[DONE]":
            assert '"error"' in call.events()[-1]
            assert plan.text.startswith(contents(call))
            return "cut"
        assert contents(call) == plan.text
        return "whole"
    if call.status in {429, 503}:
        assert (call.status == 429) == (plan.body["service_tier"] == "flex")
        assert 1 <= int(call.header("retry-after") or 0) <= 120
        return "sent away"
    assert call.status == 502, call.data
    return "failed"


def lived_through(load: list[Plan], dying: tuple[str, ...]) -> tuple[dict[str, str], Mapping[str, Call]]:
    """The load, with these replicas gone from second 5 to second 20."""
    engines = {name: Mortal(name) for name in NAMES}

    async def weather() -> None:
        await asyncio.sleep(5)
        for name in dying:
            await engines[name].die()
        await asyncio.sleep(15)
        for name in dying:
            engines[name].rise()

    async def main() -> Mapping[str, Call]:
        async with fleet(CONFIG, engines) as subject:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(weather())
                calls = await play(subject, load)
            await rests(subject, engines)
            return calls

    calls = run_virtual(main())
    return {plan.name: check_honest(plan, calls[plan.name]) for plan in load}, calls


async def rests(subject: Fleet, engines: Mapping[str, Mortal]) -> None:
    await asyncio.sleep(1)
    assert at_rest(subject.running)
    assert all(engine.running == 0 for engine in engines.values())


def without_hang_ups(count: int, *, seed: int, over_s: float) -> list[Plan]:
    return [Plan(name=p.name, at_s=p.at_s, body=p.body) for p in mixed_load(count, seed=seed, over_s=over_s)]


def test_two_of_three_vanish_and_come_back() -> None:
    """What the two had begun goes on at the third, the rest is served by it or sent away; later all three work again."""
    load = without_hang_ups(400, seed=5, over_s=40.0)
    ends, calls = lived_through(load, ("a", "b"))
    assert list(ends.values()).count("whole") > 300
    assert "cut" not in ends.values()
    # Who waited until the two were back may be served by them.
    meanwhile = {
        calls[p.name].header("x-penstock-replica")
        for p in load
        if p.at_s > 6 and ends[p.name] == "whole" and calls[p.name].chunks[0][0] < 20
    }
    assert meanwhile == {"c"}
    later = [p for p in load if p.at_s > 25]
    assert {ends[p.name] for p in later} == {"whole"}
    assert {calls[p.name].header("x-penstock-replica") for p in later} >= {"a", "b"}


def test_all_vanish_and_come_back() -> None:
    """With nobody left, requests are sent away at once with Retry-After; when the fleet is back, so is the service."""
    load = without_hang_ups(200, seed=6, over_s=40.0)
    ends, calls = lived_through(load, NAMES)
    dark = [p for p in load if 9 < p.at_s < 19]
    assert {ends[p.name] for p in dark} == {"sent away"}
    assert {calls[p.name].json()["error"]["code"] for p in dark} == {"no_capacity", "resource_unavailable"}
    assert {ends[p.name] for p in load if p.at_s > 25} == {"whole"}


def test_a_lone_failure_is_invisible() -> None:
    """One replica that refuses connections, before any probe has told: its requests are answered by others."""
    engines = {name: Mortal(name) for name in NAMES}

    async def main() -> list[Call]:
        async with fleet(CONFIG, engines) as subject:
            await engines["a"].die()
            calls = [post(subject.running.app, CHAT, chat(str(n), stream=True, max_tokens=5)) for n in range(12)]
            async with asyncio.TaskGroup() as tasks:
                for call in calls:
                    tasks.create_task(call.run())
            await rests(subject, engines)
            return calls

    calls = run_virtual(main())
    assert {(call.status, call.events()[-1]) for call in calls} == {(200, "[DONE]")}
    assert "2" in {call.header("x-penstock-attempts") for call in calls}


def test_a_second_try_without_room_tells_the_first_failure() -> None:
    """The engine failed and nobody else had room in time: the client is told of the failure, not of the queue."""
    bad = FakeEngine(default=lambda: Script(status=500, pieces=[b"boom"]))
    busy = FakeEngine(default=lambda: Script(hang=True))

    async def main() -> Call:
        async with gateway_over(
            {"a": bad, "b": busy}, capacity={"max_num_seqs": 1}, queue={"max_wait_s": 5.0}
        ) as running:
            holder = post(running.app, CHAT, chat(stream=True))
            task = asyncio.get_running_loop().create_task(holder.run())
            await asyncio.sleep(1)  # `a` failed, `b` took it and holds its only slot
            call = await post(running.app, CHAT, chat()).run()
            holder.hang_up()
            await task
            return call

    call = run_virtual(main())
    assert (call.status, call.json()["error"]["code"]) == (502, "upstream_error")
