"""A master of Redis dies under load and its replica takes over: gateways follow, nothing is given twice; workers stand on the book, too."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.conftest import RedisServer
from tests.real.test_shared_gateways import engines
from tests.support.engine_process import free_port
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.raw_http import ask, get
from tests.support.redis_server import RedisProcess
from tests.support.scrape import from_page
from tests.support.shared_fleet import PATIENCE_S, configuration, gateways, load, share_of, until_mode

pytestmark = pytest.mark.real

SENTINEL = """port {port}
dir {folder}
sentinel monitor penstock 127.0.0.1 {master} 1
sentinel down-after-milliseconds penstock 800
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


async def until_whole(all_: list[GatewayProcess]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while sum([await share_of(gateway) for gateway in all_]) < 0.9:
            await asyncio.sleep(0.05)


async def test_a_failover(pair: tuple[RedisProcess, RedisProcess], sentinel: int, tmp_path: Path):
    """The gateways find the new master by themselves; nobody fails, the engine is never over-full, and all is exact again."""
    where = {"master": "penstock", "nodes": [f"127.0.0.1:{sentinel}"]}
    sections = [{"sentinel": where, "name": f"g{i}"} for i in range(2)]
    await asyncio.sleep(2)  # until the Sentinel knows the replica
    async with engines(1) as fleet, gateways(tmp_path, fleet, sections) as all_:
        async with load({gateway.url: 16 for gateway in all_}) as clients:
            await asyncio.sleep(4)
            pair[0].kill()
            for gateway in all_:
                await until_mode(gateway, "last_lease", "static")
            for gateway in all_:
                await until_mode(gateway, "redis", gateways=2)
            await until_whole(all_)
            await asyncio.sleep(1)
        assert clients.failures == []


async def test_a_report_that_no_replica_has_does_not_count(pair: tuple[RedisProcess, RedisProcess], tmp_path: Path):
    """A master that its replica cannot hear renews nobody's lease: another may have been made master."""
    async with engines(1) as fleet, gateways(tmp_path, fleet, [{"url": pair[0].url, "wait_replicas": 1}]) as (gateway,):
        pair[1].freeze()
        await until_mode(gateway, "static")
        text = (await ask(gateway.url, get("/metrics"))).body.decode()
        assert from_page(text, "penstock_redis_errors_total") > 0
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
            await until_whole([first, second])
            async with load({first.url: 20, second.url: 20}) as clients:
                await asyncio.sleep(4)
            assert clients.failures == []
            text = (await ask(first.url, get("/metrics"))).body.decode()
            assert from_page(text, "penstock_shared_budget_state", state="redis") == 2
