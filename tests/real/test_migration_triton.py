"""Streams of a real Triton that is killed, or whose connection breaks, go on at another one by text."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from backends.backend import Backend
from backends.triton import TritonBackend
from config.schema import Config
from tests.real.triton_server import TritonServer
from tests.support.asgi import Call, post
from tests.support.breaking_engine import BreakingEngine
from tests.support.gateways import Running, gateway_over

pytestmark = pytest.mark.real

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOKENS = 20
STREAMED = {"model": "textgen", "stream": True, "max_tokens": TOKENS, "stream_options": {"include_usage": True}}


@pytest.fixture
def mortal() -> Iterator[TritonServer]:
    """One that may be killed, and takes its time."""
    with TritonServer(itl_ms=50) as server:
        yield server


def settings(**servers: TritonServer) -> Config:
    replicas = [
        {
            "name": name,
            "backend": "triton",
            "url": server.grpc_url,
            "models": [{"name": "textgen", "kind": "chat"}],
            "capacity": {"max_num_seqs": 16, "max_model_len": 4096},
            # The cheapest is asked first.
            "cost": {"tier": "reserved", "usd_per_hour": 1.0 + number},
        }
        for number, (name, server) in enumerate(servers.items())
    ]
    return Config.model_validate({"replicas": replicas, "probe": {"timeout_s": 10}})


def backend(config: Config, number: int, http: httpx.AsyncClient) -> Backend:
    replica = config.replicas[number]
    return TritonBackend(replica, upstream=config.upstream, microbatch=config.microbatch, http=http, probe_timeout_s=10)


async def asked(running: Running, path: str, **fields: Any) -> Call:
    return await post(running.app, path, {**STREAMED, **fields}).run()


def check_one_stream(call: Call) -> None:
    *events, done = call.events()
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert not any("error" in chunk for chunk in chunks)
    assert len({(chunk["id"], chunk["object"]) for chunk in chunks}) == 1
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]] == ["length"]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [usage["completion_tokens"] for usage in usages] == [TOKENS]


async def test_a_stream_goes_on_behind_what_was_said(triton: TritonServer) -> None:
    """What follows the seam is what the engine says to the prompt and the answer so far, and not another answer."""
    config = settings(a=triton)
    async with httpx.AsyncClient() as http:
        engine = BreakingEngine(backend(config, 0, http))
        async with gateway_over({"a": engine}, config) as running:
            whole = (await asked(running, COMPLETIONS, prompt="Once upon a time")).text()
            for after in (3, 11):
                engine.breaks = [(after, "cut")]
                call = await asked(running, COMPLETIONS, prompt="Once upon a time")
                check_one_stream(call)
                said = " ".join(whole.split(" ")[:after]) + " "
                rest = await asked(running, COMPLETIONS, prompt="Once upon a time" + said, max_tokens=TOKENS - after)
                assert call.text() == said + rest.text()


async def test_a_character_across_the_seam_is_whole(triton: TritonServer) -> None:
    """Cut where the engine had said half of one: nothing of it is lost, doubled or replaced."""
    config = settings(a=triton)
    async with httpx.AsyncClient() as http:
        engine = BreakingEngine(backend(config, 0, http))
        async with gateway_over({"a": engine}, config) as running:
            for after in range(2, 9):
                engine.breaks = [(after, "cut")]
                call = await asked(running, CHAT, messages=[{"role": "user", "content": "[[utf8]]"}])
                assert call.events()[-1] == "[DONE]"
                assert "\ufffd" not in call.text()[:-1]  # the last token may be half a character


async def test_a_killed_triton_is_survived(triton: TritonServer, mortal: TritonServer) -> None:
    """SIGKILL to its whole process group with streams under way: each goes on at the other."""
    config = settings(mortal=mortal, other=triton)
    async with httpx.AsyncClient() as http:
        engines = {name: backend(config, number, http) for number, name in enumerate(("mortal", "other"))}
        async with gateway_over(engines, config) as running:
            messages = [{"role": "user", "content": "Tell me of the river."}]
            calls = [post(running.app, CHAT, {**STREAMED, "messages": messages, "user": str(n)}) for n in range(6)]
            tasks = [asyncio.get_running_loop().create_task(call.run()) for call in calls]
            for call in calls:
                await call.until_chunks(4)
            mortal.kill()
            await asyncio.gather(*tasks)
            for call in calls:
                check_one_stream(call)
            assert running.metric("penstock_stream_interruptions_total", action="resumed", mode="text") >= 1
            assert running.metric("penstock_stream_interruptions_total", action="errored") == 0
