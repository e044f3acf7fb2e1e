"""The Triton backend against a real tritonserver: what READY, queues, cancellation and dying processes really do."""

import asyncio
import base64
import json
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from backends.backend import (
    ClosedEarly,
    ConnectFailed,
    EngineCall,
    EngineReply,
    FirstByteTimeout,
    ServedModel,
    StreamCut,
)
from backends.triton import TritonBackend
from config.schema import MicroBatch, ReplicaConfig, Upstream
from tests.real.triton_server import TritonServer
from tests.support.patience import PATIENCE_S
from tests.support.triton_fake import chat, completion, embeddings, read

pytestmark = pytest.mark.real

MODELS = [{"name": "textgen"}, {"name": "embed", "kind": "embedding"}]


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    """One server for all tests that leave it as they found it."""
    with TritonServer() as running:
        yield running


@asynccontextmanager
async def connected(
    server: TritonServer,
    *,
    upstream: Upstream | None = None,
    microbatch: MicroBatch | None = None,
    models: list[dict[str, str]] | None = None,
) -> AsyncIterator[TritonBackend]:
    replica = ReplicaConfig.model_validate(
        {
            "name": "t1",
            "backend": "triton",
            "url": server.grpc_url,
            "metrics_url": server.metrics_url,
            "models": models or MODELS,
        }
    )
    async with httpx.AsyncClient() as http:
        backend = TritonBackend(
            replica,
            upstream=upstream or Upstream(first_byte_timeout_s=20, stall_timeout_s=20),
            microbatch=microbatch or MicroBatch(),
            http=http,
            probe_timeout_s=20,  # a busy machine is no finding
        )
        try:
            yield backend
        finally:
            await backend.aclose()


@pytest.fixture
async def backend(server: TritonServer) -> AsyncIterator[TritonBackend]:
    """A backend on the shared server."""
    async with connected(server) as made:
        yield made


async def events(reply: EngineReply) -> list[Any]:
    """A stream's events, decoded; "[DONE]" as it is."""
    raw = (await read(reply)).decode()
    assert raw.endswith("\n\n")
    payloads = [event.removeprefix("data: ") for event in raw.split("\n\n") if event]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def content(chunks: list[Any]) -> str:
    """A chat stream's text."""
    return "".join(
        choice["delta"].get("content", "") for chunk in chunks if chunk != "[DONE]" for choice in chunk["choices"]
    )


async def document(backend: TritonBackend, call: EngineCall) -> tuple[int, Any]:
    reply = await backend.send(call)
    return reply.status, json.loads(await read(reply))


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for the engine to say so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def test_ready(backend: TritonBackend) -> None:
    """A loaded server is ready, names its models, and tells its queue by its metrics page."""
    found = await backend.probe()
    assert (found.ready, found.detail) == (True, "")
    assert found.models == (ServedModel(name="textgen"), ServedModel(name="embed", kind="embedding"))
    assert found.metrics == {"waiting": 0}


async def test_chat_streams(backend: TritonBackend) -> None:
    """A stream has the role first, the engine's own finish reason and counts last, and the same text as the whole answer."""
    asked = chat("tell me", max_tokens=6, stream_options={"include_usage": True})
    chunks = await events(await backend.send(asked))
    status, whole = await document(backend, chat("tell me", stream=False, max_tokens=6))
    assert status == 200
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1] == "[DONE]"
    assert (chunks[-2]["choices"], chunks[-2]["usage"]) == ([], whole["usage"])
    assert chunks[-3]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "length"
    assert content(chunks) == whole["choices"][0]["message"]["content"]
    assert len(content(chunks).split()) == whole["usage"]["completion_tokens"] == 6
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks[:-1]}) == 1


async def test_completions(backend: TritonBackend) -> None:
    """Plain completions answer without the prompt, streaming or not."""
    status, whole = await document(backend, completion("once upon", stream=False, max_tokens=4))
    chunks = await events(await backend.send(completion("once upon", max_tokens=4)))
    assert (status, whole["object"], "once" in whole["choices"][0]["text"]) == (200, "text_completion", False)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == whole["choices"][0]["text"]


async def test_a_model_may_stop_by_itself(backend: TritonBackend) -> None:
    """The model's own end is `stop`, and its tokens are fewer than asked for."""
    _, whole = await document(backend, chat("[[stop-after-3]]", stream=False, max_tokens=50))
    assert (whole["choices"][0]["finish_reason"], whole["usage"]["completion_tokens"]) == ("stop", 3)


