"""`penstock engine` over real sockets: vLLM's endpoints and figures, disconnects, the OpenAI SDK."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from backends.simulated.bodies import chat_text
from backends.simulated.options import EngineOptions
from backends.simulated.server import create_engine_app, engine_server
from backends.simulated.tokens import encode, expected_text
from tests.support.patience import PATIENCE_S

OPTIONS = EngineOptions(kv_blocks=512, max_model_len=4096, speed=50)
SLOW = EngineOptions(kv_blocks=512, max_model_len=4096, speed=0.1)  # some 80 ms a token: never done within a test
HELLO = [{"role": "user", "content": "Hello"}]


@asynccontextmanager
async def serving(options: EngineOptions = OPTIONS) -> AsyncIterator[str]:
    """A server on a free port; yields its base URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(create_engine_app(options), log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        task = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not server.started:
                    await asyncio.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def figures(client: httpx.AsyncClient) -> dict[str, float]:
    """Samples of /metrics by name, labels cut off."""
    text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.split("{")[0].removeprefix("vllm:"): float(line.rsplit(" ", 1)[1]) for line in lines}


async def until(client: httpx.AsyncClient, **wanted: float) -> None:
    """Poll the figures until they are as wanted."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await figures(client)
            if all(found[name] == value for name, value in wanted.items()):
                return
            await asyncio.sleep(0.01)


async def test_openai_sdk_streams_a_chat():
    """The official client reads our stream to its end: text, finish reason, usage."""
    async with serving() as url, AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="sim-8b", messages=HELLO, max_tokens=12, stream=True, stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected_text(chat_text(HELLO), 12)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 12
    assert chunks[0].choices[0].delta.role == "assistant"


async def test_openai_sdk_reads_documents_embeddings_models_and_errors():
    """Whole answers, plain completions, embeddings, the model list and both refusals reach the client as its own types."""
    async with serving() as url, AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        chat = await client.chat.completions.create(model="sim-8b", messages=HELLO)
        assert chat.choices[0].finish_reason == "stop"
        plain = await client.completions.create(model="sim-8b", prompt=encode("A weir"), max_tokens=3)
        assert plain.choices[0].text == expected_text("A weir", 3)
        vectors = await client.embeddings.create(model="sim-8b", input=["a", "b"])  # base64 on the wire
        assert [len(row.embedding) for row in vectors.data] == [64, 64]
        models = [model async for model in client.models.list()]
        assert [(model.id, model.max_model_len) for model in models] == [("sim-8b", 4096)]
        with pytest.raises(BadRequestError, match="maximum context length"):
            await client.chat.completions.create(model="sim-8b", messages=HELLO, max_tokens=5000)
        with pytest.raises(NotFoundError, match="does not exist"):
            await client.chat.completions.create(model="nope", messages=HELLO)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_ends_its_work(stream: bool):
    """Disconnecting aborts the sequence, in a stream and before a whole answer, and frees its blocks."""
    async with serving(SLOW) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        fields = {"model": "sim-8b", "messages": HELLO, "max_tokens": 4000, "ignore_eos": True, "stream": stream}
        asking = asyncio.get_running_loop().create_task(client.post("/v1/chat/completions", json=fields))
        await until(client, num_requests_running=1)
        assert (await client.get("/load")).json() == {"server_load": 1}
        asking.cancel()
        await asyncio.wait([asking])
        await until(client, num_requests_running=0, num_requests_waiting=0, kv_cache_usage_perc=0)


async def test_a_streams_head_comes_before_its_first_token():
    """As with vLLM, status and headers of a stream are sent at once; the request's id is in both."""
    async with serving(SLOW) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        await client.post("/sleep?level=1")
        request = client.build_request(
            "POST", "/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1, "stream": True},
            headers={"x-request-id": "abc"},
        )  # fmt: skip
        reply = await client.send(request, stream=True)
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reply.headers["x-request-id"] == "abc"
        await client.post("/wake_up")
        body = (await reply.aread()).decode()
        assert json.loads(body.split("\n\n")[0].removeprefix("data: "))["id"] == "chatcmpl-abc"
        assert body.endswith("data: [DONE]\n\n")


async def test_figures_have_vllms_names():
    """What a scraper of vLLM reads is there after some work."""
    async with serving() as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        fields = {"prompt": "A penstock is a gated pipe. " * 20, "max_tokens": 5, "ignore_eos": True}
        for _ in range(2):
            usage = (await client.post("/v1/completions", json=fields)).json()["usage"]
        await until(client, num_requests_running=0)
        found = await figures(client)
        text = (await client.get("/metrics")).text
    assert found["prompt_tokens_total"] == found["prefix_cache_queries_total"] == 2 * usage["prompt_tokens"]
    assert found["prefix_cache_hits_total"] == usage["prompt_tokens_details"]["cached_tokens"] > 0
    assert found["generation_tokens_total"] == 10
    assert found["iteration_tokens_total_count"] == 10
    assert found["num_preemptions_total"] == 0
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="sim-8b"} 2.0' in text
    assert 'block_size="16"' in text
    assert 'num_gpu_blocks="512"' in text
    assert 'vllm:engine_sleep_state{engine="0",model_name="sim-8b",sleep_state="awake"} 1.0' in text


async def test_sleep_wake_health_version_and_tokenize():
    """The small endpoints answer as vLLM's do; asleep is healthy."""
    async with serving() as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        await client.post("/sleep?level=1")
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": True}
        assert (await client.get("/health")).status_code == 200
        await client.post("/wake_up")
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": False}
        assert (await client.get("/version")).json()["version"].startswith("0.32")
        tokens = (await client.post("/tokenize", json={"model": "sim-8b", "prompt": "Hello gate"})).json()
        assert (tokens["tokens"], tokens["count"]) == (encode("Hello gate"), 2)
        chat = (await client.post("/tokenize", json={"messages": HELLO})).json()
        assert chat["tokens"] == encode(chat_text(HELLO))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": 1}', b'{"prompt": "\xff"}', b"[" * 200_000])
async def test_a_body_that_is_no_request_gets_400(body: bytes):
    """Bytes that are not JSON, not an object or not a request are refused in the error shape."""
    async with serving() as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        reply = await client.post("/v1/chat/completions", content=body)
        assert reply.status_code == 400
        assert reply.json()["error"]["type"] == "BadRequestError"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_server_told_to_stop_ends_its_answers_as_vllm_does(stream: bool):
    """SIGTERM's path: an error event and [DONE] in a stream, status 500 for a whole answer; never a silent end."""
    server = engine_server(SLOW, "127.0.0.1", 0)
    task = asyncio.get_running_loop().create_task(server.serve())
    async with asyncio.timeout(PATIENCE_S):
        while not server.started:
            await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
        fields = {"messages": HELLO, "max_tokens": 4000, "ignore_eos": True, "stream": stream}
        asking = asyncio.get_running_loop().create_task(client.post("/v1/chat/completions", json=fields))
        await until(client, num_requests_running=1)
        server.should_exit = True
        reply = await asking
    await task
    assert reply.status_code == (200 if stream else 500)
    *_, error, done, end = reply.text.split("\n\n") if stream else ("data: " + reply.text, "data: [DONE]", "")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == 500
    assert (done, end) == ("data: [DONE]", "")
