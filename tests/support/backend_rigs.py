"""Each kind of backend with an engine behind it that can be told to answer, to go on for ever, or to refuse."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from backends.backend import Backend, EngineCall
from backends.simulated.backend import SimulatedBackend
from backends.simulated.options import EngineOptions
from backends.simulated.server import create_engine_app
from backends.vllm import HttpBackend
from config.schema import ReplicaConfig, Upstream
from tests.support.fake_engine import FakeEngine, Script, chunk, document, whole_stream
from tests.support.servers import served
from tests.support.triton_fake import NEVER_S, FakeTriton, backend_over, token

WORDS = 3
# A token takes some 10 ms: thousands of them outlast any test.
ENDLESS = 3000
_OPTIONS = EngineOptions(model="m", kv_blocks=512, max_model_len=4096)


@dataclass(kw_only=True)
class Rig:
    """`prepare` readies the engine for the call that follows; `busy` is how much the engine works on."""

    backend: Backend
    model: str
    busy: Callable[[], Awaitable[float]]
    prepare: Callable[[str, bool], None] = lambda _what, _stream: None

    def call(self, what: str = "whole", *, stream: bool = True) -> EngineCall:
        """`what`: whole, endless or refused."""
        self.prepare(what, stream)
        fields: dict[str, Any] = {
            "model": "nobody" if what == "refused" else self.model,
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": stream,
            "max_tokens": ENDLESS if what == "endless" else WORDS,
            "ignore_eos": True,
        }
        if stream:
            fields["stream_options"] = {"include_usage": True}
        return EngineCall(
            request_id="req-1", path="/v1/chat/completions", body=json.dumps(fields).encode(), stream=stream
        )  # fmt: skip


async def _probed(backend: Backend) -> float:
    metrics = (await backend.probe()).metrics
    return metrics["running"] + metrics["waiting"]


@asynccontextmanager
async def simulated() -> AsyncIterator[Rig]:
    backend = SimulatedBackend(_OPTIONS)
    yield Rig(backend=backend, model="m", busy=lambda: _probed(backend))
    await backend.aclose()


@asynccontextmanager
async def over_http() -> AsyncIterator[Rig]:
    """HttpBackend and, on a socket of its own, a simulated vLLM; its work is asked for past the backend."""
    async with (
        served(create_engine_app(_OPTIONS), graceful_s=1) as url,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        replica = ReplicaConfig.model_validate({"name": "r", "url": url})
        backend = HttpBackend(replica, upstream=Upstream())

        async def busy() -> float:
            load: float = (await client.get(f"{url}/load")).json()["server_load"]
            return load

        yield Rig(backend=backend, model="m", busy=busy)
        await backend.aclose()


@asynccontextmanager
async def fake() -> AsyncIterator[Rig]:
    engine = FakeEngine()
    error = b'{"error":{"message":"no","type":"NotFoundError","param":"model","code":404}}'

    def prepare(what: str, stream: bool) -> None:
        json_type = "application/json"
        if what == "refused":
            script = Script([error], status=404, content_type=json_type)
        elif what == "endless":
            script = Script([chunk("w", role="assistant")], hang=True) if stream else Script(head_s=1e6)
        else:
            script = (
                Script(whole_stream(WORDS)) if stream else Script([document(completion=WORDS)], content_type=json_type)
            )
        engine.scripts.append(script)

    async def busy() -> float:
        return engine.running

    yield Rig(backend=engine, model="m", busy=busy, prepare=prepare)
    await engine.aclose()


@asynccontextmanager
async def triton() -> AsyncIterator[Rig]:
    whole = [token("a "), token("b "), token("c", finish="length")]
    client = FakeTriton(whole)
    backend = backend_over(client)

    def prepare(what: str, _stream: bool) -> None:
        client.scripts = [[token("a "), NEVER_S, token("b", finish="stop")] if what == "endless" else whole]

    async def busy() -> float:
        return sum(not stream.cancelled and bool(stream._steps) for stream in client.streams)

    yield Rig(backend=backend, model="textgen", busy=busy, prepare=prepare)
    await backend.aclose()


RIGS: dict[str, Callable[[], AbstractAsyncContextManager[Rig]]] = {
    "simulated": simulated,
    "http": over_http,
    "fake": fake,
    "triton": triton,
}
