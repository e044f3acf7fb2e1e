"""Each way in which an engine's answer can go wrong, once: before its head, in it, behind it, in mid-stream, and in its words."""

import asyncio

import pytest

from tests.chaos.fleet import IMPATIENT, fleet, must_continue, must_survive
from tests.support import faults
from tests.support.conditions import until, until_at_rest
from tests.support.engine_process import EngineProcess
from tests.support.fault_proxy import Fault, Passage
from tests.support.raw_http import ask, post
from tests.support.stream_client import chat_body, document_of, plain_body

# The faults of one request's attempts, and what a broken attempt counts as: of a stream, of a document.
BEFORE_ANY_CONTENT: dict[str, tuple[list[Fault], str, str]] = {
    # On a connection that stood idle the first such end means nothing: the request is sent once more on a new one.
    "reset before the head": ([faults.reset_before_head] * 2, "closed", "closed"),
    "closed before the head": ([faults.close_before_head] * 2, "closed", "closed"),
    "reset in the head": ([faults.reset_in_head], "stream_cut", "stream_cut"),
    "reset after the head": ([faults.reset_after_head], "stream_cut", "stream_cut"),
    "no HTTP": ([faults.speaks_something_else], "stream_cut", "stream_cut"),
    "a head without end": ([faults.endless_head], "stream_cut", "stream_cut"),
    "500": ([faults.status_500], "5xx", "5xx"),
    "503": ([faults.status_503], "rejected", "rejected"),
    "an error with status 200": ([faults.error_with_200], "stream_cut", "garbled"),
    "a page with status 200": ([faults.page_with_200], "stream_cut", "garbled"),
    "an error event with status 200": ([faults.error_event_with_200], "error_event", "garbled"),
    "nothing with status 200": ([faults.empty_200], "stream_cut", "garbled"),
}
IN_MID_STREAM: dict[str, tuple[Fault, str]] = {
    "an error event": (faults.engine_error, "error_event"),
    "[DONE] without a finish reason": (faults.early_done, "stream_cut"),
    "a clean end without a finish reason": (faults.clean_end, "stream_cut"),
    "garbage for an event": (faults.garbage, "error_event"),
    "garbage for framing": (faults.garbage_framing, "stream_cut"),
    "a line of 5 MiB": (faults.huge_line, "stream_cut"),
    "silence": (faults.hang, "stream_cut"),
}
TAUGHT = 25  # answers of a replica, before it can be late by its prediction (docs/hedging.md)
SILENCE: dict[str, Fault] = {
    "before the head": faults.hang_before_head,
    "after the head": faults.hang_after_head,
}


@pytest.mark.parametrize("kind", list(BEFORE_ANY_CONTENT))
async def test_broken_before_any_content(engines: list[EngineProcess], kind: str) -> None:
    """Nothing was forwarded: another replica answers, chats and plain completions, streams and documents alike."""
    async with fleet(engines) as found:
        what, stream, document = BEFORE_ANY_CONTENT[kind]
        for body in (chat_body(f"Before {kind}", 12), plain_body(f"Before {kind}", 12)):
            must_continue(await found.ask(body, *what), kind)
            must_continue(await found.ask(document_of(body), *what), kind)
        assert {name for name, _ in found.plan.met} == set(map(found.name, range(1, 5)))
        await until_at_rest(found.running)
        assert found.broken_attempts().keys() == {stream, document}
        assert found.running.metric("penstock_stream_interruptions_total") == 0


async def test_broken_twice_before_any_content(engines: list[EngineProcess]) -> None:
    """Two of three fail one after the other; the third answers."""
    async with fleet(engines) as found:
        for first, second in (
            (faults.reset_before_head, faults.status_500),
            (faults.page_with_200, faults.reset_in_head),
        ):
            must_continue(await found.ask(chat_body("Twice", 12), first, second))


async def test_broken_everywhere(engines: list[EngineProcess]) -> None:
    """Where every attempt fails the client is told so, with a status; the gateway goes on."""
    async with fleet(engines) as found:
        answer = await found.ask(chat_body("Everywhere", 12), *[faults.reset_before_head] * 9)
        assert answer.status in {502, 503}
        assert len(found.plan.met) >= 3
        found.plan.add(found.name(1))  # it gave up before it had met them all
        must_continue(await found.ask(chat_body("Afterwards", 12)))


@pytest.mark.parametrize("kind", list(IN_MID_STREAM))
async def test_broken_in_mid_stream(engines: list[EngineProcess], kind: str) -> None:
    """After 5 tokens of 12: the client sees the rest from elsewhere."""
    async with fleet(engines, **(IMPATIENT if kind == "silence" else {})) as found:
        for body in (chat_body(f"Amid {kind}", 12), plain_body(f"Amid {kind}", 12)):
            must_continue(await found.ask(body, faults.at_token(5, IN_MID_STREAM[kind][0])), kind)
        await until_at_rest(found.running)
        broken = found.broken_attempts()
        assert broken.keys() == {IN_MID_STREAM[kind][1]}
        resumed = found.running.metric("penstock_stream_interruptions_total", action="resumed")
        # A busy engine may be silent for as long as one that is broken.
        assert (broken[IN_MID_STREAM[kind][1]], resumed) == (2, 2) or (kind == "silence" and resumed > 2)


@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_an_engine_that_gives_up(engines: list[EngineProcess], reason: str) -> None:
    """An engine's finish reasons for a request that it aborts of its own accord are no answer's end."""
    async with fleet(engines) as found:
        must_continue(await found.ask(chat_body(f"Gives up {reason}", 12), faults.finishes(5, reason)))


