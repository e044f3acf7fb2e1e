"""A tenant far beyond its limits, and one within its own, at one replica in virtual time."""

import asyncio
import json
from math import ceil, inf
from random import Random
from typing import Any

from tests.support.asgi import Call, chat
from tests.support.fake_engine import FakeEngine, Script, whole_stream
from tests.support.gateways import Running, gateway_over
from tests.support.tenants import asking, bearer, key_for
from tests.support.virtual_time import run_virtual

SECONDS = 120.0
LIMIT = 60


def played(abuse_per_s: float, **limits: int) -> tuple[list[float], list[float]]:
    """Seconds to the first token of the innocent's requests (inf: refused), and when those of the other were let in."""
    engine = FakeEngine(default=lambda: Script(whole_stream(), head_s=1.0))
    config = asking({"a": engine}, tenants=[{"name": "acme", "limits": {"requests_per_minute": LIMIT} | limits}])
    waits: list[float] = []
    let_in: list[float] = []

    async def one(running: Running, key: str) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        call = Call(running.app, "/v1/chat/completions", json.dumps(chat(stream=True)).encode(), headers=[bearer(key)])
        await call.run()
        if key == key_for("umbrella"):
            waits.append(call.chunks[0][0] - began_s if call.status == 200 else inf)
        elif call.status == 200:
            let_in.append(began_s)

    async def arrivals(running: Running, tasks: Any, key: str, per_s: float, seed: int) -> None:
        random, loop = Random(seed), asyncio.get_running_loop()
        end_s = loop.time() + SECONDS
        while per_s and loop.time() < end_s:
            tasks.create_task(one(running, key))
            await asyncio.sleep(random.expovariate(per_s))

    async def main() -> None:
        async with gateway_over({"a": engine}, config) as running, asyncio.TaskGroup() as tasks:
            tasks.create_task(arrivals(running, tasks, key_for("umbrella"), 1.0, seed=1))
            tasks.create_task(arrivals(running, tasks, key_for("acme"), abuse_per_s, seed=2))

    run_virtual(main())
    return waits, let_in


def p99(values: list[float]) -> float:
    return sorted(values)[ceil(0.99 * len(values)) - 1]


def test_ten_times_the_limit_is_noticed_by_nobody():
    """Of ten times its limit the greedy tenant gets its limit within 1 % in each minute, and the other's p99 is as if it were alone."""
    alone, _ = played(0.0)
    beside, let_in = played(10 * LIMIT / 60, concurrency=3)
    assert p99(beside) <= 1.01 * p99(alone)
    first = sum(1 for at in let_in if at < 60)
    assert 0.99 * LIMIT <= first <= LIMIT


def test_without_limits_it_would_be_noticed():
    """The same pressure with no limit that binds makes the other wait: the test above can fail."""
    alone, _ = played(0.0)
    beside, _ = played(10 * LIMIT / 60, requests_per_minute=10**6)
    assert p99(beside) > 1.01 * p99(alone)
