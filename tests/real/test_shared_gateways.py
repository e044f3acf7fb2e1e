"""Several gateways as processes of their own, over one Redis and the same engines, in trouble of every kind: no engine ever gets too much."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.support.gateway_process import serving
from tests.support.raw_http import ask, get, post
from tests.support.redis_server import RedisProcess
from tests.support.shared_fleet import (
    PATIENCE_S,
    SEQUENCES,
    WatchedEngine,
    configuration,
    gateways,
    load,
    share_of,
    shared_of,
    until_mode,
    until_share,
    until_shares_sum_to,
    watched_engine,
)
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.real

STATIC = 0.125
SETTLE_S = 6.0  # what a gateway that stands still has running is seen by nobody here: on a slow machine, too, it has ended by then


@asynccontextmanager
async def engines(number: int) -> AsyncIterator[list[WatchedEngine]]:
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(watched_engine()) for _ in range(number)]
        yield found
        for engine in found:
            assert engine.most <= SEQUENCES, "over-admission"


def sections(redis: RedisProcess, number: int, **changes: object) -> list[dict[str, object]]:
    return [{"url": redis.url, "name": f"g{i}", **changes} for i in range(number)]


@pytest.mark.parametrize("number", [2, 4])
async def test_no_engine_gets_more_than_it_can_run(redis_process: RedisProcess, tmp_path: Path, number: int):
    """All gateways have far more work than there is room for: the engines are full, and never over-full; nobody fails, nobody starves."""
    async with engines(2) as fleet, gateways(tmp_path, fleet, sections(redis_process, number)) as all_:
        async with load({gateway.url: 24 for gateway in all_}) as clients:
            await clients.until_served(40, *(gateway.url for gateway in all_))
            async with asyncio.timeout(PATIENCE_S):
                while any(engine.most <= 0.8 * SEQUENCES for engine in fleet):
                    await asyncio.sleep(0.05)
        assert clients.failures == []
        await until_shares_sum_to(all_, 0.0)


async def test_what_a_killed_gateway_held_is_the_others(redis_process: RedisProcess, tmp_path: Path):
    """All but its static share; that too, at once, when it is started again under its name. Its own clients' next tries succeed."""
    async with engines(1) as fleet, gateways(tmp_path, fleet, sections(redis_process, 2)) as (first, second):
        async with load({first.url: 20, second.url: 20}, tokens=120) as clients:
            await clients.until_served(10, first.url, second.url)
            second.kill()
            await until_share(first, 1 - STATIC - 1e-3)
            assert all(second.url in failure for failure in clients.failures)
            path = configuration(tmp_path / "again.yaml", fleet, sections(redis_process, 2)[1])
            async with serving(path) as again:
                await until_mode(again, "redis", gateways=2)
                async with load({again.url: 20}) as more:
                    await more.until_served(10, again.url)
                assert more.failures == []
                await clients.until_served(10, first.url)
                clients.ended = True
        assert clients.served[first.url] >= 20


async def test_without_redis_nobody_fails(redis_process: RedisProcess, tmp_path: Path):
    """It stands still under load: first the last shares hold, then the static ones; when it goes on all is exact again."""
    async with engines(1) as fleet, gateways(tmp_path, fleet, sections(redis_process, 2)) as all_:
        async with load({gateway.url: 12 for gateway in all_}) as clients:
            await clients.until_served(10, *(gateway.url for gateway in all_))
            redis_process.freeze()
            for gateway in all_:
                await until_mode(gateway, "static")
            held = [await share_of(gateway) for gateway in all_]
            assert all(0 < share <= STATIC for share in held)
            await clients.until_served(10, *(gateway.url for gateway in all_))
            assert (await ask(all_[0].url, get("/readyz"))).status == 200
            redis_process.thaw()
            for gateway in all_:
                await until_mode(gateway, "redis", gateways=2)
            await until_shares_sum_to(all_, 0.9)
        assert clients.failures == []
    assert all("without Redis" in gateway.log for gateway in all_)


