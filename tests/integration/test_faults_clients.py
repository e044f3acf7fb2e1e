"""Clients that stop reading or leave all at once: memory stays bounded, upstreams are paused, nothing is kept running."""

import asyncio
import resource
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from config.schema import Config
from tests.support.asgi import chat
from tests.support.conditions import until, until_at_rest
from tests.support.fake_engine import FakeEngine, Script, chunk, document
from tests.support.faulty_engine import engine_with, events
from tests.support.gateways import fake_config, listening
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import RawClient, ask, connected, get, post
from tests.support.scripted_server import Peer

CHAT = "/v1/chat/completions"
STREAM = post(CHAT, chat(stream=True))
HANGING_UP = 1000


class Fountain:
    """Writes an endless stream as fast as the gateway takes it, and counts."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.closed = asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        await events(chunk("", role="assistant"), end=False)(peer)
        event = chunk("x" * 2000)
        framed = b"%x\r\n%b\r\n" % (len(event), event)
        try:
            while True:
                await peer.send(framed)
                self.sent_bytes += len(framed)
        finally:
            self.closed.set()


async def stopped_growing(fountain: Fountain) -> int:
    """Bytes sent, once it has sent nothing more for many turns of the loop."""
    quiet, before = 0, -1
    async with asyncio.timeout(PATIENCE_S):
        while quiet < 20:
            await asyncio.sleep(0.002)
            quiet = quiet + 1 if fountain.sent_bytes == before else 0
            before = fountain.sent_bytes
    return before


async def test_client_that_stops_reading() -> None:
    """The engine is paused, not buffered; others are served; after `write_stall_timeout_s` the engine is stopped.

    In flight are at most: the kernel's socket buffers on both sides (a few MiB each on loopback), asyncio's write buffers and
    `upstream.buffer_bytes`. An unbounded gateway would take hundreds of MB in the same time.
    """
    fountain = Fountain()
    async with engine_with(fountain) as engine:
        config = Config.model_validate(
            {
                "replicas": [{"name": "a", "url": engine.url}],
                "server": {"write_stall_timeout_s": 3},
                "upstream": {"buffer_bytes": 65536},
            }
        )
        async with listening(config) as gateway, connected(gateway.url, receive_buffer_bytes=4096) as client:
            await client.send(STREAM)
            await client.head()
            sent = await stopped_growing(fountain)
            assert sent < 32 * 2**20
            assert not fountain.closed.is_set()
            assert gateway.gateway.dispatcher.active == 1
            assert (await ask(gateway.url, get("/livez"))).status == 200
            async with asyncio.timeout(PATIENCE_S):
                await fountain.closed.wait()
            await until_at_rest(gateway)
            assert gateway.metric("penstock_client_disconnects_total") == 1
            assert gateway.metric("penstock_requests_total", status="499") == 1


async def test_client_that_never_reads_its_document() -> None:
    """A whole answer that nobody reads holds its connection for `write_stall_timeout_s`, not for ever."""
    engine = FakeEngine(Script([document("x" * 12 * 2**20)], content_type="application/json"))
    config = fake_config({"a": engine}, server={"write_stall_timeout_s": 0.3})
    async with listening(config, {"a": engine}) as gateway, connected(gateway.url, receive_buffer_bytes=4096) as client:
        await client.send(post(CHAT, chat()))
        await client.head()
        await until_at_rest(gateway)
        await until(lambda: gateway.connections == 0)
        assert len(await client.until_closed()) < 12 * 2**20


async def test_client_that_asks_again_without_reading() -> None:
    """A stream behind an answer that nobody reads pauses its engine, too: nothing is kept for such a client without end."""
    fountain = Fountain()
    async with engine_with(answers_then(document("x" * 4 * 2**20), fountain)) as engine:
        config = Config.model_validate(
            {"replicas": [{"name": "a", "url": engine.url}], "upstream": {"buffer_bytes": 65536}}
        )
        async with listening(config) as gateway, connected(gateway.url, receive_buffer_bytes=4096) as client:
            await client.send(post(CHAT, chat()))
            await client.head()
            await until(lambda: gateway.gateway.dispatcher.active == 0)
            await client.send(STREAM)
            await until(lambda: gateway.gateway.dispatcher.active == 1)
            assert await stopped_growing(fountain) < 32 * 2**20
            assert gateway.gateway.dispatcher.active == 1
        await until_at_rest(gateway)


def answers_then(first: bytes, rest: Fountain) -> Callable[[Peer], Coroutine[Any, Any, None]]:
    """A document for the first request, and the fountain for those that follow."""
    asked = 0

    async def play(peer: Peer) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            await rest(peer)
            return
        length = b"content-length: %d" % len(first)
        await peer.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%b\r\nconnection: close\r\n\r\n" % length, first
        )

    return play


async def test_slow_client_gets_everything() -> None:
    """A client that reads late but reads loses nothing: what waited is delivered in order."""
    words = [f"{i:06d} " for i in range(20_000)]
    engine = FakeEngine(Script([*(chunk(word) for word in words), chunk("", finish="stop")]))
    async with (
        listening(fake_config({"a": engine}), {"a": engine}) as gateway,
        connected(gateway.url, receive_buffer_bytes=4096) as client,
    ):
        await client.send(STREAM)
        await asyncio.sleep(0.2)
        answer = await client.answer()
    said = [choice["delta"].get("content") or "" for event in answer.events()[:-1] for choice in event["choices"]]
    assert "".join(said) == "".join(words)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of a thousand connections live in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * HANGING_UP + 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def crowd(many_files: None) -> AsyncIterator[list[RawClient]]:
    clients: list[RawClient] = []
    yield clients
    for client in clients:
        await client.close()


async def test_a_thousand_clients_hang_up_at_once(crowd: list[RawClient]) -> None:
    """Streaming, waiting in the queue or half-way through an answer: after they left nothing runs, waits or is leased."""
    engine = FakeEngine(default=lambda: Script([chunk("x")], hang=True))
    # Streams that hang fall behind any time per token; here nobody is to be kept waiting for their sake.
    config = fake_config(
        {"a": engine},
        {"max_num_seqs": 600, "kv_blocks": 10**6, "max_num_batched_tokens": 10**6},
        scheduling={"objectives": {"tpot_s": 3600}},
        queue={"max_wait_s": 600},
    )
    async with listening(config, {"a": engine}) as gateway:
        for number in range(HANGING_UP):
            crowd.append(await RawClient.connect(gateway.url))
            await crowd[-1].send(STREAM if number % 2 else post(CHAT, chat()))
        await until(lambda: gateway.gateway.dispatcher.active == HANGING_UP, lambda: gateway.gateway.scheduler)
        await until(lambda: engine.running == 600, lambda: gateway.gateway.scheduler)
        for client in crowd:
            client.reset()
        await until_at_rest(gateway)
        assert engine.running == 0
        assert gateway.metric("penstock_client_disconnects_total") == HANGING_UP
        engine.default = lambda: Script([chunk("hi", finish="stop")])
        assert (await ask(gateway.url, STREAM)).events()[-1] == "[DONE]"
