"""Two whole gateways, or workers, in front of two idle replicas, in virtual time: a prompt that one has just sent is known to the other."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from backends.simulated.backend import SimulatedBackend
from backends.simulated.options import EngineOptions
from tests.support.asgi import Call, chat, post
from tests.support.fake_book import FakeBook, Store
from tests.support.gateways import Running, gateway_over
from tests.support.lines_in_memory import sharing_as_workers
from tests.support.simulated_fleet import CHAT, fleet_config
from tests.support.virtual_time import run_virtual

NAMES = ("a", "b")
SETTLED_S = 4.0  # a new book gives nothing before
AFTER_A_REPORT_S = 0.1  # the next one comes when all is over
SOON_S = 0.06  # of several hundredths of a second that the prompt takes
LONG = " ".join(str(number) for number in range(4000))


@asynccontextmanager
async def two(how: str) -> AsyncIterator[list[Running]]:
    """`how`: over Redis, or over a supervisor's lines."""
    engines = {name: SimulatedBackend(EngineOptions(model="m", gpu="L4-24G", max_num_seqs=64)) for name in NAMES}
    store = Store()
    async with AsyncExitStack() as stack:
        found = []
        for number in range(2):
            redis = {"url": "redis://book", "name": f"g{number}"} if how == "redis" else {}
            config = fleet_config(*engines, capacity={"max_num_seqs": 64}, redis=redis)
            found.append(await stack.enter_async_context(gateway_over(engines, config, book=FakeBook(store))))
        if how == "workers":
            await stack.enter_async_context(sharing_as_workers(found))
        await asyncio.sleep(SETTLED_S)
        yield found


def ask(running: Running, text: str) -> Coroutine[Any, Any, Call]:
    return post(running.app, CHAT, chat(text, stream=True, max_tokens=4, ignore_eos=True)).run()


def seen(running: Running) -> dict[str, float]:
    """Seconds of others' prefill, by replica."""
    return {str(state.profile.id): state.share.others.prefill_s for state in running.gateway.scheduler.states(0.0)}


def went(running: Running) -> list[str]:
    return [str(record.replica) for record in running.gateway.decisions.ledger._ring]


@pytest.mark.parametrize("how", ["redis", "workers"])
def test_a_prompt_is_known_before_its_first_token(how: str):
    """The other takes the replica that is free; once the prompt is done nothing is held against the first any more."""

    async def main() -> tuple[dict[str, float], list[str], list[str], dict[str, float]]:
        async with two(how) as (first, second):
            await asyncio.sleep(AFTER_A_REPORT_S)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(ask(first, LONG))
                await asyncio.sleep(SOON_S)
                known = seen(second)
                tasks.create_task(ask(second, "Hello " + LONG))
            await asyncio.sleep(SOON_S)
            return known, went(first), went(second), seen(second)

    known, first, second, after = run_virtual(main())
    assert known[first[0]] > SOON_S
    assert set(first + second) == set(NAMES)
    assert sum(known.values()) == known[first[0]]
    assert set(after.values()) == {0.0}
