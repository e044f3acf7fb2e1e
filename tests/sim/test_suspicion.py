"""Engines that stand still or fail while their health page is fine, in virtual time: found, emptied, asked, and taken back."""

import asyncio
from itertools import pairwise

import pytest

from tests.support.standing_fleet import Standing, hang_up, standing_fleet
from tests.support.virtual_time import run_virtual


def ejections(fleet: Standing, name: str) -> float:
    return fleet.running.metric("penstock_replica_ejections_total", replica=name)


@pytest.mark.parametrize("probes", ["fine", "none"])
def test_a_frozen_engine_is_found_and_emptied_within_two_seconds(probes: str) -> None:
    """Frozen in the midst of streams, whether its health page answers or not: suspect, asked, ejected, moved off."""

    async def main() -> None:
        async with standing_fleet("a", "b") as fleet:
            await fleet.teach()
            streams = fleet.begin(16)
            await asyncio.sleep(5)
            assert fleet.history == []
            loop = asyncio.get_running_loop()
            frozen_s = loop.time()
            fleet.engines["a"].stand(probes)
            await asyncio.sleep(2)
            assert fleet.states("a") == ["suspect", "down"]
            assert [(who, at - frozen_s <= 2) for who, at in fleet.streams.moved] == [("a", True)]
            assert not fleet.engines["a"].replies
            assert fleet.now("b") == "ready"
            assert fleet.running.metric("penstock_replica_ejections_total", replica="a", reason="silent_streams") == 1
            assert fleet.running.metric("penstock_replica_circuit_state", replica="a", state="open") == 1
            hang_up(streams)

    run_virtual(main())


def test_it_comes_back_through_warming() -> None:
    """While it stands it is asked with growing pauses; when it moves, one token brings it back, and then it takes work."""

    async def main() -> None:
        async with standing_fleet("a", "b", health={"warming_timeout_s": 1.0}) as fleet:
            await fleet.teach()
            streams = fleet.begin(8)
            await asyncio.sleep(3)
            fleet.engines["a"].stand()
            await asyncio.sleep(20)
            assert fleet.states("a")[:4] == ["suspect", "down", "warming", "down"]
            asked = fleet.engines["a"].tokens_asked
            pauses = [later - earlier for earlier, later in pairwise(asked)]
            assert pauses == sorted(pauses)
            assert 2 < len(asked) < 8
            moves_s = asyncio.get_running_loop().time()
            fleet.engines["a"].go_on()
            await asyncio.sleep(31)
            assert fleet.states("a")[-2:] == ["warming", "ready"]
            assert fleet.now("a") == "ready"
            assert fleet.at("a", "ready", moves_s) - moves_s < 30
            assert fleet.running.metric("penstock_replica_circuit_state", replica="a", state="closed") == 1
            hang_up(streams)
            more = fleet.begin(8, tokens=20)
            await asyncio.gather(*(task for _, task in more))
            assert "a" in {call.header("x-penstock-replica") for call, _ in more}

    run_virtual(main())


def test_figures_that_stand_still_are_a_sign() -> None:
    """No stream has begun that could fall silent, and there is one request only: the count of engine steps tells."""

    async def main() -> None:
        async with standing_fleet("a", "b", scheduling={"hedge": {"enabled": False}}) as fleet:
            await fleet.teach()
            fleet.engines["a"].stand()
            fleet.engines["b"].stand()
            requests = fleet.begin(1)
            await asyncio.sleep(0.5)
            (busy,) = [
                name
                for name, engine in fleet.engines.items()
                if fleet.streams.requests_on(name) or engine_waits(fleet, name)
            ]
            other = "b" if busy == "a" else "a"
            fleet.engines[other].go_on()
            fleet.streams.requests_on = lambda replica: int(replica == busy)  # type: ignore[method-assign]
            await asyncio.sleep(8)
            assert fleet.states(busy)[:2] == ["suspect", "down"]
            assert fleet.running.metric("penstock_replica_ejections_total", replica=busy, reason="no_iterations") == 1
            assert fleet.states(other) == []
            hang_up(requests)

    run_virtual(main())


