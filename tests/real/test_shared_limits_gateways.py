"""A tenant's limits at several gateways as processes of their own over one Redis: one minute, one number of places, one sum of dollars."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.support.asgi import chat
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.raw_http import Answer, RawClient, ask, connected, post
from tests.support.redis_server import RedisProcess
from tests.support.shared_fleet import (
    CHAT,
    PATIENCE_S,
    WatchedEngine,
    configuration,
    shared_of,
    until_mode,
    watched_engine,
)
from tests.support.tenants import inline, key_for

pytestmark = pytest.mark.real


@asynccontextmanager
async def limited(
    folder: Path, redis: RedisProcess, limits: dict[str, float], workers: Sequence[int] = (1, 1), lease_s: float = 5
) -> AsyncIterator[list[GatewayProcess]]:
    """A gateway for each of `workers`; engines whose time costs a dollar a second. Nobody loses a lease for being slow."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(watched_engine())
        found: list[GatewayProcess] = []
        for number, of_it in enumerate(workers):
            path = _configuration(folder / f"g{number}.yaml", engine, redis, f"g{number}", limits, lease_s)
            gateway = await stack.enter_async_context(serving(path, "--workers", str(of_it)))
            await until_mode(gateway, "redis")
            await until_limits(gateway, "redis")
            found.append(gateway)
        yield found


async def until_limits(gateway: GatewayProcess, mode: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await shared_of(gateway))["limits"] != mode:
            await asyncio.sleep(0.05)


def _configuration(
    path: Path, engine: WatchedEngine, redis: RedisProcess, name: str, limits: dict[str, float], lease_s: float
) -> Path:
    auth = {"keys": [inline("acme")]}
    times = {"lease_s": lease_s, "timeout_s": lease_s / 3}
    section: dict[str, object] = {"url": redis.url, "name": name, "static_share_ratio": 0.25, **times}
    configuration(path, [engine], section, auth=auth, tenants=[{"name": "acme", "limits": limits}])
    told = json.loads(path.read_text())
    told["replicas"][0]["cost"] = {"usd_per_hour": 3600}
    path.write_text(json.dumps(told))
    return path


def request(tokens: int = 4, *, stream: bool = False) -> bytes:
    body = chat("Hello", stream=stream, max_tokens=tokens, ignore_eos=True)
    return post(CHAT, body, f"authorization: Bearer {key_for('acme')}")


async def let_in(gateways: Sequence[GatewayProcess], each: int) -> int:
    """Of so many requests at each, all at once."""
    answers = await asyncio.gather(*(ask(gateway.url, request()) for gateway in gateways for _ in range(each)))
    assert {answer.status for answer in answers} <= {200, 429}
    return sum(answer.status == 200 for answer in answers)


async def until_answered(url: str, wanted: int) -> Answer:
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await ask(url, request())).status != wanted:
            await asyncio.sleep(0.1)
    return answer


@asynccontextmanager
async def streaming(gateway: GatewayProcess) -> AsyncIterator[RawClient]:
    """One that has begun and does not end by itself."""
    async with connected(gateway.url) as client:
        await client.send(request(8000, stream=True))
        status, _ = await client.head()
        assert status == 200
        yield client


@pytest.mark.parametrize("workers", [(1, 1, 1), (2, 1)])
async def test_all_gateways_let_in_one_limit(redis_process: RedisProcess, tmp_path: Path, workers: Sequence[int]):
    """Far more is asked than the limit, at all of them, workers or not: just the limit is let in."""
    limit = 24
    async with limited(tmp_path, redis_process, {"requests_per_minute": limit}, workers) as all_:
        total = 0
        async with asyncio.timeout(PATIENCE_S):
            while total < limit:  # what one was lent and did not use comes back to the others
                total += await let_in(all_, 10)
        assert total == limit
        refused = await until_answered(all_[0].url, 429)
        assert refused.headers["x-ratelimit-limit-requests"] == str(limit)
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"


async def test_a_killed_gateway_s_places_come_back(redis_process: RedisProcess, tmp_path: Path):
    """All places are taken at one; the other has none, until the first is dead and its lease is over."""
    async with (
        limited(tmp_path, redis_process, {"concurrency": 2}) as (first, second),
        streaming(first),
        streaming(first),
    ):
        assert (await ask(second.url, request())).status == 429
        first.kill()
        await until_answered(second.url, 200)


async def test_without_redis_a_static_share_is_let_in(redis_process: RedisProcess, tmp_path: Path):
    """It stands still: nobody gets more than its share, nobody is refused all; when it goes on, what was let in meanwhile counts."""
    limit = 40
    async with limited(tmp_path, redis_process, {"requests_per_minute": limit}, lease_s=1.5) as all_:
        total = await let_in(all_, 1)
        redis_process.freeze()
        async with asyncio.timeout(PATIENCE_S):
            while any([(await shared_of(gateway))["limits"] != "static" for gateway in all_]):
                total += await let_in(all_, 1)
        assert total <= 2 * limit * 0.25 + len(all_)
        total += await let_in(all_, limit)
        assert len(all_) <= total <= limit
        redis_process.thaw()
        for gateway in all_:
            await until_limits(gateway, "redis")
        async with asyncio.timeout(PATIENCE_S):
            while total < limit:
                total += await let_in(all_, limit)
        assert total == limit


async def test_a_month_s_dollars_outlive_the_gateways(redis_process: RedisProcess, tmp_path: Path):
    """Spent at one, refused at the other; and after all have been started again, too."""
    limits = {"usd_per_month": 1e-6}
    async with limited(tmp_path, redis_process, limits) as (first, second):
        assert (await ask(first.url, request(60))).status == 200
        spent = await until_answered(second.url, 429)
        assert spent.error["code"] == "insufficient_quota"
    async with limited(tmp_path, redis_process, limits) as (first, second):
        for gateway in (first, second):  # where Redis' answer takes too long, a request may be let in before it
            assert (await until_answered(gateway.url, 429)).error["code"] == "insufficient_quota"
