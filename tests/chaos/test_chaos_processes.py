"""Engines as processes that are killed, frozen and told to go under streams; and all of them gone, then back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from tests.chaos.fleet import IMPATIENT, Fleet, fleet, must_be_told, must_continue, must_survive
from tests.support.conditions import until
from tests.support.engine_process import EngineProcess
from tests.support.patience import PATIENCE_S
from tests.support.stream_client import AtToken, Told, chat_body

STREAMS = 18
TOKENS = 100  # some 20 ms each: under way when something happens to their engine, though their clients are slow to see them begin
BEGUN_TOKENS = 5


@pytest.fixture(scope="module")
def mortals() -> Iterator[list[EngineProcess]]:
    """Three whose lives the tests end; each test begins with all of them running."""
    with ExitStack() as stack:
        yield [stack.enter_context(EngineProcess(seed=seed, speed=0.4)) for seed in (1, 2, 3)]


@asynccontextmanager
async def alive(engines: Sequence[EngineProcess], **sections: Any) -> AsyncIterator[Fleet]:
    for engine in engines:
        if not engine.running:
            engine.start()
    async with fleet(engines, **sections) as found:
        yield found


async def under_streams(found: Fleet, what: str, strike: Callable[[], None], tokens: int = TOKENS) -> list[Told]:
    """Begin streams on every replica, strike once all have tokens, and read them to their ends."""
    begun = [0] * STREAMS
    struck = asyncio.Event()

    def watcher(number: int) -> AtToken:
        async def watch(count: int) -> None:
            begun[number] = count
            if min(begun) >= BEGUN_TOKENS and not struck.is_set():
                struck.set()
                strike()

        return watch

    answers = await asyncio.gather(
        *(found.ask(chat_body(f"{what} {n}", tokens), at_token=watcher(n)) for n in range(STREAMS))
    )
    assert struck.is_set()
    return answers


def on(answers: Sequence[Told], *names: str) -> list[Told]:
    """Those that began on these replicas."""
    return [answer for answer in answers if answer.headers.get("x-penstock-replica") in names]


async def test_kill_9(mortals: list[EngineProcess]) -> None:
    """One of three dies under its streams: they go on elsewhere, the others' are not touched; it comes back and takes work."""
    async with alive(mortals) as found:
        answers = await under_streams(found, "Kill", mortals[0].kill)
        for answer in on(answers, "r1", "r2"):
            must_continue(answer)
        must_survive(found, on(answers, "r0"))
        await until(lambda: found.lifecycles()["r0"] != "ready", found.lifecycles)
        mortals[0].start()
        await found.until_ready()
        await until_takes_work(found, "r0")


async def test_two_of_three_at_once(mortals: list[EngineProcess]) -> None:
    """The third takes the streams of both."""

    def strike() -> None:
        mortals[0].kill()
        mortals[1].kill()

    async with alive(mortals) as found:
        answers = await under_streams(found, "Two", strike)
        for answer in on(answers, "r2"):
            must_continue(answer)
        must_survive(found, on(answers, "r0"))
        must_survive(found, on(answers, "r1"))
        must_continue(await found.ask(chat_body("Then", 20)))


async def test_all_gone_then_back(mortals: list[EngineProcess]) -> None:
    """No engine is left: every client gets its whole answer or is told so, none waits for ever; with the engines service comes back by itself."""

    def strike() -> None:
        for engine in mortals:
            engine.kill()

    async with alive(mortals, migration={"max_wait_s": 3.0}) as found:
        for answer in await under_streams(found, "All", strike):
            if answer.faults:
                must_be_told(answer)
        await until(lambda: "ready" not in found.lifecycles().values(), found.lifecycles)
        refused = await found.ask(chat_body("Nobody", 5))
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        for engine in mortals:
            engine.start()
        await found.until_ready()
        for answer in await asyncio.gather(*(found.ask(chat_body(f"Back {n}", 20)) for n in range(12))):
            must_continue(answer)


async def test_sigstop_and_sigcont(mortals: list[EngineProcess]) -> None:
    """An engine freezes under its streams, its sockets standing: they go on elsewhere; thawed, it comes back."""
    async with alive(mortals, **IMPATIENT) as found:
        try:
            answers = await under_streams(found, "Freeze", mortals[0].freeze)
            for answer in on(answers, "r1", "r2"):
                must_continue(answer)
            must_survive(found, on(answers, "r0"))
            await until(lambda: found.lifecycles()["r0"] != "ready", found.lifecycles)
            for number in range(6):
                must_continue(await found.ask(chat_body(f"Meanwhile {number}", 10)))
        finally:
            mortals[0].thaw()
        await found.until_ready()
        await until_takes_work(found, "r0")


async def test_a_short_freeze_is_no_fault(mortals: list[EngineProcess]) -> None:
    """An engine that stands still for less than anybody's patience goes on where it was."""
    loop = asyncio.get_running_loop()

    def strike() -> None:
        mortals[0].freeze()
        loop.call_later(0.2, mortals[0].thaw)

    async with alive(mortals) as found:
        for answer in await under_streams(found, "Hiccup", strike):
            must_continue(answer)


async def test_sigterm(mortals: list[EngineProcess]) -> None:
    """An engine that is told to go ends its streams with its error event: no answer's end."""
    async with alive(mortals) as found:
        answers = await under_streams(found, "Term", mortals[0].terminate)
        for answer in on(answers, "r1", "r2"):
            must_continue(answer)
        must_survive(found, on(answers, "r0"))
        await until(lambda: not mortals[0].running)


async def until_takes_work(found: Fleet, name: str) -> None:
    """Until an answer comes from this replica; each is right."""
    async with asyncio.timeout(PATIENCE_S):
        number = 0
        replica = ""
        while replica != name:
            number += 1
            batch = [found.ask(chat_body(f"Work {name} {number} {n}", 30)) for n in range(6)]
            for answer in await asyncio.gather(*batch):
                must_continue(answer)
                replica = name if answer.headers["x-penstock-replica"] == name else replica
