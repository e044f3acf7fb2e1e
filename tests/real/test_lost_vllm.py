"""A real vLLM that freezes, is told to go, and is killed, under streams: each of them is token for token the uninterrupted one."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from batching.request import ReplicaId
from config.schema import Config
from router.standing import Kind, Standing
from tests.real.gateway_process import vllm_replica
from tests.real.test_migration_vllm import ASKED, CHAT, check, uninterrupted
from tests.real.vllm_server import MODEL, VllmServer
from tests.support.asgi import Call, post
from tests.support.frozen import frozen
from tests.support.gateways import Running, gateway_over

pytestmark = pytest.mark.real

TOKENS = 1900  # seconds of work: it must not be over before anything has happened
STREAMED: Mapping[str, Any] = {
    "model": MODEL,
    "stream": True,
    "stream_options": {"include_usage": True},
    "return_token_ids": True,
}
MORTAL, OTHER = ReplicaId("mortal"), ReplicaId("other")
_PATIENCE_S = 180
_MOST_TRIES = 5


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    server = VllmServer(tmp_path_factory.mktemp("mortal") / "vllm.log")
    try:
        yield server.start().wait_ready().warm()
    finally:
        server.stop()


def body(number: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"Number {number}: tell me of a mill."}],
        **ASKED,
        "max_tokens": TOKENS,
    }


@asynccontextmanager
async def fleet(mortal: VllmServer, other: VllmServer) -> AsyncIterator[Running]:
    replicas = [
        vllm_replica("mortal", mortal),
        vllm_replica("other", other),
    ]
    # CPU engines beside everything else on two cores: what they are to be judged by is generous.
    patience = {"probe": {"timeout_s": 10}, "upstream": {"connect_timeout_s": 10}, "health": {"silence_s": 3}}
    config = Config.model_validate({"replicas": replicas, "scheduling": {"hedge": {"enabled": False}}, **patience})
    async with gateway_over({}, config) as running:
        yield running


async def under_way(running: Running, count: int, tasks: asyncio.TaskGroup) -> list[Call]:
    """So many streams, each some tokens far, all of them at the mortal replica: the other one is drained meanwhile.

    Again if they were over before the other one was back: engines that share two cores may keep each other waiting for as long as that.
    """
    farewells, on = running.gateway.farewells, running.gateway.dispatcher.moves.requests_on
    for _ in range(_MOST_TRIES):
        for replica in (MORTAL, OTHER):  # one that is cold takes as long to begin as the streams take to end
            await until(lambda replica=replica: running.metric("penstock_replica_up", replica=replica) == 1)
        farewells.join(OTHER, Standing(kind=Kind.DRAIN))
        calls = [post(running.app, CHAT, {**STREAMED, **body(number)}) for number in range(count)]
        streams = [tasks.create_task(call.run()) for call in calls]
        for call in calls:
            await call.until_chunks(1)
        farewells.told(OTHER, None)  # it is looked at while they go on
        await until(lambda: running.metric("penstock_replica_up", replica="other") == 1)
        for call in calls:
            await call.until_chunks(20)
        if on(MORTAL) == count:
            return calls
        await asyncio.wait(streams)
    raise AssertionError(f"{_MOST_TRIES} times streams of {TOKENS} tokens were over before another replica was back")


async def until(condition: Callable[[], bool]) -> None:
    """Engines on a busy machine take their time."""
    async with asyncio.timeout(_PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


def frozen_core(server: VllmServer) -> AbstractContextManager[None]:
    """Its engine core stops; its front end says that it is well."""
    assert server._process is not None
    pids = [
        int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_core_of(server._process.pid, int(entry.name))
    ]
    assert pids, "no engine core beside the server's own process"
    return frozen(pids)


def _is_core_of(group: int, pid: int) -> bool:
    try:
        return pid != group and os.getpgid(pid) == group and b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def check_all(calls: list[Call], other: VllmServer) -> None:
    for number, call in enumerate(calls):
        check(call, *uninterrupted(other, CHAT, body(number)))


async def test_a_frozen_engine_core_is_left(mortal: VllmServer, vllm_pair: tuple[VllmServer, VllmServer]) -> None:
    """SIGSTOP: /health answers 200 and streams stand still. They go on at the other one; thawed, it comes back."""
    async with fleet(mortal, vllm_pair[1]) as running:
        async with asyncio.TaskGroup() as tasks:
            calls = await under_way(running, 3, tasks)
            with frozen_core(mortal):
                await until(lambda: running.gateway.dispatcher.moves.requests_on(MORTAL) == 0)
        assert running.metric("penstock_replica_ejections_total", replica="mortal") >= 1
        await until(lambda: running.metric("penstock_replica_up", replica="mortal") == 1)
        check_all(calls, vllm_pair[1])


async def test_a_machine_that_is_told_to_go_is_emptied(
    mortal: VllmServer, vllm_pair: tuple[VllmServer, VllmServer]
) -> None:
    """A notice too short for the answers: they move, each when it has a place, and the machine is released."""
    async with fleet(mortal, vllm_pair[1]) as running:
        farewells = running.gateway.farewells
        async with asyncio.TaskGroup() as tasks:
            calls = await under_way(running, 3, tasks)
            deadline_s = asyncio.get_running_loop().time() + 4
            farewells.join(MORTAL, Standing(kind=Kind.RECLAIM, provider="aws", deadline_s=deadline_s))
            await until(lambda: MORTAL in farewells.left().released)
        assert running.metric("penstock_stream_interruptions_total", action="resumed", mode="exact") >= 1
        check_all(calls, vllm_pair[1])


async def test_a_killed_engine_is_survived(mortal: VllmServer, vllm_pair: tuple[VllmServer, VllmServer]) -> None:
    """SIGKILL to all its processes. The last of these tests: it stays dead."""
    async with fleet(mortal, vllm_pair[1]) as running:
        async with asyncio.TaskGroup() as tasks:
            calls = await under_way(running, 3, tasks)
            mortal.kill()
        assert running.metric("penstock_stream_interruptions_total", action="resumed", mode="exact") >= 1
        assert not any("error" in json.loads(event) for call in calls for event in call.events()[:-1])
        check_all(calls, vllm_pair[1])
