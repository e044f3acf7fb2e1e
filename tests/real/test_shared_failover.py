"""A master of Redis dies under load and its replica takes over: gateways follow, nothing is given twice; workers stand on the book, too."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.real.conftest import RedisServer
from tests.real.test_shared_gateways import engines
from tests.support.gateway_process import serving
from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port
from tests.support.raw_http import ask, get
from tests.support.redis_server import RedisProcess
from tests.support.scrape import from_page
from tests.support.shared_fleet import configuration, gateways, load, until_mode, until_shares_sum_to

pytestmark = pytest.mark.real

SENTINEL = """port {port}
dir {folder}
sentinel monitor penstock 127.0.0.1 {master} 1
sentinel down-after-milliseconds penstock 4000
sentinel failover-timeout penstock 3000
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RedisProcess, RedisProcess]]:
    """A master and its replica."""
    master = RedisProcess(tmp_path)
    replica = RedisProcess(tmp_path, "--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0")
    master.start()
    replica.start()
    yield master, replica
    master.kill()
    replica.kill()


@pytest.fixture
def sentinel(tmp_path: Path, pair: tuple[RedisProcess, RedisProcess]) -> Iterator[int]:
    """Watches them; its port."""
    binary, port = shutil.which("redis-server"), free_port()
    assert binary is not None
    path = tmp_path / "sentinel.conf"
    path.write_text(SENTINEL.format(port=port, folder=tmp_path, master=pair[0].port))
    with (tmp_path / "sentinel.log").open("wb") as log:
        process = subprocess.Popen([binary, str(path), "--sentinel"], stdout=log, stderr=log)
    yield port
    process.kill()
    process.wait()


async def until_it_knows_the_replica(port: int) -> None:
    async with asyncio.timeout(PATIENCE_S), Redis(port=port, decode_responses=True) as sentinel:
        while not any(one["master-link-status"] == "ok" for one in await sentinel.sentinel_slaves("penstock")):
            await asyncio.sleep(0.05)


async def page(url: str) -> str:
    return (await ask(url, get("/metrics"))).body.decode()


async def test_a_failover(pair: tuple[RedisProcess, RedisProcess], sentinel: int, tmp_path: Path):
    """The gateways find the new master by themselves; nobody fails, the engine is never over-full, and all is exact again."""
    where = {"master": "penstock", "nodes": [f"127.0.0.1:{sentinel}"]}
    sections = [{"sentinel": where, "name": f"g{i}"} for i in range(2)]
    await until_it_knows_the_replica(sentinel)
    async with engines(1) as fleet, gateways(tmp_path, fleet, sections) as all_:
        async with load({gateway.url: 16 for gateway in all_}) as clients:
            await clients.until_served(10, *(gateway.url for gateway in all_))
            pair[0].kill()
            for gateway in all_:
                await gateway.until_log("without Redis")  # it may be with it again by now
            for gateway in all_:
                await until_mode(gateway, "redis", gateways=2)
            await until_shares_sum_to(all_, 0.9)
            await clients.until_served(10, *(gateway.url for gateway in all_))
        assert clients.failures == []


async def test_a_report_that_no_replica_has_does_not_count(pair: tuple[RedisProcess, RedisProcess], tmp_path: Path):
    """A master that its replica cannot hear renews nobody's lease: another may have been made master."""
    async with engines(1) as fleet, gateways(tmp_path, fleet, [{"url": pair[0].url, "wait_replicas": 1}]) as (gateway,):
        pair[1].freeze()
        await until_mode(gateway, "static")
        assert from_page(await page(gateway.url), "penstock_redis_errors_total") > 0
        pair[1].thaw()
        await until_mode(gateway, "redis")


async def test_workers_are_holders(redis_server: RedisServer, tmp_path: Path):
    """Two gateways of two workers: four holders share one engine, which is full and never over-full; the page of all says so."""
    async with engines(1) as fleet:
        paths = [
            configuration(
                tmp_path / f"g{i}.yaml", fleet, {"url": redis_server.url, "name": f"g{i}", "prefix": "workers"}
            )
            for i in range(2)
        ]
        async with serving(paths[0], "--workers", "2") as first, serving(paths[1], "--workers", "2") as second:
            for gateway in (first, second):
                await until_mode(gateway, "redis", gateways=4)
            # Of two workers' shares a page has the sum.
            await until_shares_sum_to([first, second], 0.9)
            async with load({first.url: 20, second.url: 20}) as clients:
                await clients.until_served(30, first.url, second.url)
            assert clients.failures == []
            async with asyncio.timeout(PATIENCE_S):
                while from_page(await page(first.url), "penstock_shared_budget_state", state="redis") != 2:
                    await asyncio.sleep(0.05)