async def test_sampling_parameters_arrive(backend: TritonBackend) -> None:
    """The model sees the request's own parameters: another seed gives another text."""
    texts = {
        (await document(backend, chat("same", stream=False, max_tokens=8, seed=seed)))[1]["choices"][0]["message"][
            "content"
        ]
        for seed in (1, 2, 3, 1)
    }
    assert len(texts) == 3


async def test_cut_characters_arrive_whole(backend: TritonBackend) -> None:
    """Characters that the model cuts across responses reach the client whole."""
    text = content(await events(await backend.send(chat("[[utf8]]", max_tokens=12))))
    whole = "naïve 水門 → ½ 🌊 "
    assert text.rstrip("\ufffd").startswith(whole[:-2])
    assert text.count("\ufffd") <= 1  # max_tokens may end inside a character


async def test_an_error_mid_stream_is_an_event(backend: TritonBackend) -> None:
    """A model that fails after three tokens ends the stream with an error event: no [DONE], no path, no address."""
    chunks = await events(await backend.send(chat("[[error-after-3]]", max_tokens=10)))
    assert len(content(chunks[:-1]).split()) == 3
    assert chunks[-1] == {
        "error": {
            "message": "the wheel broke at ... on ...",
            "type": "server_error",
            "param": None,
            "code": "engine_error",
        }
    }


async def test_an_error_before_the_first_token_is_a_status(backend: TritonBackend) -> None:
    """A model that fails at once is a 500 with an OpenAI error."""
    status, body = await document(backend, chat("[[error-after-0]]", max_tokens=10))
    assert (status, body["error"]["type"]) == (500, "server_error")


async def test_closing_cancels_in_the_engine(server: TritonServer, backend: TritonBackend) -> None:
    """Closing a reply mid-stream stops the generation in the engine, long before its tokens are used up."""
    reply = await backend.send(chat("go on", max_tokens=1_000_000))
    await anext(aiter(reply.body()))
    await eventually(lambda: server.metric("textgen_active") == 1)
    await reply.aclose()
    await eventually(lambda: server.metric("textgen_active") == 0)


async def test_cancelling_cancels_in_the_engine(server: TritonServer, backend: TritonBackend) -> None:
    """A request cancelled while it waits for its first token, or for its whole answer, stops in the engine."""
    calls = [chat("[[hang]]"), chat("x", stream=False, max_tokens=1_000_000)]
    tasks = [asyncio.get_running_loop().create_task(backend.send(call)) for call in calls]
    await eventually(lambda: server.metric("textgen_active") == 2)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await eventually(lambda: server.metric("textgen_active") == 0)


async def test_many_streams_at_once(backend: TritonBackend) -> None:
    """Streams on one channel do not mix."""

    async def one(index: int) -> str:
        return content(await events(await backend.send(chat(f"story {index % 4}", max_tokens=20))))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(index)) for index in range(16)]
    texts = [task.result() for task in tasks]
    assert texts[:4] * 4 == texts
    assert len(set(texts)) == 4


@pytest.mark.parametrize("prompt", ["[[hang]]", "[[hang-after-2]]"])
async def test_silence_is_noticed_and_a_live_model_stays_ready(server: TritonServer, prompt: str) -> None:
    """A request that hangs ends in time; the probe asks the model, which still answers others, and keeps it ready."""
    async with connected(server, upstream=Upstream(first_byte_timeout_s=1, stall_timeout_s=1)) as backend:
        with pytest.raises((FirstByteTimeout, StreamCut)):
            await read(await backend.send(chat(prompt, max_tokens=10)))
        assert (await backend.probe()).ready
        await eventually(lambda: server.metric("textgen_active") == 0)


async def test_unknown_models(server: TritonServer) -> None:
    """A model that neither the server nor the configuration has is a 404 model_not_found; the probe names it."""
    async with connected(server, models=[{"name": "missing"}]) as backend:
        for model in ("missing", "unheard-of"):
            status, body = await document(backend, chat(model=model))
            assert (status, body["error"]["code"]) == (404, "model_not_found")
        found = await backend.probe()
    assert (found.ready, found.detail) == (False, "model missing is not ready")


