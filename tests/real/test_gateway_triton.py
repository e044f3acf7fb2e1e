"""The main job on a real Triton: chat, completions and embeddings through the gateway, beside a vLLM in one fleet."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.real.gateway_process import GatewayProcess, until, vllm_replica
from tests.real.triton_server import TritonServer
from tests.real.vllm_server import MODEL, VllmServer
from tests.support.patience import PATIENCE_S
from tests.support.scrape import metric

pytestmark = pytest.mark.real

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def gateway(
    triton: TritonServer, vllm_pair: tuple[VllmServer, VllmServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    tritons = {
        "name": "triton",
        "backend": "triton",
        "url": triton.grpc_url,
        "metrics_url": triton.metrics_url,
        "models": [{"name": "textgen", "kind": "chat"}, {"name": "embed", "kind": "embedding"}],
        "capacity": {"max_num_seqs": 64, "max_model_len": 4096},
    }
    with GatewayProcess(
        tmp_path_factory.mktemp("mixed"),
        # Rows that come together meet, though a busy gateway takes its time to read them all.
        {"replicas": [tritons, vllm_replica("vllm", vllm_pair[0])], "microbatch": {"max_age_s": 0.5}},
    ) as process:
        yield process


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_one_front_door_for_both_engines(client: openai.AsyncOpenAI) -> None:
    """Models of vLLM and Triton are listed together and both answer."""
    assert sorted(model.id for model in (await client.models.list()).data) == ["embed", "textgen", MODEL]
    for model in ("textgen", MODEL):
        answer = await client.chat.completions.create(model=model, messages=QUESTION, max_tokens=6)
        assert answer.choices[0].message.content


async def test_sdk_streams_from_triton(client: openai.AsyncOpenAI) -> None:
    """Triton's decoupled responses become chat chunks; stream and non-stream say the same."""
    options: Any = {"model": "textgen", "messages": QUESTION, "max_tokens": 12}
    whole = await client.chat.completions.create(**options)
    stream = await client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["length"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    completion = await client.completions.create(model="textgen", prompt="Once upon a time", max_tokens=5)
    assert completion.choices[0].text


async def test_embeddings_are_batched_across_requests(client: openai.AsyncOpenAI, triton: TritonServer) -> None:
    """Many small requests become few executions; each gets its own vectors, the same as alone."""
    alone = (await client.embeddings.create(model="embed", input="penstock", encoding_format="float")).data[0].embedding
    assert len(alone) == 64
    counted = metric(triton.metrics_url, "nv_inference_count", model="embed")
    executed = metric(triton.metrics_url, "nv_inference_exec_count", model="embed")
    answers = await asyncio.gather(
        *(
            client.embeddings.create(model="embed", input=["penstock", f"text {i}"], encoding_format="float")
            for i in range(24)
        )
    )
    assert all(answer.data[0].embedding == pytest.approx(alone, abs=1e-6) for answer in answers)
    counted = metric(triton.metrics_url, "nv_inference_count", model="embed") - counted
    executed = metric(triton.metrics_url, "nv_inference_exec_count", model="embed") - executed
    # Every row once; the probe of an idle replica may have looked in with a row of its own.
    assert counted >= 48
    assert executed < 24


async def test_disconnect_cancels_triton(gateway: GatewayProcess, triton: TritonServer) -> None:
    """A client that leaves cancels the generation: the model's own gauge of active ones falls to zero."""

    def active() -> float:
        return metric(triton.metrics_url, "textgen_active")

    body = {"model": "textgen", "prompt": "endless", "max_tokens": 4000, "stream": True}
    async with httpx.AsyncClient() as http:
        request = asyncio.get_running_loop().create_task(
            http.post(f"{gateway.url}/v1/completions", json=body, timeout=PATIENCE_S)
        )
        await asyncio.to_thread(until, lambda: active() == 1, "the request runs in Triton")
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await asyncio.to_thread(until, lambda: active() == 0, "the generation has stopped", 10)
