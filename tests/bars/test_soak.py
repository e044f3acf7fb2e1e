"""A gateway under churn for a quarter of an hour: memory, descriptors and counters come back to where they were."""

import asyncio
import random
from pathlib import Path

import httpx
import pytest

from tests.support.asgi import chat
from tests.support.gateway_process import GatewayProcess, started
from tests.support.scrape import metric

pytestmark = [pytest.mark.bars, pytest.mark.timeout(1500)]

CLIENTS = 200
WARM_UP_S, SOAK_S = 60.0, 900.0
# Allocators keep what a peak needed; a leak of 1 KiB a request would show as far more in these minutes.
RSS_GROWTH_LIMIT_BYTES = 24 * 2**20
DESCRIPTORS_LIMIT = 16


def rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def churn(http: httpx.AsyncClient, url: str, rng: random.Random, until_s: float) -> int:
    """One client: streams, documents, hang-ups and slow reading in turn; the number of whole streams."""
    loop, whole = asyncio.get_running_loop(), 0
    while loop.time() < until_s:
        body = chat(
            "x" * rng.randrange(2000), model="sim-8b", stream=rng.random() < 0.8, max_tokens=rng.randrange(1, 60)
        )
        leave_after = rng.randrange(5) if rng.random() < 0.3 else None
        async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            last, count = b"", 0
            async for data in response.aiter_raw():
                last, count = data, count + 1
                if leave_after is not None and count > leave_after:
                    break
                if rng.random() < 0.02:
                    await asyncio.sleep(0.5)
            whole += last.endswith(b"data: [DONE]\n\n")
    return whole


async def soak(gateway: GatewayProcess, seconds: float) -> int:
    until_s = asyncio.get_running_loop().time() + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120, limits=limits) as http:
        rngs = [random.Random(seed) for seed in range(CLIENTS)]
        return sum(await asyncio.gather(*(churn(http, gateway.url, rng, until_s) for rng in rngs)))


async def test_churn_leaves_nothing_behind() -> None:
    """After minutes of churn: no memory grows, no descriptor stays, nothing is in flight or leased."""
    async with started("--port", "0", "--log-level", "warning") as gateway:
        await gateway.listens()
        idle = descriptors(gateway.pid)
        await soak(gateway, WARM_UP_S)
        warm = rss_bytes(gateway.pid)
        whole = await soak(gateway, SOAK_S)
        await asyncio.sleep(3)
        page = f"{gateway.url}/metrics"
        figures = {
            "whole_streams": whole,
            "rss_growth_bytes": rss_bytes(gateway.pid) - warm,
            "descriptors_growth": descriptors(gateway.pid) - idle,
            "in_flight": await asyncio.to_thread(metric, page, "penstock_requests_in_flight"),
            "running": await asyncio.to_thread(metric, page, "penstock_replica_running"),
            "queued": await asyncio.to_thread(metric, page, "penstock_queue_depth"),
        }
        print(figures)
        gateway.kill()
    assert whole > 1000
    assert figures["rss_growth_bytes"] < RSS_GROWTH_LIMIT_BYTES
    assert figures["descriptors_growth"] < DESCRIPTORS_LIMIT
    assert (figures["in_flight"], figures["running"], figures["queued"]) == (0, 0, 0)
