"""Engines that refuse, break, stall or talk nonsense over real HTTP: what the client is told, and that nothing stays behind."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from config.schema import Config
from tests.support.asgi import chat
from tests.support.conditions import until, until_at_rest
from tests.support.fake_engine import DONE, chunk, sse, usage_chunk
from tests.support.faulty_engine import engine_with, error, events, sends
from tests.support.gateways import Running, listening
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import Answer, ask, connected, post
from tests.support.scripted_server import Peer, Script, ScriptedServer, answer

CHAT = "/v1/chat/completions"
STREAM = post(CHAT, chat(stream=True))
DOCUMENT = post(CHAT, chat())


@asynccontextmanager
async def over(*faults: Script, **upstream: object) -> AsyncIterator[tuple[Running, list[ScriptedServer]]]:
    """A gateway in front of one engine for each fault, tried in their order: the cheapest first. What has begun ends where it breaks."""
    servers = [engine_with(fault) for fault in faults]
    for server in servers:
        await server.__aenter__()
    replicas = [
        {"name": f"r{i}", "url": server.url, "cost": {"tier": "on_demand", "usd_per_hour": i + 1}}
        for i, server in enumerate(servers)
    ]
    config = Config.model_validate({"replicas": replicas, "upstream": upstream, "migration": {"mode": "off"}})
    try:
        async with listening(config) as running:
            yield running, servers
            await until_at_rest(running)
    finally:
        for server in servers:
            await server.__aexit__(None, None, None)


async def told(request: bytes, *faults: Script, **upstream: object) -> Answer:
    async with over(*faults, **upstream) as (running, _):
        return await ask(running.url, request)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (error("400 Bad Request", "This model's maximum context length is 4096 tokens."), 400, "context_length_exceeded"),
        (error("429 Too Many Requests", "slow down", "retry-after: 7\r\n"), 429, "rate_limit_exceeded"),
        (error("500 Internal Server Error", "Traceback (most recent call last): ..."), 502, "upstream_error"),
        (error("503 Service Unavailable", "The engine is currently busy"), 503, "engine_overloaded"),
        (sends(answer(b"<html>oops", status="502 Bad Gateway")), 502, "upstream_error"),
    ],
    ids=["400", "429", "500", "503", "502 without JSON"],
)  # fmt: skip
async def test_engine_refuses(fault: Script, status: int, code: str) -> None:
    """An engine's status reaches streams and documents alike as an OpenAI error, its Retry-After with it."""
    async with over(fault) as (running, _):
        for request in (STREAM, DOCUMENT):
            said = await ask(running.url, request)
            assert (said.status, said.error["code"]) == (status, code)
            if status == 429:
                assert said.headers["retry-after"] == "7"
            if status == 503:
                assert int(said.headers["retry-after"]) >= 1


async def test_engine_that_refuses_is_passed_over() -> None:
    """A 503 of one replica is not the client's: another answers, and the headers say that it took two attempts."""
    whole = events(chunk("hi", finish="stop"), DONE)
    async with over(error("503 Service Unavailable", "busy"), whole) as (running, _):
        said = await ask(running.url, STREAM)
    assert said.events()[-1] == "[DONE]"
    assert (said.headers["x-penstock-replica"], said.headers["x-penstock-attempts"]) == ("r1", "2")


async def test_engine_that_is_not_there() -> None:
    """A connection refused is tried elsewhere; where nobody else is, it is a 502."""
    async with over(events(chunk("hi", finish="stop"), DONE)) as (running, servers):
        assert (await ask(running.url, STREAM)).events()[-1] == "[DONE]"
        await servers[0].__aexit__(None, None, None)
        said = await ask(running.url, STREAM)
        assert (said.status, said.error["type"]) == (502, "server_error")
        await until(lambda: {state.lifecycle for state in running.gateway.scheduler.states(0.0)} == {"down"})
        assert (await ask(running.url, STREAM)).error["code"] == "no_capacity"


