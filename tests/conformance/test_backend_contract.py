"""What `backends/backend.py` promises, kept by every backend: simulated, over HTTP, Triton's - and by the tests' own fake."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from backends.backend import EngineReply, ServedModel, UpstreamError
from backends.one_token import ask_one_token
from tests.support.backend_rigs import RIGS, WORDS, Rig
from tests.support.patience import PATIENCE_S


@pytest.fixture(params=RIGS)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with RIGS[request.param]() as made:
        yield made


async def read(reply: EngineReply) -> bytes:
    return await rest(reply.body())


async def rest(body: AsyncIterator[bytes]) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return b"".join([piece async for piece in body])


async def until_idle(rig: Rig) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await rig.busy():
            await asyncio.sleep(0.005)


async def until_busy(rig: Rig) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await rig.busy():
            await asyncio.sleep(0.005)


async def test_a_stream_is_openai_shaped(rig: Rig) -> None:
    """SSE: chunks of one id with a role, text and one finish reason, then usage, then [DONE]; the engine is done then."""
    reply = await rig.backend.send(rig.call())
    assert reply.status == 200
    assert reply.content_type.startswith("text/event-stream")
    body = await read(reply)
    await reply.aclose()
    assert body.endswith(b"data: [DONE]\n\n")
    chunks: list[dict[str, Any]] = [json.loads(part[6:]) for part in body.decode().split("\n\n")[:-2]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[0]["delta"]["role"] == "assistant"
    assert len([choice for choice in choices if choice["delta"].get("content")]) == WORDS
    assert len([choice for choice in choices if choice["finish_reason"]]) == 1
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")][-1] == WORDS
    await until_idle(rig)


async def test_a_document_is_openai_shaped(rig: Rig) -> None:
    """One JSON document with a message, a finish reason and usage."""
    reply = await rig.backend.send(rig.call(stream=False))
    assert (reply.status, reply.content_type) == (200, "application/json")
    answer = json.loads(await read(reply))
    await reply.aclose()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] in {"stop", "length"}
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    await until_idle(rig)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])
async def test_a_refusal_is_a_reply(rig: Rig, stream: bool) -> None:
    """An engine's error is a status >= 400 with an OpenAI error object, never an exception, for streams too."""
    reply = await rig.backend.send(rig.call("refused", stream=stream))
    assert reply.status == 404
    error = json.loads(await read(reply))["error"]
    await reply.aclose()
    assert isinstance(error["message"], str)
    assert {"message", "type", "param", "code"} <= error.keys()
    await until_idle(rig)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])
async def test_what_may_not_go_is_not_sent(rig: Rig, stream: bool) -> None:
    """What `may_go` raises comes out of `send`, with a connection at hand and without; the engine sees nothing, and the next call is served."""

    class Stay(Exception):
        pass

    def stay() -> None:
        raise Stay

    for _ in range(2):  # before there is a connection, and then with one that is kept
        with pytest.raises(Stay):
            await rig.backend.send(replace(rig.call("endless", stream=stream), may_go=stay))
        assert await rig.busy() == 0
        reply = await rig.backend.send(rig.call(stream=stream))
        assert await read(reply)
        await reply.aclose()
        await until_idle(rig)


async def test_closing_twice(rig: Rig) -> None:
    """`aclose` may be called again, after the end and before it, and before anything was read."""
    for what in ("whole", "endless"):
        reply = await rig.backend.send(rig.call(what))
        if what == "whole":
            await read(reply)
        await reply.aclose()
        await reply.aclose()
        await until_idle(rig)
    again = await rig.backend.send(rig.call("whole"))  # twice closed is given back once: the next call has its own
    assert await read(again)
    await again.aclose()


async def test_closing_in_mid_stream_stops_the_engine(rig: Rig) -> None:
    """`aclose` while the engine still writes ends its work; the next call is served."""
    reply = await rig.backend.send(rig.call("endless"))
    body = reply.body()
    assert await anext(body)
    await until_busy(rig)
    await reply.aclose()
    await until_idle(rig)
    again = await rig.backend.send(rig.call())
    assert (await read(again)).endswith(b"data: [DONE]\n\n")
    await again.aclose()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])
async def test_cancelling_stops_the_engine(rig: Rig, stream: bool) -> None:
    """Cancelling the task that awaits `send` or reads, with `aclose` in its `finally`, ends the engine's work."""

    async def one() -> None:
        reply = await rig.backend.send(rig.call("endless", stream=stream))
        try:
            await read(reply)
        finally:
            await reply.aclose()

    task = asyncio.get_running_loop().create_task(one())
    await until_busy(rig)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await until_idle(rig)


async def test_a_probe_tells(rig: Rig) -> None:
    """A healthy engine is ready, not asleep, and serves its models."""
    found = await rig.backend.probe()
    assert (found.ready, found.asleep, found.detail) == (True, False, "")
    assert rig.model in {model.name for model in found.models}


@pytest.mark.parametrize("rig", ["simulated", "http"], indirect=True)
async def test_closing_the_backend(rig: Rig) -> None:
    """Streams under way end, aloud; closing again is fine; nothing is left running, and no new call is taken.

    Not asked of the two whose engine is a script: their streams end when their replies are closed.
    """
    reply = await rig.backend.send(rig.call("endless"))
    body = reply.body()
    assert await anext(body)
    await rig.backend.aclose()
    await rig.backend.aclose()
    with pytest.raises(UpstreamError):
        await rest(body)
    await reply.aclose()
    await until_idle(rig)
    with pytest.raises(UpstreamError):
        await rig.backend.send(rig.call())


async def test_it_can_be_asked_for_one_token(rig: Rig) -> None:
    """What tells a working engine from one that only says so (docs/health.md); nothing of the question stays behind."""
    rig.prepare("whole", False)
    assert await ask_one_token(rig.backend, [ServedModel(name=rig.model)], timeout_s=30.0) is None
    await until_idle(rig)
