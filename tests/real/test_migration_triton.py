"""Streams of a real Triton that is killed, frozen or told to go, or whose connection breaks, go on at another one by text."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from backends.backend import Backend
from backends.triton import TritonBackend
from batching.request import ReplicaId
from config.schema import Config
from router.standing import Kind, Standing
from tests.real.triton_server import TritonServer
from tests.support.asgi import Call, post
from tests.support.breaking_engine import BreakingEngine
from tests.support.gateways import Running, gateway_over
from tests.support.patience import PATIENCE_S

pytestmark = pytest.mark.real

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOKENS = 20
MORTAL, OTHER = ReplicaId("mortal"), ReplicaId("other")
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
    return Config.model_validate({"replicas": replicas, "probe": {"timeout_s": 10}, "health": {"silence_s": 3}})


def backend(config: Config, number: int, http: httpx.AsyncClient) -> Backend:
    replica = config.replicas[number]
    return TritonBackend(replica, upstream=config.upstream, microbatch=config.microbatch, http=http, probe_timeout_s=10)


async def asked(running: Running, path: str, **fields: Any) -> Call:
    return await post(running.app, path, {**STREAMED, **fields}).run()


def check_one_stream(call: Call, tokens: int = TOKENS) -> None:
    *events, done = call.events()
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert not any("error" in chunk for chunk in chunks)
    assert len({(chunk["id"], chunk["object"]) for chunk in chunks}) == 1
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]] == ["length"]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [usage["completion_tokens"] for usage in usages] == [tokens]


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


@asynccontextmanager
async def under_way(
    mortal: TritonServer, other: TritonServer, tokens: int
) -> AsyncIterator[tuple[Running, list[Call]]]:
    """Six streams, each some tokens far, at the mortal one. At the end all have ended whole, and none without having moved."""
    config = settings(mortal=mortal, other=other)
    async with httpx.AsyncClient() as http:
        engines = {name: backend(config, number, http) for number, name in enumerate(("mortal", "other"))}
        async with gateway_over(engines, config) as running:
            farewells = running.gateway.farewells
            farewells.join(OTHER, Standing(kind=Kind.DRAIN))
            messages = [{"role": "user", "content": "Tell me of the river."}]
            body = {**STREAMED, "messages": messages, "max_tokens": tokens}
            calls = [post(running.app, CHAT, {**body, "user": str(number)}) for number in range(6)]
            async with asyncio.TaskGroup() as tasks:
                for call in calls:
                    tasks.create_task(call.run())
                for call in calls:
                    await call.until_chunks(4)
                farewells.told(OTHER, None)
                assert running.gateway.dispatcher.moves.requests_on(MORTAL) == len(calls)
                yield running, calls
            for call in calls:
                check_one_stream(call, tokens)
            assert running.metric("penstock_stream_interruptions_total", action="resumed", mode="text") == len(calls)
            assert running.metric("penstock_stream_interruptions_total", action="errored") == 0


async def emptied(running: Running) -> None:
    """The mortal one has nothing of ours any more."""
    async with asyncio.timeout(PATIENCE_S):
        while running.gateway.dispatcher.moves.requests_on(MORTAL):
            await asyncio.sleep(0.02)


async def test_a_killed_triton_is_survived(triton: TritonServer, mortal: TritonServer) -> None:
    """SIGKILL to its whole process group with streams under way: each goes on at the other."""
    async with under_way(mortal, triton, 100):
        mortal.kill()


async def test_a_frozen_triton_is_left(triton: TritonServer, mortal: TritonServer) -> None:
    """SIGSTOP to all of it: its streams go on at the other one; thawed, it comes back."""
    async with under_way(mortal, triton, 400) as (running, _):
        with mortal.frozen():
            await emptied(running)
        async with asyncio.timeout(PATIENCE_S):
            while running.metric("penstock_replica_up", replica="mortal") != 1:
                await asyncio.sleep(0.02)


async def test_a_triton_whose_model_is_frozen_is_left(triton: TritonServer, mortal: TritonServer) -> None:
    """SIGSTOP to the process of the model alone: its streams stand still, and go on at the other one."""
    async with under_way(mortal, triton, 400) as (running, _):
        with mortal.frozen_stub("textgen"):
            await emptied(running)


async def test_a_triton_that_is_told_to_go_is_emptied(triton: TritonServer, mortal: TritonServer) -> None:
    """A notice too short for the answers: they move, each when it has a place, and the machine is released."""
    async with under_way(mortal, triton, 1000) as (running, _):
        deadline_s = asyncio.get_running_loop().time() + 3
        farewells = running.gateway.farewells
        farewells.join(MORTAL, Standing(kind=Kind.RECLAIM, provider="aws", deadline_s=deadline_s))
        async with asyncio.timeout(PATIENCE_S):
            while MORTAL not in farewells.left().released:
                await asyncio.sleep(0.02)
        await emptied(running)
