"""Replicas that are to go away: who will not be done by then leaves, each when it has a place; who will be done stays."""

import asyncio
import json
from typing import Any

from batching.replica import Lifecycle
from batching.request import ReplicaId
from config.schema import Config
from tests.sim.test_streams_that_move import CAPACITY, counted, text_of
from tests.support.asgi import Call, chat, post
from tests.support.breaking_engine import BreakingEngine, breaking_simulated
from tests.support.conditions import at_rest
from tests.support.fake_engine import FakeEngine, Script, whole_stream
from tests.support.gateways import Running, gateway_over
from tests.support.simulated_fleet import CHAT, fleet_config
from tests.support.virtual_time import run_virtual


def stream(words: str, tokens: int, **fields: Any) -> dict[str, Any]:
    return chat(words, stream=True, max_tokens=tokens, ignore_eos=True, **fields)


def left(
    bodies: list[dict[str, Any]],
    *,
    by_s: float | None,
    names: tuple[str, ...] = ("a", "b"),
    settings: Config | None = None,
) -> tuple[list[Call], dict[str, BreakingEngine], Running, list[int]]:
    """All begin at `a`, and 0.3 s later it is left: at once (None) or by a time from then on. How many were there, as time went."""
    settings = settings or fleet_config(*names, capacity=CAPACITY)
    engines = {name: breaking_simulated(settings, name) for name in names}
    there: list[int] = []

    async def main() -> tuple[list[Call], Running]:
        loop = asyncio.get_running_loop()
        async with gateway_over(engines, settings) as running:
            moves = running.gateway.dispatcher.moves
            # Nobody else takes work at first.
            for name in names[1:]:
                running.gateway.scheduler.set_lifecycle(ReplicaId(name), Lifecycle.DRAINING, loop.time())
            calls = [post(running.app, CHAT, body) for body in bodies]
            async with asyncio.TaskGroup() as tasks:
                for call in calls:
                    tasks.create_task(call.run())
                await asyncio.sleep(0.3)
                for name in names[1:]:
                    running.gateway.scheduler.set_lifecycle(ReplicaId(name), Lifecycle.READY, loop.time())
                running.gateway.scheduler.set_lifecycle(ReplicaId("a"), Lifecycle.DRAINING, loop.time())
                moves.move_off(ReplicaId("a"), by_s=None if by_s is None else loop.time() + by_s)
                for _ in range(20):
                    there.append(moves.requests_on(ReplicaId("a")))
                    await asyncio.sleep(0.1)
            await asyncio.sleep(1)
            assert at_rest(running)
            assert all(engine.running == 0 for engine in engines.values())
            return calls, running

    calls, running = run_virtual(main())
    return calls, engines, running, there


def check_whole(calls: list[Call], bodies: list[dict[str, Any]]) -> None:
    for call, body in zip(calls, bodies, strict=True):
        assert call.events()[-1] == "[DONE]"
        assert call.text() == text_of(body, body["max_tokens"])


def test_a_dead_replica_is_left_at_once() -> None:
    """Every stream there goes on elsewhere, at whatever token it was; one that had not begun does, too."""
    bodies = [stream(f"call {n}", 40 + n) for n in range(6)]
    calls, engines, running, there = left(bodies, by_s=None)
    check_whole(calls, bodies)
    assert there[0] == 6
    assert there[1] == 0
    assert len(engines["b"].calls) == 6
    assert counted(running, "penstock_upstream_attempts_total", replica="a", outcome="moved") == 6


def test_who_will_be_done_in_time_stays() -> None:
    """Only those who would not be whole by then leave."""
    bodies = [stream("short", 40), stream("long", 3000), stream("longer", 3200)]
    calls, engines, running, there = left(bodies, by_s=5.0)
    check_whole(calls, bodies)
    assert len(engines["b"].calls) == 2
    assert counted(running, "penstock_stream_interruptions_total", action="resumed", mode="exact") == 2
    assert counted(running, "penstock_recomputed_tokens_total") > 0
    assert there[-1] == 0


