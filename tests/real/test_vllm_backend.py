"""HttpBackend against a real vLLM: probing, both shapes of answer, errors, and aborts that reach the engine."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from backends.backend import EngineCall, ProbeResult, ServedModel
from backends.upstream.sse import SseSplitter, event_data
from backends.vllm import HttpBackend
from config.schema import ReplicaConfig, Upstream
from tests.real.vllm_server import MODEL, VllmServer
from tests.support.patience import PATIENCE_S

pytestmark = pytest.mark.real

# More than the cache holds at once: it runs on, however late we look.
_ENDLESS = {"max_tokens": 1900, "n": 64, "temperature": 1}


@pytest.fixture
async def engine(vllm_pair: tuple[VllmServer, VllmServer]) -> AsyncIterator[HttpBackend]:
    config = ReplicaConfig(name="first", url=vllm_pair[0].url)
    backend = HttpBackend(config, upstream=Upstream(), probe_timeout_s=10)
    yield backend
    await backend.aclose()


def completion(*, stream: bool, **fields: object) -> EngineCall:
    body = {"model": MODEL, "prompt": "The gate", "temperature": 0, "ignore_eos": True, "stream": stream, **fields}
    if stream:
        body["stream_options"] = {"include_usage": True}
    return EngineCall(request_id="real-1", path="/v1/completions", body=json.dumps(body).encode(), stream=stream)


async def until(engine: HttpBackend, holds: Callable[[ProbeResult], bool]) -> None:
    """Probes until an engine's figures say so."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds(await engine.probe()):
            await asyncio.sleep(0.05)  # a real engine's clock is the wall's


async def document(engine: HttpBackend, call: EngineCall) -> tuple[int, dict[str, object]]:
    reply = await engine.send(call)
    body = b"".join([piece async for piece in reply.body()])
    return reply.status, json.loads(body)


async def events(engine: HttpBackend, call: EngineCall) -> list[bytes | None]:
    reply = await engine.send(call)
    assert (reply.status, reply.content_type.partition(";")[0]) == (200, "text/event-stream")
    splitter = SseSplitter()
    found = [event_data(event) async for piece in reply.body() for event in splitter.feed(piece)]
    assert splitter.rest == b""
    return found


async def test_a_probe_discovers_the_engine(engine: HttpBackend, vllm_pair: tuple[VllmServer, VllmServer]):
    """Model, context, KV blocks and their size come from the engine itself, and its figures have our names."""
    found = await engine.probe()
    assert (found.ready, found.detail, found.asleep) == (True, "", False)
    assert found.models == (ServedModel(name=MODEL, max_model_len=vllm_pair[0].max_model_len),)
    assert (found.kv_blocks, found.block_size) == (vllm_pair[0].blocks, vllm_pair[0].block_size)
    assert set(found.metrics) == {
        "running",
        "waiting",
        "kv_usage_ratio",
        "preemptions_total",
        "prefix_queries_total",
        "prefix_hits_total",
        "iteration_total",
    }


async def test_a_document(engine: HttpBackend):
    """Text and usage of a whole answer; the connection is kept."""
    status, answer = await document(engine, completion(stream=False, max_tokens=12))
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["choices"][0]["finish_reason"] == "length"
    assert engine.statistics().idle == 1


async def test_a_stream_says_the_same_as_the_document(engine: HttpBackend):
    """Deltas add up to the greedy text; then a finish reason, the usage and [DONE]; the connection is kept."""
    _, whole = await document(engine, completion(stream=False, max_tokens=40))
    found = await events(engine, completion(stream=True, max_tokens=40))
    assert found[-1] == b"[DONE]"
    chunks = [json.loads(data) for data in found[:-1] if data]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == whole["choices"][0]["text"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 40)
    assert (engine.statistics().opened_total, engine.statistics().idle) == (1, 1)


async def test_iterations_advance_with_work(engine: HttpBackend):
    """The figure that tells a working engine from a stuck one moves."""
    before = (await engine.probe()).metrics["iteration_total"]
    await document(engine, completion(stream=False, max_tokens=8))
    await until(engine, lambda found: found.metrics["iteration_total"] >= before + 8)


async def test_closing_a_stream_aborts_the_generation(engine: HttpBackend):
    """The engine had thousands of tokens to go; closing after the first brings its running requests to zero."""
    await until(engine, lambda found: found.metrics["running"] == 0)
    reply = await engine.send(completion(stream=True, **_ENDLESS))
    assert await anext(aiter(reply.body()))
    await until(engine, lambda found: found.metrics["running"] > 0)
    await reply.aclose()
    await until(engine, lambda found: found.metrics["running"] == 0)


async def test_cancelling_before_the_answer_aborts_the_generation(engine: HttpBackend):
    """A document's head comes with its last token; cancelling the wait for it stops the engine too."""
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(engine.send(completion(stream=False, **_ENDLESS)))
        await until(engine, lambda found: found.metrics["running"] > 0)
        assert not sending.done()
        sending.cancel()
    await until(engine, lambda found: found.metrics["running"] == 0)


async def test_an_unknown_model(engine: HttpBackend):
    """The engine's own error object and status pass through."""
    status, answer = await document(engine, completion(stream=False, model="nobody"))
    assert (status, answer["error"]["type"]) == (404, "NotFoundError")