async def test_engine_error_in_the_stream() -> None:
    """An error event after some text passes in OpenAI's shape, cleaned, as the last event; there is no [DONE]."""
    broken = {"error": {"message": "EngineCore at 10.0.0.7:8000 died", "type": "InternalServerError", "code": 500}}
    said = await told(STREAM, events(chunk("some "), sse(broken), DONE))
    assert said.status == 200
    assert said.events()[-1]["error"]["code"] == "upstream_error"
    assert b"10.0.0.7" not in said.body
    assert b"[DONE]" not in said.body


async def test_engine_that_never_answers() -> None:
    """Accepted and silent, before or after the answer's head: a 504 that is not retried elsewhere for another such time."""

    async def silent(peer: Peer) -> None:
        await peer.gone()

    async def head_only(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await peer.gone()

    for fault in (silent, head_only):
        async with over(fault, fault, first_byte_timeout_s=0.2) as (running, _):
            for request in (STREAM, DOCUMENT):
                said = await ask(running.url, request)
                assert (said.status, said.error["code"]) == (504, "timeout")
                assert said.headers["x-should-retry"] == "false"
            assert running.metric("penstock_upstream_attempts_total", outcome="timeout") == 2


async def test_engine_that_stalls() -> None:
    """Silence in the middle of a stream ends it with an error event after `stall_timeout_s`."""

    async def stalls(peer: Peer) -> None:
        await events(chunk("some "), end=False)(peer)
        await peer.gone()

    said = await told(STREAM, stalls, stall_timeout_s=0.2)
    assert [("error" in event) for event in said.events()] == [False, True]


async def test_malformed_sse() -> None:
    """Nonsense in a stream is an error to the client, not something for its parser to choke on."""
    garbage = (b"data: {broken\n\n", b"data: [1, 2]\n\n", b'data: {"choices": "none"}\n\n', b"data: \xff\xfe\n\n")
    scripts = iter(events(chunk("some "), nonsense, chunk("more", finish="stop"), DONE) for nonsense in garbage)

    async def next_script(peer: Peer) -> None:
        await next(scripts)(peer)

    async with over(next_script) as (running, _):
        for nonsense in garbage:
            said = await ask(running.url, STREAM)
            assert said.events()[-1]["error"]["code"] == "upstream_error"
            assert nonsense[6:-2] not in said.body


async def test_malformed_document() -> None:
    """A document that is none is tried elsewhere."""
    good = answer(
        json.dumps(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
             "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}]}
        ).encode(),
        headers="content-type: application/json\r\n",
    )  # fmt: skip
    said = await told(DOCUMENT, sends(answer(b'{"choices": [')), sends(good))
    assert said.json()["choices"][0]["message"]["content"] == "hello"
    assert said.headers["x-penstock-attempts"] == "2"


async def test_engine_that_closes_in_mid_chunk() -> None:
    """A connection lost inside a chunk is an error event: nothing half is forwarded, and no bare end."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    first = chunk("some ")
    said = await told(STREAM, sends(head, b"%x\r\n%b\r\n" % (len(first), first), b"ff\r\ndata: {", then_close=True))
    assert [("error" in event) for event in said.events()] == [False, True]
    assert said.body.count(b"data: ") == 2


async def test_engine_that_ends_without_a_finish_reason() -> None:
    """A well-framed end in the middle of a sentence is not passed off as the whole answer."""
    for tail in ((), (DONE,), (usage_chunk(1, 1), DONE)):
        said = await told(STREAM, events(chunk("some "), *tail))
        assert "error" in said.events()[-1]
        assert b"[DONE]" not in said.body


async def test_engine_that_never_stops_its_document() -> None:
    """An answer without end does not fill the gateway's memory."""

    async def endless(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n")
        while True:
            await peer.send(b" " * 2**20)

    said = await told(DOCUMENT, endless)
    assert (said.status, said.error["code"]) == (502, "upstream_error")


async def test_engine_that_is_aborted() -> None:
    """A client that hangs up closes the engine's connection: that is how an engine learns to stop."""
    gone = asyncio.Event()

    async def endless(peer: Peer) -> None:
        await events(chunk("some "), end=False)(peer)
        await peer.gone()
        gone.set()

    async with over(endless) as (running, _):
        async with connected(running.url) as client:
            await client.send(STREAM)
            await client.head()
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()
        await until_at_rest(running)
        assert running.metric("penstock_requests_total", status="499") == 1
