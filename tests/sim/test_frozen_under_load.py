"""An engine that freezes under its streams, everything wired: found by its silence, emptied, and nobody's answer is hurt."""

import asyncio

import pytest

from backends.simulated.bodies import chat_text
from backends.simulated.tokens import expected_text
from batching.request import ReplicaId
from tests.support.asgi import chat, post
from tests.support.simulated_fleet import CHAT
from tests.support.standing_fleet import standing_fleet
from tests.support.virtual_time import run_virtual

TOKENS = 600


@pytest.mark.parametrize("speed", [1.0, 0.1])
def test_a_frozen_engine_is_found_and_emptied(speed: float) -> None:
    """Within two seconds, or three of its steps where those take longer; all its streams end whole, elsewhere."""

    async def main() -> None:
        async with standing_fleet("a", "b", "c", speed=speed, recorded=False) as fleet:
            await fleet.teach()
            gateway, loop = fleet.running.gateway, asyncio.get_running_loop()
            moves, a = gateway.dispatcher.moves, ReplicaId("a")
            bodies = [chat(f"number {n}", stream=True, max_tokens=TOKENS, ignore_eos=True) for n in range(24)]
            calls = [post(fleet.running.app, CHAT, body) for body in bodies]
            async with asyncio.TaskGroup() as tasks:
                for call in calls:
                    tasks.create_task(call.run())
                await asyncio.sleep(2 / speed)
                there = moves.requests_on(a)
                step_s, _ = gateway.scheduler.next_step_s(a)
                fleet.engines["a"].stand()
                frozen_s = loop.time()
                while moves.requests_on(a):
                    await asyncio.sleep(0.01)
                assert there >= 4
                assert loop.time() - frozen_s <= max(2.0, 3 * step_s) + 0.02
                assert fleet.now("a") == "down"
            for call, body in zip(calls, bodies, strict=True):
                assert call.events()[-1] == "[DONE]"
                assert call.text() == expected_text(chat_text(body["messages"]), TOKENS)

    run_virtual(main())


def test_our_own_comments_are_no_sign_of_life() -> None:
    """What keeps proxies from cutting a silent stream says nothing of its engine."""

    async def main() -> None:
        async with standing_fleet("a", recorded=False, server={"keepalive_comment_s": 0.5}) as fleet:
            await fleet.teach()
            moves, loop = fleet.running.gateway.dispatcher.moves, asyncio.get_running_loop()
            call = post(fleet.running.app, CHAT, chat("alone", stream=True, max_tokens=TOKENS, ignore_eos=True))
            task = loop.create_task(call.run())
            await asyncio.sleep(1)
            fleet.engines["a"].stand()
            stood_s = loop.time()
            await asyncio.sleep(5)
            assert b": keep-alive" in call.data
            last_s = moves.last_bytes_s(ReplicaId("a"))
            assert last_s is not None
            assert last_s <= stood_s
            call.hang_up()
            await task

    run_virtual(main())