async def test_embeddings(backend: TritonBackend) -> None:
    """A text has one vector, alone or in a batch, as floats or as base64."""
    _, alone = await document(backend, embeddings("green water"))
    _, batch = await document(backend, embeddings(["red fire", "green water"]))
    _, packed = await document(backend, embeddings("green water", encoding_format="base64"))
    vector = alone["data"][0]["embedding"]
    assert (len(vector), sum(x * x for x in vector)) == (64, pytest.approx(1.0, abs=1e-5))
    assert batch["data"][1]["embedding"] == vector
    assert batch["data"][0]["embedding"] != vector
    assert list(struct.unpack("<64f", base64.b64decode(packed["data"][0]["embedding"]))) == vector


async def test_concurrent_embeddings_share_a_batch(server: TritonServer, backend: TritonBackend) -> None:
    """Rows of many requests reach the engine in few requests and few executions, and come back to their own requests."""
    await document(backend, embeddings("warm"))
    names = ("nv_inference_count", "nv_inference_exec_count", "nv_inference_request_success")
    before = [server.metric(name, model="embed") for name in names]
    texts = [f"text number {index}" for index in range(24)]
    answers = await asyncio.gather(*(document(backend, embeddings(text)) for text in texts))
    rows, executions, requests = (server.metric(n, model="embed") - b for n, b in zip(names, before, strict=True))
    assert rows == 24
    assert executions < rows
    assert requests < rows
    expected = (await document(backend, embeddings(texts)))[1]["data"]
    assert [body["data"][0]["embedding"] for _, body in answers] == [row["embedding"] for row in expected]


async def test_a_bad_row_fails_alone(backend: TritonBackend) -> None:
    """One request with a row that the model refuses gets a 400; its neighbours in the batch are embedded."""
    texts = ["a", "[[bad]]", "c"]
    answers = await asyncio.gather(*(document(backend, embeddings(text)) for text in texts))
    assert [status for status, _ in answers] == [200, 400, 200]


async def test_a_full_engine_queue_is_a_503(server: TritonServer) -> None:
    """Requests beyond Triton's own queue get 503 with retry-after; those inside it are served."""
    async with connected(server, microbatch=MicroBatch(max_size=1)) as backend:
        # Slow for long enough for all of them to come, on a slow machine, too.
        calls = [*[embeddings("[[slow]]")] * 6, *(embeddings(f"text {index}") for index in range(100))]
        replies = await asyncio.gather(*(backend.send(call) for call in calls))
        assert {reply.status for reply in replies} == {200, 503}
        assert {reply.headers.get("retry-after") for reply in replies if reply.status == 503} == {"1"}
        assert (await backend.probe()).ready


async def test_a_dead_process_is_noticed_though_triton_says_ready(server: TritonServer) -> None:
    """SIGKILL of the model's process: the stream in flight is cut in time, the next gets 503, the probe says no until a reload."""
    async with connected(server, upstream=Upstream(first_byte_timeout_s=10, stall_timeout_s=1)) as backend:
        reply = await backend.send(chat("go on", max_tokens=1_000_000))
        server.kill_stub("textgen")
        try:
            with pytest.raises(StreamCut):
                await read(reply)
            status, body = await document(backend, chat("hello"))
            assert (status, body["error"]["code"]) == (503, "engine_dead")
            found = await backend.probe()
            assert (found.ready, found.detail) == (False, "model textgen: its process is not healthy")
        finally:
            await asyncio.to_thread(server.reload, "textgen")
        assert (await backend.probe()).ready
        assert (await document(backend, chat("hello", stream=False, max_tokens=4)))[0] == 200


async def test_a_server_that_vanishes() -> None:
    """SIGKILL of the server: the stream is cut, the next request finds nobody, the probe says so without an address."""
    with TritonServer() as server:
        async with connected(server) as backend:
            reply = await backend.send(chat("go on", max_tokens=1_000_000))
            os.killpg(server.pid, signal.SIGKILL)
            with pytest.raises(StreamCut):
                await read(reply)
            with pytest.raises((ConnectFailed, ClosedEarly)):  # the first may still meet the closing socket
                await backend.send(chat("hello"))
            found = await backend.probe()
    assert (found.ready, found.detail) == (False, "the server cannot be reached (UNAVAILABLE)")
