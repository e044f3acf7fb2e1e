"""Digests of prefix caches through a real Redis: the script is the pure log, and processes come to believe the same."""

import asyncio
import logging
import random
from itertools import count

import pytest
import redis.asyncio

from batching.prefix_belief import PrefixBelief
from batching.prefix_log import PrefixLog
from batching.replica import Lifecycle
from batching.request import ReplicaId
from batching.scheduler import Scheduler
from config.schema import Queue, Scheduling
from config.shared import SharedRedis
from router.shared.prefixes import PrefixesInRedis, SharedPrefixes
from router.shared.seal import Seal
from tests.real.conftest import RedisServer
from tests.support.patience import PATIENCE_S
from tests.support.scheduling import profile

pytestmark = pytest.mark.real

A = ReplicaId("a")
NUMBERS = count()


def section(redis_server: RedisServer, **changes: object) -> SharedRedis:
    """A fleet of its own."""
    values = {"url": redis_server.url, "prefix": f"prefixes:{next(NUMBERS)}", "lease_s": 60, "timeout_s": 60, **changes}
    return SharedRedis.model_validate(values)


@pytest.mark.parametrize("seed", range(6))
async def test_the_script_is_the_log(redis_server: RedisServer, seed: int):
    """Some hundred exchanges of four processes, with pages, a full log and clocks that jump: every answer is the same."""
    random_, config = random.Random(seed), section(redis_server)
    keep, most = random_.choice(((2000, 300), (600, 5000), (10_000, 200)))
    pure = PrefixLog(keep, most)
    lines = {name: PrefixesInRedis(config, name) for name in ("one", "two", "three", "four")}
    after, now_ms = dict.fromkeys(lines, 0), 1_764_000_000_000
    for _ in range(400):
        now_ms += random_.choice((0, 1, 250, 900, -5000))
        name = random_.choice(tuple(lines))
        digest = random_.randbytes(random_.choice((0, 1, 40, 300)))
        asked = random_.choice((after[name],) * 8 + (0, now_ms + 10**6))
        expected = pure.exchange(now_ms, name, digest, asked)
        told = await lines[name].exchange(digest, asked, keep=keep, most=most, now_ms=now_ms)
        assert told == expected
        after[name] = told.after
    for line in lines.values():
        await line.aclose()


def belief() -> PrefixBelief:
    built = Scheduler(Scheduling(), Queue())
    built.add_replica(profile("a"), Lifecycle.READY, 0.0)
    return built.prefixes


async def until_believed(who: PrefixBelief, chunks: tuple[int, ...], wanted: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while who.matched(chunks).get(A, 0) != wanted:
            await asyncio.sleep(0.02)


async def test_processes_come_to_believe_the_same(redis_server: RedisServer):
    """Ten thousand chunks of one are the other's, and of one that comes when all has been told; an eviction goes the other way."""
    config, seal = section(redis_server), Seal(b"secret", "prefixes")
    believers = [belief() for _ in range(3)]
    shared = [SharedPrefixes(PrefixesInRedis(config, f"p{i}"), each, seal=seal) for i, each in enumerate(believers)]
    random_ = random.Random(1)
    prompts = [tuple(random_.getrandbits(64) for _ in range(500)) for _ in range(20)]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each.run()) for each in shared[:2]]
        for prompt in prompts:
            believers[0].correct(A, held=prompt)
        for prompt in prompts:
            await until_believed(believers[1], prompt, 500)
        running.append(tasks.create_task(shared[2].run()))
        for prompt in prompts:
            await until_believed(believers[2], prompt, 500)
        believers[1].correct(A, lost=prompts[0][100:])
        await until_believed(believers[0], prompts[0], 100)
        for task in running:
            task.cancel()
    for each in shared:
        await each.leave()
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        keys = [f"{{{config.prefix}}}:prefixes", f"{{{config.prefix}}}:prefixes-size"]
        assert sum([await client.memory_usage(key) or 0 for key in keys]) < 200_000
        assert all([0 < await client.pttl(key) <= 3_600_000 for key in keys])


async def test_what_redis_refuses_is_said_once(redis_server: RedisServer, caplog: pytest.LogCaptureFixture):
    """A user who may not touch streams: the log says which rights are missing, once, and the process goes on."""
    config = section(redis_server, username="prefixless", password="secret")
    failures: list[str] = []
    shared = SharedPrefixes(
        PrefixesInRedis(config, "p"), belief(), on_failure=lambda error: failures.append(error.kind)
    )
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        await client.execute_command("ACL", "SETUSER", "prefixless", "on", ">secret", "~*", "+@scripting")
        with caplog.at_level(logging.WARNING, "penstock.shared"):
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(shared.run())
                async with asyncio.timeout(PATIENCE_S):
                    while len(failures) < 2:
                        await asyncio.sleep(0.02)
                task.cancel()
        await client.execute_command("ACL", "DELUSER", "prefixless")
    await shared.leave()
    assert set(failures) == {"refused"}
    (record,) = caplog.records
    assert "+@stream" in record.getMessage()