@pytest.mark.parametrize(("kind", "document"), [("before the head", True), ("after the head", False)])
async def test_silence_before_any_content(engines: list[EngineProcess], kind: str, document: bool) -> None:
    """An engine that takes a request and says nothing: the answer comes from another one, by a second try beside the first."""
    hedge = {"floor_s": 0.3, "budget_ratio": 1}
    patient = {"first_byte_timeout_s": 60}
    async with fleet(engines[:2], dearer=9, scheduling={"hedge": hedge}, upstream=patient) as found:
        body = chat_body(f"Silent {kind}", 12)
        wanted = document_of(body) if document else body
        for _ in range(TAUGHT):
            must_continue(await found.ask(wanted))
        must_continue(await found.ask(wanted, SILENCE[kind]), kind)


async def test_usage_told_twice(engines: list[EngineProcess]) -> None:
    """The client gets it once; nothing else is wrong with such an answer."""
    async with fleet(engines) as found:
        must_continue(await found.ask(chat_body("Twice told", 12), faults.duplicate_usage))
        must_continue(await found.ask(plain_body("Twice told", 12), faults.duplicate_usage))


async def test_slow_drip(engines: list[EngineProcess]) -> None:
    """An answer that comes byte by byte is whole, if late: no timeout between bytes counts against it."""
    async with fleet(engines) as found:
        must_continue(await found.ask(chat_body("Drip", 3), faults.drip))


async def test_a_long_comment(engines: list[EngineProcess]) -> None:
    """A comment of 1 MiB between two tokens is legal and changes nothing: it is read past."""

    async def comment(passage: Passage) -> None:
        await passage.send_head()
        async for event in passage.events():
            await passage.send(event)
            await passage.send(b": " + b"x" * 2**20 + b"\n\n")
        await passage.end()

    async with fleet(engines) as found:
        must_continue(await found.ask(chat_body("Comment", 3), comment))


async def test_connections_refused(engines: list[EngineProcess]) -> None:
    """One replica's port refuses all of a sudden: requests that were on their way to it go elsewhere, and so do the next ones."""
    async with fleet(engines) as found:
        await found.proxies["r0"].refuse()
        answers = await asyncio.gather(*(found.ask(chat_body(f"Refused {n}", 12)) for n in range(20)))
        for answer in answers:
            must_continue(answer)
        await until(lambda: found.lifecycles()["r0"] != "ready", found.lifecycles)
        await found.proxies["r0"].open()
        await found.until_ready()
        must_continue(await found.ask(chat_body("Back", 12)))


async def test_connections_refused_in_mid_stream(engines: list[EngineProcess]) -> None:
    """All connections to two of three replicas are cut at once, and new ones refused: every stream goes on at the third."""
    async with fleet(engines) as found:
        begun = asyncio.Event()

        async def wait(tokens: int) -> None:
            if tokens >= 20:
                begun.set()

        streams = [found.ask(chat_body(f"Stands {n}", 600), at_token=wait) for n in range(12)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(stream) for stream in streams]
            await begun.wait()
            await found.proxies["r0"].refuse()
            await found.proxies["r1"].refuse()
        answers = [task.result() for task in tasks]
        by_replica = {name: [a for a in answers if a.headers["x-penstock-replica"] == name] for name in found.proxies}
        for answer in by_replica["r2"]:
            must_continue(answer)
        must_survive(found, by_replica["r0"] + by_replica["r1"])
        await found.proxies["r0"].open()
        await found.proxies["r1"].open()


async def test_metrics_black_hole(engines: list[EngineProcess]) -> None:
    """An engine that accepts and never answers /metrics serves on: its room is reckoned from our own ledger."""
    async with fleet(engines[:1], probe={"interval_s": 0.05, "timeout_s": 1.5, "stale_after_s": 0.3}) as found:
        (proxy,) = found.proxies.values()
        proxy.black_hole = frozenset({b"/metrics"})
        scheduler = found.running.gateway.scheduler
        loop = asyncio.get_running_loop()
        (state,) = scheduler.states(0.0)
        await until(lambda: scheduler.ledger_only(state.profile.id, loop.time()))
        answers = await asyncio.gather(*(found.ask(chat_body(f"Black {n}", 12)) for n in range(20)))
        for answer in answers:
            must_continue(answer)
        assert found.lifecycles() == {"r0": "ready"}
        proxy.black_hole = frozenset()
        await until(lambda: not scheduler.ledger_only(state.profile.id, loop.time()))


async def test_everything_black_hole(engines: list[EngineProcess]) -> None:
    """A replica none of whose probes is answered any more goes down, and comes back with them."""
    async with fleet(engines, probe={"interval_s": 0.05, "timeout_s": 1.5}) as found:
        found.proxies["r1"].black_hole = frozenset({b"/metrics", b"/health", b"/v1/models"})
        await until(lambda: found.lifecycles()["r1"] != "ready", found.lifecycles)
        for number in range(6):
            answer = await found.ask(chat_body(f"Without {number}", 12))
            must_continue(answer)
            assert answer.headers["x-penstock-replica"] != "r1"
        found.proxies["r1"].black_hole = frozenset()
        await found.until_ready()


async def test_what_cannot_be_resumed_is_told(engines: list[EngineProcess]) -> None:
    """Two choices in one answer cannot be continued elsewhere: an explicit error event, never a silent short answer."""
    async with fleet(engines) as found:
        found.plan.add("two-choices-", faults.at_token(7, faults.cut))
        body = chat_body("Two choices", 12, n=2)
        answer = await ask(found.url, post("/v1/chat/completions", body, "x-request-id: two-choices-"))
        assert "error" in answer.events()[-1]
        assert b"[DONE]" not in answer.body