def test_the_cheapest_prefill_leaves_first() -> None:
    """In the order of prompt and answer so far; one at a time, where there is one other replica."""
    bodies = [stream("word " * size, 3000) for size in (900, 30, 300)]
    calls, engines, _, _ = left(bodies, by_s=5.0)
    check_whole(calls, bodies)
    sizes = [len(json.loads(call.body)["prompt"]) for call in engines["b"].calls]
    assert sizes == sorted(sizes)


def test_nobody_is_cut_before_it_has_a_place() -> None:
    """With the only other replica full, streams stay where they are until there is room."""
    settings = fleet_config("a", "b", capacity={**CAPACITY, "max_num_seqs": 2}, queue={"max_wait_s": 60})
    bodies = [stream(f"call {n}", 400) for n in range(2)]
    engines = {name: breaking_simulated(settings, name) for name in ("a", "b")}

    async def main() -> list[Call]:
        loop = asyncio.get_running_loop()
        async with gateway_over(engines, settings) as running:
            scheduler, moves = running.gateway.scheduler, running.gateway.dispatcher.moves
            scheduler.set_lifecycle(ReplicaId("b"), Lifecycle.DRAINING, loop.time())
            calls = [post(running.app, CHAT, body) for body in bodies]
            others = [post(running.app, CHAT, stream(f"other {n}", 100)) for n in range(2)]
            async with asyncio.TaskGroup() as tasks:
                for call in calls:
                    tasks.create_task(call.run())
                await asyncio.sleep(0.2)
                scheduler.set_lifecycle(ReplicaId("b"), Lifecycle.READY, loop.time())
                scheduler.set_lifecycle(ReplicaId("a"), Lifecycle.DRAINING, loop.time())
                for call in others:
                    tasks.create_task(call.run())
                await asyncio.sleep(0.2)
                moves.move_off(ReplicaId("a"), by_s=loop.time() + 0.5)
                await asyncio.sleep(0.2)
                assert moves.requests_on(ReplicaId("a")) == 2
            assert at_rest(running)
            return calls

    calls = run_virtual(main())
    check_whole(calls, bodies)


def test_a_sooner_deadline_counts() -> None:
    """Who would have been done by the first word, and will not be by the second, leaves after all."""
    settings = fleet_config("a", "b", capacity=CAPACITY)
    engines = {name: breaking_simulated(settings, name) for name in ("a", "b")}
    bodies = [stream(f"call {n}", 1500) for n in range(3)]

    async def main() -> list[Call]:
        loop, a, b = asyncio.get_running_loop(), ReplicaId("a"), ReplicaId("b")
        async with gateway_over(engines, settings) as running:
            scheduler, moves = running.gateway.scheduler, running.gateway.dispatcher.moves
            scheduler.set_lifecycle(b, Lifecycle.DRAINING, loop.time())
            calls = [post(running.app, CHAT, body) for body in bodies]
            async with asyncio.TaskGroup() as tasks:
                for call in calls:
                    tasks.create_task(call.run())
                await asyncio.sleep(0.3)
                scheduler.set_lifecycle(b, Lifecycle.READY, loop.time())
                scheduler.set_lifecycle(a, Lifecycle.DRAINING, loop.time())
                moves.move_off(a, by_s=loop.time() + 3600)
                await asyncio.sleep(0.5)
                assert moves.requests_on(a) == 3
                moves.move_off(a, by_s=loop.time() + 1)
                await asyncio.sleep(1)
                assert moves.requests_on(a) == 0
            return calls

    check_whole(run_virtual(main()), bodies)


def test_an_answer_that_nobody_can_go_on_with_stays_as_long_as_it_may() -> None:
    """Two choices: while there is time it is not touched; when the time is over it ends with an error."""
    bodies = [stream("two", 60, n=2)]
    calls, engines, _, _ = left(bodies, by_s=0.01)
    assert calls[0].events()[-1] == "[DONE]"
    assert len(engines["b"].calls) == 0
    calls, _, _, _ = left(bodies, by_s=None)
    assert "error" in json.loads(calls[0].events()[-1])


