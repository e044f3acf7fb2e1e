"""A client that leaves, or a gateway that ends it, at any point of a move: no lease, no place and no engine's work is left."""

import asyncio
from typing import Any

import pytest

from batching.replica import Lifecycle
from batching.request import ReplicaId
from tests.sim.test_streams_that_move import CAPACITY
from tests.support.asgi import Call, chat, post
from tests.support.breaking_engine import BreakingEngine, breaking_simulated
from tests.support.conditions import at_rest
from tests.support.gateways import Running, gateway_over
from tests.support.simulated_fleet import CHAT, fleet_config
from tests.support.virtual_time import run_virtual

STEPS = 40  # of the loop, from the break on: well into the next engine's answer
A, B = ReplicaId("a"), ReplicaId("b")
CONFIG = fleet_config("a", "b", capacity=CAPACITY, migration={"documents_from_tokens": 8})


async def broken(running: Running, engines: dict[str, BreakingEngine], call: Call) -> "asyncio.Task[Call]":
    """Its engine breaks it off at the fifth event."""
    del running
    engines["a"].breaks = [(5, "cut")]
    task = asyncio.get_running_loop().create_task(call.run())
    while not engines["a"].broken:
        await asyncio.sleep(0.001)
    return task


async def left(running: Running, engines: dict[str, BreakingEngine], call: Call) -> "asyncio.Task[Call]":
    """Its replica is to be gone long before it is done."""
    del engines
    loop = asyncio.get_running_loop()
    task = loop.create_task(call.run())
    await asyncio.sleep(0.3)
    running.gateway.scheduler.set_lifecycle(A, Lifecycle.DRAINING, loop.time())
    running.gateway.dispatcher.moves.move_off(A, by_s=loop.time() + 0.1)
    return task


async def swept(begin: Any, end: str, *, stream: bool, step: int) -> Call:
    engines = {name: breaking_simulated(CONFIG, name) for name in ("a", "b")}
    async with gateway_over(engines, CONFIG) as running:
        loop = asyncio.get_running_loop()
        running.gateway.scheduler.set_lifecycle(B, Lifecycle.DRAINING, loop.time())
        call = post(running.app, CHAT, chat("a mill", stream=stream, max_tokens=300, ignore_eos=True))
        loop.call_later(0.05, lambda: running.gateway.scheduler.set_lifecycle(B, Lifecycle.READY, loop.time()))
        task = await begin(running, engines, call)
        for _ in range(step):
            await asyncio.sleep(0)
        if end == "hangs up":
            call.hang_up()
        else:
            task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(1)
        assert at_rest(running)
        assert [engine.running for engine in engines.values()] == [0, 0]
        assert running.gateway.dispatcher.moves.requests_on(A) == running.gateway.dispatcher.moves.requests_on(B) == 0
        again = await post(running.app, CHAT, chat("another", max_tokens=4)).run()
        assert again.status == 200
        return call


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])
@pytest.mark.parametrize("end", ["hangs up", "cancelled"])
@pytest.mark.parametrize("begin", [broken, left])
def test_ending_anywhere_in_a_move_leaves_nothing(begin: Any, end: str, stream: bool) -> None:
    """At each of the loop's steps around the seam; and the next request is served."""
    calls = [run_virtual(swept(begin, end, stream=stream, step=step)) for step in range(STEPS)]
    assert not any(call.complete and b"[DONE]" in call.data for call in calls)
