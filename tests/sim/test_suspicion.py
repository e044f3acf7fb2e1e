"""Engines that stand still or fail while their health page is fine, in virtual time: found, emptied, asked, and taken back."""

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from backends.backend import EngineCall, EngineReply
from batching.replica import Lifecycle
from batching.request import ReplicaId
from tests.support.asgi import Call, chat, post
from tests.support.fake_engine import FakeEngine, FakeReply, Script
from tests.support.simulated_fleet import CHAT
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
            streams = await fleet.at_work()
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


def long_prompt(fleet: Standing, number: int) -> "tuple[Call, asyncio.Task[Call]]":
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


def failing(status: int, *, tokens_too: bool = True) -> "Callable[[EngineCall], EngineReply | None]":
    def answer(call: EngineCall) -> EngineReply | None:
        if call.request_id == "penstock-one-token" and not tokens_too:
            return None
        body = b'{"error": {"message": "no", "type": "E", "code": 0}}'
        return FakeReply(Script([body], status=status, content_type="application/json"), FakeEngine())

    return answer


async def ask_in_turn(fleet: Standing, count: int, every_s: float = 0.1) -> list[Call]:
    calls = []
    for n in range(count):
        calls.append(await post(fleet.running.app, CHAT, chat(f"{n}", max_tokens=5, ignore_eos=True)).run())
        await asyncio.sleep(every_s)
    return calls


def test_an_engine_that_fails_everything_is_ejected() -> None:
    """Five failures in a row, no token either: out; every request is answered by the other; later it comes back by itself."""

    async def main() -> None:
        async with standing_fleet("a", "b") as fleet:
            await fleet.teach()
            fleet.engines["a"].answers = failing(500)
            calls = await ask_in_turn(fleet, 60)
            assert {call.status for call in calls} == {200}
            assert fleet.states("a")[:2] == ["suspect", "down"]
            assert (
                fleet.running.metric("penstock_replica_ejections_total", replica="a", reason="consecutive_failures")
                == 1
            )
            assert fleet.streams.moved[0][0] == "a"
            fleet.engines["a"].answers = lambda _call: None
            await asyncio.sleep(31)
            assert fleet.now("a") == "ready"

    run_virtual(main())


def test_one_that_gives_tokens_and_fails_too_often_pauses_longer_each_time() -> None:
    """It is never down: suspect for 1, 2, 4 ... seconds, then tried again; the other answers meanwhile, and it heals in the end."""

    async def main() -> None:
        async with standing_fleet("a", "b") as fleet:
            await fleet.teach()
            fleet.engines["a"].answers = failing(500, tokens_too=False)
            calls = await ask_in_turn(fleet, 400)
            assert {call.status for call in calls} == {200}
            assert set(fleet.states("a")) == {"suspect", "ready"}
            assert fleet.streams.moved == []
            times = [at for at, who, _ in fleet.history if who == "a"]
            stays = [ready - suspect for suspect, ready in zip(times[::2], times[1::2], strict=False)]
            assert len(stays) >= 3
            assert stays == sorted(stays)
            assert stays[-1] > 3
            fleet.engines["a"].answers = lambda _call: None
            await asyncio.sleep(31)
            assert fleet.now("a") == "ready"
            assert fleet.states("b") == []

    run_virtual(main())


def test_refusals_are_the_requests_own_fault() -> None:
    """Whatever a client does wrong, as often as it likes, does no replica harm."""

    async def main() -> None:
        async with standing_fleet("a", "b") as fleet:
            await fleet.teach()
            fleet.engines["a"].answers = fleet.engines["b"].answers = failing(400)
            assert {call.status for call in await ask_in_turn(fleet, 60)} == {400}
            assert fleet.history == []

    run_virtual(main())


def test_clients_that_leave_are_nobody_s_fault() -> None:
    """Sixty who hang up before their first token."""

    async def main() -> None:
        async with standing_fleet("a", "b") as fleet:
            await fleet.teach()
            for _ in range(60):
                streams = fleet.begin(1)
                await asyncio.sleep(0.001)
                hang_up(streams)
            await asyncio.sleep(10)
            assert fleet.history == []

    run_virtual(main())


def test_one_that_is_far_slower_than_the_others_and_than_itself_is_asked() -> None:
    """Its first bytes take a hundred times as long as they did: suspect, and ready again once it is as fast as before."""

    async def main() -> None:
        async with standing_fleet("a", "b", scheduling={"hedge": {"enabled": False}}) as fleet:
            await fleet.teach()
            fleet.engines["a"].lag_s = 2.5
            for _ in range(4):
                burst = fleet.begin(16, tokens=5)
                await asyncio.gather(*(task for _, task in burst))
            assert "suspect" in fleet.states("a")
            assert fleet.states("b") == []
            fleet.engines["a"].lag_s = 0.0
            await asyncio.sleep(31)
            assert fleet.now("a") == "ready"

    run_virtual(main())


def test_a_flapping_engine_is_away_for_ever_longer_but_never_for_good() -> None:
    """It stands for three seconds out of every eight: ejected at most once a stop, and back at the end."""

    async def main() -> None:
        async with standing_fleet("a", "b") as fleet:
            await fleet.teach()
            streams = fleet.begin(8)
            for _ in range(8):
                await asyncio.sleep(5)
                streams += fleet.begin(2)
                fleet.engines["a"].stand()
                await asyncio.sleep(3)
                fleet.engines["a"].go_on()
            assert 1 <= ejections(fleet, "a") <= 8
            assert ejections(fleet, "b") == 0
            await asyncio.sleep(31)
            assert fleet.now("a") == "ready"
            hang_up(streams)

    run_virtual(main())


