"""The main job on a real engine: an OpenAI client, our gateway, two vLLM replicas."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.real.gateway_process import GatewayProcess, until, vllm_replica
from tests.real.vllm_server import MODEL, VllmServer
from tests.support.patience import PATIENCE_S
from tests.support.scrape import metric

pytestmark = pytest.mark.real

Pair = tuple[VllmServer, VllmServer]
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def gateway(vllm_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    first, second = vllm_pair
    replicas = [
        vllm_replica("h100", first, gpu={"type": "H100-80G"}, cost={"tier": "reserved", "usd_per_hour": 2.5}),
        vllm_replica("spot", second, gpu={"type": "A100-80G"}, cost={"tier": "spot", "usd_per_hour": 1.2}),
    ]
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), {"replicas": replicas}) as process:
        yield process


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def engine(server: VllmServer, name: str) -> float:
    return metric(f"{server.url}/metrics", f"vllm:{name}")


async def test_discovers_the_models(client: openai.AsyncOpenAI) -> None:
    """The engine is asked what it serves and how long its context is."""
    models = (await client.models.list()).data
    assert [model.id for model in models] == [MODEL]
    assert models[0].model_dump()["max_model_len"] == 2048


async def test_sdk_streams_what_the_engine_says(client: openai.AsyncOpenAI, vllm_pair: Pair) -> None:
    """A greedy chat streamed through the gateway is the engine's own answer, ends with a finish reason, and counts its tokens."""
    options: Any = {"model": MODEL, "messages": QUESTION, "max_completion_tokens": 24, "temperature": 0.0}
    async with openai.AsyncOpenAI(base_url=f"{vllm_pair[0].url}/v1", api_key="none") as direct:
        expected = (await direct.chat.completions.create(**options)).choices[0].message.content
    stream = await client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["length"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24
    assert len({chunk.id for chunk in chunks}) == 1


async def test_sdk_without_streaming(client: openai.AsyncOpenAI) -> None:
    """A plain chat and a completion come back whole, with usage and the decision headers."""
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=8)
    chat = raw.parse()
    assert chat.usage is not None
    assert chat.usage.completion_tokens <= 8
    assert raw.headers["x-penstock-replica"] in {"h100", "spot"}
    assert raw.headers["x-penstock-cost-tier"] in {"reserved", "spot"}
    completion = await client.completions.create(
        model=MODEL, prompt="The gateway routes", max_tokens=8, extra_body={"ignore_eos": True}
    )
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 8


async def test_engine_refusals_reach_the_sdk_as_its_own_exceptions(client: openai.AsyncOpenAI) -> None:
    """Bad parameters are a 400 with OpenAI's shape, an unknown model a 404 that names the near one, a long prompt a 400."""
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model=MODEL, messages=QUESTION, extra_body={"min_p": 7})
    assert isinstance(bad.value.code, str | None)
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="tinny", messages=QUESTION)
    assert unknown.value.code == "model_not_found"
    assert "tiny" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as long:
        await client.completions.create(model=MODEL, prompt=[5] * 3000, max_tokens=1)
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_aborts_the_engine(gateway: GatewayProcess, vllm_pair: Pair, stream: bool) -> None:
    """Clients that leave stop the engine's work: its own count of running requests falls to zero before the answers' end."""

    def engines(name: str) -> float:
        return sum(engine(server, name) for server in vllm_pair)

    # Several: vLLM's front end is busy with its own stream and would show /metrics only after a single short one.
    clients, tokens = 16, 1900
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True, "stream": stream}
    generated = engines("generation_tokens_total")
    loop = asyncio.get_running_loop()
    async with httpx.AsyncClient(timeout=600) as http:
        requests = [loop.create_task(http.post(f"{gateway.url}/v1/completions", json=body)) for _ in range(clients)]
        await asyncio.to_thread(until, lambda: engines("num_requests_running") > 0, "requests run in an engine")
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
    await asyncio.to_thread(until, lambda: engines("num_requests_running") == 0, "the engines have stopped")
    assert engines("generation_tokens_total") - generated < clients * tokens
    await asyncio.to_thread(until, lambda: gateway.metric("penstock_requests_in_flight") == 0, "nothing is in flight")


async def test_metrics_say_how_it_went(gateway: GatewayProcess, client: openai.AsyncOpenAI) -> None:
    """TTFT, ITL, tokens and KV figures carry model, replica, GPU and cost tier."""
    labels = {"model": MODEL, "replica": "h100", "gpu": "H100-80G", "cost_tier": "reserved"}
    before = gateway.metric("penstock_tokens_total", kind="output", source="reported", **labels)
    stream = await client.completions.create(
        model=MODEL, prompt="Hello", max_tokens=16, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        pass

    def counted() -> float:
        return gateway.metric("penstock_tokens_total", kind="output", source="reported", **labels) - before

    # A stream's usage is booked right after its last byte.
    await asyncio.to_thread(until, lambda: counted() == 16, "the tokens are counted")
    assert gateway.metric("penstock_time_to_first_token_seconds_count", **labels) >= 1
    assert gateway.metric("penstock_inter_token_latency_seconds_count", **labels) >= 15
    assert gateway.metric("penstock_replica_up", replica="h100") == 1
    assert gateway.metric("penstock_replica_kv_headroom_tokens", replica="h100") > 0
    assert gateway.metric("penstock_replica_metrics_age_seconds", replica="h100") < PATIENCE_S
