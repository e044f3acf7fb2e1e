"""`penstock serve --workers 2` in front of a simulated engine, and a connection to each of the two."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from backends.simulated.options import EngineOptions
from backends.simulated.server import create_engine_app
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import RawClient, connected, get
from tests.support.servers import served


@asynccontextmanager
async def engine(**options: object) -> AsyncIterator[str]:
    """A simulated engine behind HTTP, which both workers send to; yields its URL."""
    values: dict[str, object] = {
        "model": "m",
        "kv_blocks": 4096,
        "max_model_len": 32_768,
        "max_num_seqs": 256,
        **options,
    }
    async with served(create_engine_app(EngineOptions(**values))) as url:  # type: ignore[arg-type]
        yield url


def write(folder: Path, url: str, *, name: str = "sim", max_num_seqs: int = 256, **server: object) -> Path:
    path = folder / "penstock.yaml"
    capacity = {"max_num_seqs": max_num_seqs}  # which no engine tells
    replicas = [{"name": name, "url": url, "gpu": {"type": "H100-80G"}, "capacity": capacity}]
    path.write_text(json.dumps({"server": server, "replicas": replicas, "probe": {"interval_s": 0.1}}))
    return path


@asynccontextmanager
async def two_workers(folder: Path, **options: object) -> AsyncIterator[GatewayProcess]:
    async with engine(**options) as url, serving(write(folder, url, drain_timeout_s=60), "--workers", "2") as gateway:
        yield gateway
    assert "Traceback" not in gateway.log


async def seat(client: RawClient) -> int:
    """Which worker has this connection."""
    found: int = (await client.ask(get("/readyz"))).json()["workers"]["answered_by"]
    return found


async def one_each(stack: AsyncExitStack, url: str) -> dict[int, RawClient]:
    """A connection to each worker; the kernel chooses, so that it may take some."""
    found: dict[int, RawClient] = {}
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < 2:
            client = await stack.enter_async_context(connected(url))
            found.setdefault(await seat(client), client)
    return found