def test_documents_are_asked_for_again() -> None:
    """An answer that is not streamed has nothing to be gone on with; its client sees a whole one."""
    bodies = [chat("a document", max_tokens=60, ignore_eos=True)]
    calls, engines, _, _ = left(bodies, by_s=None)
    assert calls[0].status == 200
    assert calls[0].json()["choices"][0]["message"]["content"] == text_of(bodies[0], 60)
    assert len(engines["b"].calls) == 1


def test_who_waits_in_the_middle_waits_for_a_replica_to_come_back() -> None:
    """The only replica is gone for a while: the stream goes on there when it is back."""
    settings = fleet_config("a", capacity=CAPACITY, probe={"interval_s": 0.5, "unhealthy_after": 1})
    engine = breaking_simulated(settings, "a", (10, "cut"))
    body = stream("alone", 40)

    async def main() -> Call:
        loop = asyncio.get_running_loop()
        async with gateway_over({"a": engine}, settings) as running:
            call = post(running.app, CHAT, body)
            task = loop.create_task(call.run())
            await call.until_chunks(5)
            running.gateway.scheduler.set_lifecycle(ReplicaId("a"), Lifecycle.DOWN, loop.time())
            await asyncio.sleep(3)
            assert not task.done()
            running.gateway.scheduler.set_lifecycle(ReplicaId("a"), Lifecycle.READY, loop.time())
            await task
            assert at_rest(running)
            return call

    check_whole([run_virtual(main())], [body])


def test_an_answer_that_has_its_finish_reason_is_whole() -> None:
    """Left between the last token and [DONE]: nobody goes on with it, and its client has its end."""
    engines = {"a": FakeEngine(Script(whole_stream()[:-1], hang=True)), "b": FakeEngine()}

    async def main() -> Call:
        async with gateway_over(engines) as running:
            call = post(running.app, CHAT, chat(stream=True))
            task = asyncio.get_running_loop().create_task(call.run())
            await asyncio.sleep(1)
            assert not task.done()
            running.gateway.dispatcher.moves.move_off(ReplicaId("a"), by_s=None)
            await task
            assert at_rest(running)
            return call

    call = run_virtual(main())
    assert call.text() == "w0 w1 w2 "
    assert call.events().count("[DONE]") == 1
    assert [len(engine.calls) for engine in engines.values()] == [1, 0]


def test_what_is_said_while_a_place_is_looked_for_counts() -> None:
    """Two choices that had said nothing when a place was asked for, and have when it is found: they stay."""
    settings = fleet_config("a", "b", capacity={**CAPACITY, "max_num_seqs": 2}, queue={"max_wait_s": 60})
    engines = {name: breaking_simulated(settings, name) for name in ("a", "b")}
    body = stream("word " * 600, 1500, n=2)

    async def main() -> Call:
        loop, a, b = asyncio.get_running_loop(), ReplicaId("a"), ReplicaId("b")
        async with gateway_over(engines, settings) as running:
            scheduler, moves = running.gateway.scheduler, running.gateway.dispatcher.moves
            scheduler.set_lifecycle(b, Lifecycle.DRAINING, loop.time())
            call, other = post(running.app, CHAT, body), post(running.app, CHAT, stream("other", 60))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(call.run())
                await asyncio.sleep(0.01)
                scheduler.set_lifecycle(b, Lifecycle.READY, loop.time())
                scheduler.set_lifecycle(a, Lifecycle.DRAINING, loop.time())
                tasks.create_task(other.run())
                await asyncio.sleep(0.01)
                assert moves.requests_on(b) == 1
                assert not call.chunks
                moves.move_off(a, by_s=loop.time() + 5)
            assert at_rest(running)
            return call

    call = run_virtual(main())
    assert call.events()[-1] == "[DONE]"
    assert len(engines["b"].calls) == 1
