"""A client that leaves at any point of its request's life leaves nothing: no ticket, no lease, no sequence in an engine."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.asgi import Call, chat, post
from tests.support.simulated_fleet import CHAT, Fleet, fleet, fleet_config
from tests.support.virtual_time import run_virtual

POINTS = 60
TOKENS = 40
# One slot: while the other stream runs, the victim waits in the queue.
ONE_SLOT = {"max_num_seqs": 1, "kv_blocks": 64, "max_num_batched_tokens": 2048, "max_model_len": 1024}


class Leaving(Call):
    """Hangs up at its n-th call of `receive` or `send`."""

    leaves_at = 0
    interactions = 0

    def _interact(self) -> None:
        self.interactions += 1
        if self.interactions == self.leaves_at:
            self.hang_up()

    async def _receive(self) -> dict[str, Any]:
        self._interact()
        return await super()._receive()

    async def _send(self, message: dict[str, Any]) -> None:
        self._interact()
        await super()._send(message)


def request(app: Any, *, stream: bool) -> Leaving:
    made = post(app, CHAT, chat(stream=stream, max_tokens=TOKENS, ignore_eos=True))
    return Leaving(app, CHAT, made.body)


async def at_interaction(victim: Leaving, number: int) -> None:
    victim.leaves_at = number
    await victim.run()


async def at_loop_step(victim: Leaving, number: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(victim.run())
        for _ in range(number):
            await asyncio.sleep(0)
        victim.hang_up()


async def at_time(victim: Leaving, number: int) -> None:
    """Over the queue, the prefill and most of the answer: some 10 ms a token, the other stream first."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(victim.run())
        await asyncio.sleep(number * 0.013)
        victim.hang_up()


async def cancelled(victim: Leaving, number: int) -> None:
    """Not the client but the server ends it, as uvicorn does after the grace period."""
    task = asyncio.get_running_loop().create_task(victim.run())
    for _ in range(number):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def sweep(subject: Fleet, leave: Callable[[Leaving, int], Any], *, stream: bool, behind: bool) -> list[Leaving]:
    victims = []
    for number in range(1, POINTS + 1):
        victim = request(subject.running.app, stream=stream)
        async with asyncio.TaskGroup() as tasks:
            if behind:
                other = request(subject.running.app, stream=True)
                running = tasks.create_task(other.run())
                await other.until_chunks(1)
            await leave(victim, number)
            if behind:
                await running
                assert other.complete
        await subject.check_rest()
        victims.append(victim)
    return victims


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])
@pytest.mark.parametrize("behind", [False, True], ids=["alone", "behind another"])
@pytest.mark.parametrize("leave", [at_interaction, at_loop_step, at_time, cancelled])
def test_leaving_anywhere_leaves_nothing(leave: Callable[[Leaving, int], Any], behind: bool, stream: bool) -> None:
    """Whatever the point of leaving: queue empty, no lease, engine idle, and the next request is served."""

    async def main() -> None:
        async with fleet(fleet_config("a", capacity=ONE_SLOT)) as subject:
            victims = await sweep(subject, leave, stream=stream, behind=behind)
            left = [victim for victim in victims if not victim.complete]
            assert left, "the sweep must reach into the request's life"
            last = await request(subject.running.app, stream=stream).run()
            assert (last.status, last.complete) == (200, True)
            await subject.check_rest()

    run_virtual(main())
