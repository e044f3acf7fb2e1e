"""A tenant far beyond its limits that spreads over several gateways, and one within its own, in virtual time: one limit, and nobody notices."""

import asyncio
import json
from contextlib import AsyncExitStack
from math import ceil, inf
from random import Random
from typing import Any

import pytest

from tests.support.asgi import Call, chat
from tests.support.fake_book import FakeBook, Store
from tests.support.fake_engine import FakeEngine, Script, whole_stream
from tests.support.gateways import Running, gateway_over
from tests.support.tenants import asking, bearer, key_for
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"
SECONDS = 120.0
LIMIT = 60
ENGINES = ("a", "b")
ROOM = {
    "max_num_seqs": 64,
    "kv_blocks": 4096,
}  # so that no gateway has to ask others for a share: that is looked at elsewhere
BEGINS_S = 5.0  # a new book of shares gives nothing before


def played(gateways: int, abuse_per_s: float) -> tuple[list[float], list[float]]:
    """Seconds to the first token of the innocent's requests (inf: refused), and when those of the other were let in."""
    engines = {name: FakeEngine(default=lambda: Script(whole_stream(), head_s=1.0)) for name in ENGINES}
    limits = {"requests_per_minute": LIMIT, "concurrency": 3}
    store, waits, let_in = Store(), [], []

    async def one(running: Running, key: str) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        call = Call(running.app, CHAT, json.dumps(chat(stream=True)).encode(), headers=[bearer(key)])
        await call.run()
        if key == key_for("umbrella"):
            waits.append(call.chunks[0][0] - began_s if call.status == 200 else inf)
        elif call.status == 200:
            let_in.append(began_s - BEGINS_S)

    async def arrivals(all_: list[Running], tasks: Any, key: str, per_s: float, seed: int) -> None:
        random, loop = Random(seed), asyncio.get_running_loop()
        end_s = loop.time() + SECONDS
        while per_s and loop.time() < end_s:
            tasks.create_task(one(random.choice(all_), key))
            await asyncio.sleep(random.expovariate(per_s))

    async def main() -> None:
        async with AsyncExitStack() as stack:
            all_ = []
            for number in range(gateways):
                config = asking(
                    engines,
                    capacity=ROOM,
                    tenants=[{"name": "acme", "limits": limits}],
                    redis={"url": "redis://book:6379", "name": f"g{number}"},
                )
                book = FakeBook(store)
                all_.append(await stack.enter_async_context(gateway_over(engines, config, book=book)))
            await asyncio.sleep(BEGINS_S - asyncio.get_running_loop().time())
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(arrivals(all_, tasks, key_for("umbrella"), 1.0, seed=1))
                tasks.create_task(arrivals(all_, tasks, key_for("acme"), abuse_per_s, seed=2))

    run_virtual(main())
    return waits, let_in


def p99(values: list[float]) -> float:
    return sorted(values)[ceil(0.99 * len(values)) - 1]


@pytest.mark.parametrize("gateways", [2, 8])
def test_ten_times_the_limit_at_all_gateways_is_noticed_by_nobody(gateways: int):
    """Of ten times its limit the greedy tenant gets its limit within 1 % in each minute, and the other's p99 is as if it were alone."""
    alone, _ = played(gateways, 0.0)
    beside, let_in = played(gateways, 10 * LIMIT / 60)
    first = sum(1 for at in let_in if at < 60)
    assert 0.99 * LIMIT <= first <= LIMIT
    assert max(sum(1 for at in let_in if s <= at < s + 60) for s in let_in) <= LIMIT
    assert p99(beside) <= 1.01 * p99(alone)
