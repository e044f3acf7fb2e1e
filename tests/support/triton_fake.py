"""A Triton server in memory: implements `backends.triton.inference.InferenceClient` from scripts.

A generation's script is a list of steps: outputs to give, a fault to raise, or a number of (virtual) seconds to wait first.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence

import httpx

from backends.backend import EngineCall, EngineReply
from backends.triton.backend import TritonBackend
from backends.triton.inference import EngineFault, ModelInfo, Outputs, Tensor, TensorInfo
from config.schema import MicroBatch, ReplicaConfig, Upstream

Step = Outputs | EngineFault | float
NEVER_S = 1e6  # a step that hangs

LLM = ModelInfo(
    inputs={
        "text_input": TensorInfo(datatype="BYTES", rank=1),
        "stream": TensorInfo(datatype="BOOL", rank=1),
        "sampling_parameters": TensorInfo(datatype="BYTES", rank=1),
        "exclude_input_in_output": TensorInfo(datatype="BOOL", rank=1),
        "return_finish_reason": TensorInfo(datatype="BOOL", rank=1),
        "return_num_output_tokens": TensorInfo(datatype="BOOL", rank=1),
    },
    outputs={
        "text_output": TensorInfo(datatype="BYTES", rank=1),
        "finish_reason": TensorInfo(datatype="BYTES", rank=1),
        "num_output_tokens": TensorInfo(datatype="UINT32", rank=1),
    },
)
EMBED = ModelInfo(
    inputs={"text": TensorInfo(datatype="BYTES", rank=2)},
    outputs={"embedding": TensorInfo(datatype="FP32", rank=2)},
    max_batch_size=32,
)


def token(text: str | bytes, *, tokens: int | None = 1, finish: str | None = None) -> Outputs:
    """One response as the vLLM backend gives it."""
    raw = text.encode() if isinstance(text, str) else text
    outputs: dict[str, Sequence[bytes | int]] = {"text_output": [raw], "finish_reason": [str(finish).encode()]}
    return outputs if tokens is None else outputs | {"num_output_tokens": [tokens]}


class FakeStream:
    """One generation's script, played."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = list(steps)
        self._cancelled = asyncio.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    async def next(self) -> Outputs | None:
        while self._steps:
            step = self._steps.pop(0)
            if isinstance(step, EngineFault):
                raise step
            if not isinstance(step, float):
                return step
            try:
                async with asyncio.timeout(step):
                    await self._cancelled.wait()
            except TimeoutError:
                continue
            raise EngineFault("CANCELLED", "closed by the gateway")
        return None

    def cancel(self) -> None:
        self._cancelled.set()


class FakeTriton:
    """A server with one `textgen` and one `embed` model."""

    def __init__(self, *scripts: Sequence[Step], info: ModelInfo = LLM) -> None:
        self.server_is_ready: bool | EngineFault = True
        self.models_ready: dict[str, bool] = {"textgen": True, "embed": True}
        self.infos: dict[str, ModelInfo | EngineFault] = {"textgen": info, "embed": EMBED}
        self.scripts = list(scripts)  # one a generation; the last one repeats
        self.streams: list[FakeStream] = []
        self.sent: list[dict[str, Tensor]] = []
        self.batches: list[list[bytes]] = []
        self.embed: Callable[[bytes], bytes | EngineFault] = lambda text: bytes([len(text), 0, 0, 0] * 2)
        self.embed_takes_s = 0.01
        self.described = 0
        self.closed = False

    async def server_ready(self) -> bool:
        if isinstance(self.server_is_ready, EngineFault):
            raise self.server_is_ready
        return self.server_is_ready

    async def model_ready(self, model: str) -> bool:
        return self.models_ready[model]

    async def describe(self, model: str) -> ModelInfo:
        self.described += 1
        info = self.infos[model]
        if isinstance(info, EngineFault):
            raise info
        return info

    def stream(
        self, model: str, tensors: Sequence[Tensor], *, request_id: str, headers: Mapping[str, str]
    ) -> FakeStream:
        self.sent.append({tensor.name: tensor for tensor in tensors})
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.streams.append(FakeStream(script))
        return self.streams[-1]

    async def infer_rows(self, model: str, tensors: Sequence[Tensor], *, output: str, rows: int) -> list[bytes]:
        texts = [bytes(value) for value in tensors[0].values if isinstance(value, bytes)]
        self.batches.append(texts)
        await asyncio.sleep(self.embed_takes_s)
        vectors = [self.embed(text) for text in texts]
        for vector in vectors:
            if isinstance(vector, EngineFault):
                raise vector
        return [vector for vector in vectors if isinstance(vector, bytes)]

    async def aclose(self) -> None:
        self.closed = True


def backend_over(
    client: FakeTriton,
    *,
    upstream: Upstream | None = None,
    microbatch: MicroBatch | None = None,
    replica: Mapping[str, object] | None = None,
    metrics_page: str = "",
) -> TritonBackend:
    """A backend on the fake server; `metrics_page` is what its metrics URL answers."""
    config = {
        "name": "t1",
        "backend": "triton",
        "url": "grpc://127.0.0.1:1",
        "models": [{"name": "textgen"}, {"name": "embed", "kind": "embedding"}],
        **(replica or {}),
    }
    transport = httpx.MockTransport(lambda _: httpx.Response(200 if metrics_page else 404, text=metrics_page))
    return TritonBackend(
        ReplicaConfig.model_validate(config),
        upstream=upstream or Upstream(),
        microbatch=microbatch or MicroBatch(),
        http=httpx.AsyncClient(transport=transport),
        wall_time_s=lambda: 1_700_000_000.9,
        client=client,
    )


def chat(content: object = "hi", *, stream: bool = True, **fields: object) -> EngineCall:
    """A chat call."""
    body = {"model": "textgen", "messages": [{"role": "user", "content": content}], "stream": stream, **fields}
    return EngineCall(request_id="r1", path="/v1/chat/completions", body=json.dumps(body).encode(), stream=stream)


def completion(prompt: object = "hi", *, stream: bool = True, **fields: object) -> EngineCall:
    """A plain completion call."""
    body = {"model": "textgen", "prompt": prompt, "stream": stream, **fields}
    return EngineCall(request_id="r1", path="/v1/completions", body=json.dumps(body).encode(), stream=stream)


def embeddings(value: object = "hi", **fields: object) -> EngineCall:
    """An embeddings call."""
    body = {"model": "embed", "input": value, **fields}
    return EngineCall(request_id="r1", path="/v1/embeddings", body=json.dumps(body).encode(), stream=False)


async def read(reply: EngineReply) -> bytes:
    """A reply's whole body; the reply is closed."""
    try:
        return b"".join([piece async for piece in reply.body()])
    finally:
        await reply.aclose()