def test_a_draining_replica_that_freezes_is_emptied() -> None:
    """It takes no work as it is; what runs on it must not be lost with it."""

    async def main() -> None:
        async with standing_fleet("a", "b") as fleet:
            streams = await fleet.at_work()
            watch = fleet.running.gateway.watch
            assert watch is not None
            a = watch.replicas[ReplicaId("a")]
            watch.leave(a.id, Lifecycle.DRAINING)
            fleet.engines["a"].stand()
            await asyncio.sleep(2)
            assert fleet.states("a") == ["draining", "down"]
            assert [who for who, _ in fleet.streams.moved] == ["a"]
            hang_up(streams)

    run_virtual(main())


def test_a_drain_that_begins_while_it_is_asked_goes_on() -> None:
    """Suspect, then draining, then it gave its token: it drains, and does not become ready."""

    async def main() -> None:
        async with standing_fleet("a", "b") as fleet:
            streams = await fleet.at_work()
            fleet.engines["a"].stand()
            await fleet.until("a", "suspect")
            watch = fleet.running.gateway.watch
            assert watch is not None
            a = watch.replicas[ReplicaId("a")]
            watch.leave(a.id, Lifecycle.DRAINING)
            fleet.engines["a"].go_on()
            await asyncio.sleep(5)
            assert fleet.states("a") == ["suspect", "draining"]
            hang_up(streams)

    run_virtual(main())


def test_a_draining_replica_that_freezes_when_nobody_else_is_left_drains_on() -> None:
    """There is nowhere to move its streams, and a doubt does not end a drain."""

    async def main() -> None:
        async with standing_fleet("a", "b", probe={"timeout_s": 0.1, "interval_s": 0.2}) as fleet:
            streams = await fleet.at_work()
            watch = fleet.running.gateway.watch
            assert watch is not None
            a = watch.replicas[ReplicaId("a")]
            watch.leave(a.id, Lifecycle.DRAINING)
            fleet.engines["a"].stand()
            fleet.engines["b"].stand("none")
            await asyncio.sleep(20)
            assert fleet.states("a") == ["draining"]
            assert fleet.now("b") == "down"
            hang_up(streams)

    run_virtual(main())


def test_a_suspect_is_better_than_nobody() -> None:
    """The other one dies while it is asked: it takes work again at once."""

    async def main() -> None:
        async with standing_fleet(
            "a", "b", probe={"timeout_s": 0.1, "interval_s": 0.2}, health={"token_timeout_s": 5.0}
        ) as fleet:
            streams = await fleet.at_work()
            fleet.engines["a"].stand()
            await fleet.until("a", "suspect")
            fleet.engines["b"].stand("none")
            await asyncio.sleep(12)
            assert fleet.states("a")[:2] == ["suspect", "ready"]
            assert "down" in fleet.states("b")
            hang_up(streams)

    run_virtual(main())


def test_one_whose_looks_fail_is_down_and_emptied_even_as_the_last() -> None:
    """Nothing answers there at all: that is no doubt. It comes back through one token."""

    async def main() -> None:
        async with standing_fleet("a") as fleet:
            await fleet.teach()
            streams = fleet.begin(4)
            await asyncio.sleep(1)
            fleet.engines["a"].stand("none")
            await asyncio.sleep(30)
            assert fleet.states("a") == ["down"]
            assert [who for who, _ in fleet.streams.moved] == ["a"]
            asked = len(fleet.engines["a"].tokens_asked)
            fleet.engines["a"].go_on()
            await asyncio.sleep(5)
            assert fleet.states("a") == ["down", "warming", "ready"]
            assert len(fleet.engines["a"].tokens_asked) == asked + 1
            hang_up(streams)

    run_virtual(main())


def test_a_gateway_starts_without_asking_for_tokens() -> None:
    """The first look is enough, so that it serves at once."""

    async def main() -> None:
        async with standing_fleet("a", "b") as fleet:
            assert fleet.now("a") == fleet.now("b") == "ready"
            assert asyncio.get_running_loop().time() < 0.1
            await asyncio.sleep(60)
            assert [engine.tokens_asked for engine in fleet.engines.values()] == [[], []]

    run_virtual(main())


def test_it_can_be_switched_off() -> None:
    """Then only looks take a replica out of service."""

    async def main() -> None:
        async with standing_fleet("a", "b", health={"enabled": False}) as fleet:
            streams = await fleet.at_work()
            fleet.engines["a"].stand()
            await asyncio.sleep(20)
            assert fleet.history == []
            fleet.engines["a"].go_on()
            hang_up(streams)

    run_virtual(main())


def test_a_replica_that_is_removed_while_it_is_asked() -> None:
    """Its question ends with it."""

    async def main() -> None:
        async with standing_fleet("a", "b") as fleet:
            streams = await fleet.at_work()
            fleet.engines["a"].stand()
            await fleet.until("a", "suspect")
            config = fleet.running.gateway.config
            fleet.running.gateway.reload(config.model_copy(update={"replicas": config.replicas[1:]}))
            await asyncio.sleep(10)
            assert fleet.states("a") == ["suspect"]
            assert fleet.states("b") == []
            assert not [task for task in asyncio.all_tasks() if task.get_name() == "one-token-a"]
            fleet.engines["a"].go_on()
            hang_up(streams)

    run_virtual(main())


def test_what_stopped_a_gateway_stops_its_questions() -> None:
    """The gateway ends while one is under way, and does not wait for it."""

    async def main() -> float:
        async with standing_fleet("a", "b", health={"token_timeout_s": 1000.0}) as fleet:
            streams = await fleet.at_work()
            fleet.engines["a"].stand()
            await fleet.until("a", "suspect")
            hang_up(streams)
            ends_s = asyncio.get_running_loop().time()
        return asyncio.get_running_loop().time() - ends_s

    assert run_virtual(main()) < 10
