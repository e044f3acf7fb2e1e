"""What one worker has against a replica is heard by the others: over the supervisor's lines, and by whole workers before a frozen engine."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backends.simulated.options import EngineOptions
from backends.simulated.server import create_engine_app
from batching.shares import HolderId
from config.usage import Usage
from router.usage_book import UsageBook
from router.workers.hub import Hub
from router.workers.wire import Heard, Hello, Said, send, to_worker
from tests.support.asgi import chat
from tests.support.gateway_process import serving
from tests.support.raw_http import ask, get, post
from tests.support.scrape import from_page
from tests.support.servers import served
from tests.support.two_workers import PATIENCE_S

CHAT = "/v1/chat/completions"


class Line:
    """A worker's end, and what it has heard on the topic `t`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def heard(self, wanted: list[bytes]) -> Mapping[HolderId, bytes]:
        """The first word in which the others say just this."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                message = await to_worker(self._reader)
                if isinstance(message, Heard) and message.topic == "t" and sorted(message.by.values()) == wanted:
                    return message.by


async def line(path: Path, seat: int) -> Line:
    found = Line(*await asyncio.open_unix_connection(path))
    send(found.writer, Hello(seat))
    return found


async def test_what_a_worker_says_the_others_hear(tmp_path: Path) -> None:
    """At once, under a name of its own; who comes later hears it, too; and who is gone has said nothing."""
    hub = Hub(3, lambda _seat, _banner: None, UsageBook(Usage(), started_unix_s=0))
    await hub.serve(tmp_path / "hub")
    first, second = await line(tmp_path / "hub", 1), await line(tmp_path / "hub", 2)
    send(first.writer, Said("t", b"one"))
    assert await second.heard([b"one"])
    send(second.writer, Said("t", b"two"))
    assert await first.heard([b"two"])
    late = await line(tmp_path / "hub", 3)
    by = await late.heard([b"one", b"two"])
    assert len(by) == 2
    send(first.writer, Said("t", b""))
    assert await late.heard([b"", b"two"])
    second.writer.close()
    assert await late.heard([b""])
    first.writer.close()
    late.writer.close()
    await hub.close()


class Silent:
    """An engine's application; while `silent`, nothing comes of what it is asked to generate, and its looks are fine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.speaks = asyncio.Event()
        self.speaks.set()
        self.said = 0  # parts of answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def said(message: Message) -> None:
            await self.speaks.wait()
            self.said += 1
            await send(message)

        await self._app(scope, receive, said if scope.get("method") == "POST" else send)


@asynccontextmanager
async def silent_engine() -> AsyncIterator[tuple[Silent, str]]:
    app = Silent(create_engine_app(EngineOptions(max_model_len=32_768)))
    async with served(app, graceful_s=1) as url:
        try:
            yield app, url
        finally:
            app.speaks.set()


async def test_a_worker_asks_because_another_doubts(tmp_path: Path) -> None:
    """One worker's stream falls silent: the other, which has none, asks the engine for a token because of it."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(silent_engine()) for _ in range(2)]
        replicas = [{"name": f"e{i}", "url": url, "gpu": {"type": "H100-80G"}} for i, (_, url) in enumerate(engines)]
        path = tmp_path / "penstock.yaml"
        path.write_text(json.dumps({"replicas": replicas, "server": {"drain_timeout_s": 1}}))
        gateway = await stack.enter_async_context(serving(path, "--workers", "2"))
        body = chat("Hello", model="sim-8b", stream=True, max_tokens=30_000, ignore_eos=True)
        stream = asyncio.get_running_loop().create_task(ask(gateway.url, post(CHAT, body)))
        async with asyncio.timeout(4 * PATIENCE_S):
            while not (busy := [app for app, _ in engines if app.said > 20]):
                await asyncio.sleep(0.05)
            busy[0].speaks.clear()
            while not await doubted_by_hearsay(gateway.url):
                await asyncio.sleep(0.2)
        stream.cancel()


async def doubted_by_hearsay(url: str) -> float:
    page = (await ask(url, get("/metrics"))).body.decode()
    return from_page(page, "penstock_replica_suspicions_total", reason="other_gateway")