async def test_a_redis_that_has_lost_everything(redis_process: RedisProcess, tmp_path: Path):
    """It is killed and comes back empty, under load: nobody is raised before all have been heard; then all is exact again."""
    async with engines(1) as fleet, gateways(tmp_path, fleet, sections(redis_process, 3)) as all_:
        async with load({gateway.url: 12 for gateway in all_}) as clients:
            await clients.until_served(10, *(gateway.url for gateway in all_))
            for pause_s in (0.1, 2.5):
                redis_process.kill()
                await asyncio.sleep(pause_s)
                redis_process.start()
                for gateway in all_:
                    await until_mode(gateway, "redis", gateways=3)
                await until_shares_sum_to(all_, 0.9)
        assert clients.failures == []


async def test_one_that_is_cut_off_keeps_its_static_share(redis_process: RedisProcess, tmp_path: Path):
    """The others have the rest; both serve on; when the way is free again it has its part again."""
    async with engines(1) as fleet, TcpProxy(redis_process.port) as proxy:
        cut = {"url": f"redis://127.0.0.1:{proxy.port}/0", "name": "g1"}
        async with gateways(tmp_path, fleet, [*sections(redis_process, 1), cut]) as (first, second):
            async with load({first.url: 20, second.url: 20}) as clients:
                await asyncio.sleep(3)
                proxy.silence()
                await until_share(first, 1 - STATIC - 1e-3)
                assert (await shared_of(second))["mode"] == "static"
                assert await share_of(second) <= STATIC
                await asyncio.sleep(2)
                proxy.heal()
                await until_mode(second, "redis", gateways=2)
                await until_share(second, 0.3)
            assert clients.failures == []
            assert min(clients.served.values()) > 20


async def test_a_gateway_that_was_stopped_places_nothing_on_an_old_lease(redis_process: RedisProcess, tmp_path: Path):
    """SIGSTOP for longer than its lease, in the middle of placing: its first act is to look at the clock, and what it has placed and not sent is not sent."""
    async with (
        engines(1) as fleet,
        gateways(tmp_path, fleet, sections(redis_process, 2, settle_s=SETTLE_S)) as (first, second),
    ):
        async with load({second.url: 30}) as held:
            await held.until_served(10, second.url)
            async with load({first.url: 30}) as clients:
                await fleet[0].until_it_fills()
                second.signal(signal.SIGSTOP)
                await until_share(first, 1 - STATIC - 1e-3)
                await clients.until_served(30, first.url)
                second.signal(signal.SIGCONT)
                await until_mode(second, "redis", gateways=2)
                await held.until_served(30, second.url)
            assert clients.failures == []
        assert held.failures == []


async def test_one_is_told_and_all_know(redis_process: RedisProcess, tmp_path: Path):
    """A drain at one gateway empties the replica at all; one that starts later knows; one restore ends it everywhere."""
    async with engines(2) as fleet, gateways(tmp_path, fleet, sections(redis_process, 2)) as (first, second):
        async with load({first.url: 4, second.url: 4}) as clients:
            await clients.until_served(4, first.url, second.url)
            answer = await ask(first.url, post("/admin/replicas/e1/drain", {"deadline_s": 600}))
            assert answer.status == 200
            await until_replica(second.url, "lifecycle", "draining")
            await until_replica(second.url, "released", True)
            await until_replica(first.url, "released", True)
            left_s = (await replica(first.url))["deadline_unix_s"] - (await replica(second.url))["deadline_unix_s"]
            assert abs(left_s) < 1
            path = configuration(tmp_path / "late.yaml", fleet, {"url": redis_process.url, "name": "late"})
            async with serving(path) as late:
                await until_replica(late.url, "lifecycle", "draining")
                given = fleet[1].added
                await asyncio.sleep(1)
                assert fleet[1].added == given
                assert (await ask(late.url, post("/admin/replicas/e1/restore", {}))).status == 200
                for url in (first.url, second.url, late.url):
                    await until_replica(url, "lifecycle", "ready")
        assert clients.failures == []


async def replica(url: str, name: str = "e1") -> dict[str, object]:
    found: dict[str, object] = (await ask(url, get(f"/admin/replicas/{name}"))).json()
    return found


async def until_replica(url: str, key: str, wanted: object) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await replica(url))[key] != wanted:
            await asyncio.sleep(0.05)