def engine_waits(fleet: Standing, name: str) -> bool:
    return any(state.running for state in fleet.running.gateway.scheduler.states(0.0) if state.profile.id == name)


def test_missed_first_tokens_are_a_sign() -> None:
    """An engine that tells no figures and freezes idle: the requests it is given next say so."""

    async def main() -> None:
        async with standing_fleet("a", "b", "c", scheduling={"hedge": {"enabled": False}}) as fleet:
            await fleet.teach()
            for engine in fleet.engines.values():
                look = engine._engine.probe

                async def silent(look: object = look) -> object:
                    from dataclasses import replace

                    return replace(await look(), metrics={})  # type: ignore[operator]

                engine._engine.probe = silent  # type: ignore[method-assign,assignment]
            await asyncio.sleep(2)
            fleet.engines["a"].stand()
            requests = fleet.begin(24)
            await asyncio.sleep(12)
            assert fleet.states("a")[:2] == ["suspect", "down"]
            assert (
                fleet.running.metric("penstock_replica_ejections_total", replica="a", reason="missed_first_tokens") == 1
            )
            assert fleet.states("b") == fleet.states("c") == []
            hang_up(requests)

    run_virtual(main())


@pytest.mark.parametrize(("speed", "taught"), [(0.02, True), (0.05, False)])
def test_a_slow_engine_is_not_ejected(speed: float, taught: bool) -> None:
    """A machine far slower than its GPU should be, long prompts between its streams, known or not: stays in service."""

    async def main() -> None:
        async with standing_fleet("a", "b", speed=speed) as fleet:
            if taught:
                await fleet.teach()
            streams = fleet.begin(6, tokens=100)
            for n in range(4):
                await asyncio.sleep(5)
                streams += fleet.begin(1, tokens=20)
                streams += [long_prompt(fleet, n)]
            await asyncio.sleep(100)
            assert "down" not in fleet.states("a") + fleet.states("b")
            assert ejections(fleet, "a") == ejections(fleet, "b") == 0
            assert len(fleet.states("a") + fleet.states("b")) <= 4  # a doubt or two, refuted
            hang_up(streams)

    run_virtual(main())


def long_prompt(fleet: Standing, number: int):
    from tests.support.asgi import chat, post
    from tests.support.simulated_fleet import CHAT

    call = post(fleet.running.app, CHAT, chat(f"{number} " + "lorem " * 3000, stream=True, max_tokens=20))
    return call, asyncio.get_running_loop().create_task(call.run())


def test_the_last_replica_is_never_ejected() -> None:
    """The only one freezes and its health page is fine: it stays, and serves again when it moves."""

    async def main() -> None:
        async with standing_fleet("a") as fleet:
            await fleet.teach()
            streams = fleet.begin(4)
            await asyncio.sleep(3)
            fleet.engines["a"].stand()
            await asyncio.sleep(20)
            assert (fleet.now("a"), fleet.history, fleet.streams.moved) == ("ready", [], [])
            fleet.engines["a"].go_on()
            hang_up(streams)
            ((call, task),) = fleet.begin(1, tokens=20)
            assert (await task).complete
            assert call.status == 200

    run_virtual(main())


def test_no_more_than_half_are_ejected() -> None:
    """All four freeze at once, as when a network stutters: two stay in service."""

    async def main() -> None:
        async with standing_fleet("a", "b", "c", "d") as fleet:
            await fleet.teach()
            streams = fleet.begin(32)
            await asyncio.sleep(3)
            for engine in fleet.engines.values():
                engine.stand()
            for _ in range(80):
                await asyncio.sleep(0.25)
                assert [fleet.now(name) for name in fleet.engines].count("ready") >= 2
            assert [fleet.now(name) for name in fleet.engines].count("ready") == 2
            for engine in fleet.engines.values():
                engine.go_on()
            await asyncio.sleep(35)
            assert {fleet.now(name) for name in fleet.engines} == {"ready"}
            hang_up(streams)

    run_virtual(main())
