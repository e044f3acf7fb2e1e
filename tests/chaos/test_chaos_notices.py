"""A cloud takes a machine back: with notice of 30 or of 120 seconds, earlier than it said, or not at all after all."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from tests.chaos.fleet import Fleet, fleet, must_continue
from tests.support.conditions import until
from tests.support.engine_process import EngineProcess
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import ask, get, post
from tests.support.stream_client import Told, chat_body

STREAMS = 12
KEY = "only-for-the-tests-0123456789abcdef"
SERVER = {"admin_key": KEY}


@pytest.fixture(scope="module")
def doomed() -> Iterator[list[EngineProcess]]:
    """Three: a long answer outlives the first (some 40 ms a token); the others are quick, so that what has moved soon ends."""
    with ExitStack() as stack:
        yield [stack.enter_context(EngineProcess(seed=n, speed=speed)) for n, speed in enumerate((0.2, 4.0, 4.0), 1)]


async def admin(found: Fleet, name: str, what: str = "", document: Any = None) -> Any:
    """One call of the admin API; the replica as it stands then."""
    path, key = f"/admin/replicas/{name}{what}", f"authorization: Bearer {KEY}"
    answer = await ask(found.url, get(path, key) if document is None else post(path, document, key))
    assert answer.status == 200, answer.body
    return answer.json()


async def notice(found: Fleet, name: str, in_s: float) -> Any:
    now = time.time()  # noqa: TID251 - clouds tell their deadlines by the wall clock
    told = {
        "provider": "aws",
        "kind": "reclaim",
        "deadline_unix_s": now + in_s,
        "observed_unix_s": now,
        "id": f"{name}-{in_s}",
    }
    return await admin(found, name, "/notice", told)


async def streams_under_way(found: Fleet, group: asyncio.TaskGroup, what: str, tokens: int) -> list[asyncio.Task[Told]]:
    """Once all of them have tokens."""
    begun = [0] * STREAMS

    def watcher(number: int) -> Any:
        async def watch(count: int) -> None:
            begun[number] = count

        return watch

    tasks = [
        group.create_task(found.ask(chat_body(f"{what} {n}", tokens), at_token=watcher(n))) for n in range(STREAMS)
    ]
    await until(lambda: min(begun) > 2, lambda: begun)
    return tasks


def resumed(found: Fleet) -> float:
    return found.running.metric("penstock_stream_interruptions_total", action="resumed")


def all_whole(tasks: Sequence[asyncio.Task[Told]]) -> None:
    for task in tasks:
        must_continue(task.result())
    assert "r0" in {task.result().headers["x-penstock-replica"] for task in tasks}


async def until_released(found: Fleet, name: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not (await admin(found, name))["released"]:
            await asyncio.sleep(0.02)


async def revived(engine: EngineProcess) -> None:
    if not engine.running:
        engine.start()
    await engine.ready()


# Whoever may be done in time stays until just before: the short form has a shorter notice, and a machine as slow.
NOTICES = [
    pytest.param(6, 400, id="6 s, moved"),
    pytest.param(30, 1200, id="30 s, moved", marks=pytest.mark.bars),
    pytest.param(120, 60, id="120 s, finished there"),
]


@pytest.mark.parametrize(("in_s", "tokens"), NOTICES)
async def test_notice(doomed: list[EngineProcess], in_s: float, tokens: int) -> None:
    """Streams that would outlive the machine move, others finish there; it is released, and its end is nobody's loss."""
    await revived(doomed[0])
    async with fleet(doomed, server=SERVER) as found:
        async with asyncio.TaskGroup() as group:
            tasks = await streams_under_way(found, group, f"Notice {in_s}", tokens)
            told = await notice(found, "r0", in_s)
            assert told["lifecycle"] == "reclaiming"
            # That this comes in time is a matter of virtual time (tests/sim/test_replicas_left_in_time.py).
            await until_released(found, "r0")
            doomed[0].kill()
        all_whole(tasks)


async def test_notice_then_early_kill(doomed: list[EngineProcess]) -> None:
    """The machine goes right after its notice of 30 s: what had not moved yet moves now."""
    await revived(doomed[0])
    async with fleet(doomed, server=SERVER) as found:
        async with asyncio.TaskGroup() as group:
            tasks = await streams_under_way(found, group, "Early", 400)
            await notice(found, "r0", 30)
            doomed[0].kill()
        all_whole(tasks)
        assert resumed(found) > 0


async def test_notice_withdrawn(doomed: list[EngineProcess]) -> None:
    """A replica whose notice is withdrawn takes work again; no stream was lost to it."""
    await revived(doomed[0])
    async with fleet(doomed, server=SERVER) as found:
        async with asyncio.TaskGroup() as group:
            tasks = await streams_under_way(found, group, "Withdrawn", 100)
            await notice(found, "r0", 120)
            await admin(found, "r0", "/restore", {})
        all_whole(tasks)
        await found.until_ready()


async def test_two_notices_at_once(doomed: list[EngineProcess]) -> None:
    """Two of three machines are taken at once: all that must move fits the third, or waits for it; nothing is lost."""
    for engine in doomed[:2]:
        await revived(engine)
    async with fleet(doomed, server=SERVER) as found:
        async with asyncio.TaskGroup() as group:
            tasks = await streams_under_way(found, group, "Two notices", 200)
            for name in ("r0", "r1"):
                await notice(found, name, 30)
            for name in ("r0", "r1"):
                await until_released(found, name)
            for engine in doomed[:2]:
                engine.kill()
        all_whole(tasks)
