"""Several whole gateways over one book, in one loop and virtual time: shares that follow demand, and a book that cannot be reached."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from backends.backend import Backend, EngineCall, ProbeResult
from tests.support.asgi import Call, chat, post
from tests.support.fake_book import FakeBook, Store
from tests.support.fake_engine import FakeEngine, FakeReply, Script, whole_stream
from tests.support.gateways import Running, gateway_over
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"
SEQUENCES = 8
NEW_BOOK_S = 3.0  # a lease and what comes after it: until then a new book gives nothing


class Engine(FakeEngine):
    """Done with an answer when it has said its last word, and not when somebody has thanked for it."""

    def __init__(self) -> None:
        super().__init__(default=lambda: Script(whole_stream(), gap_s=0.1))
        self.busy = self.most = 0

    async def send(self, call: EngineCall) -> FakeReply:
        reply = await super().send(call)
        pieces, said = reply._script.pieces, reply.body
        self.busy += 1
        self.most = max(self.most, self.busy)

        async def body() -> AsyncIterator[bytes]:
            async for piece in said():
                self.busy -= piece is pieces[-1]
                yield piece

        reply.body = body  # type: ignore[method-assign]
        return reply


def engine() -> Engine:
    return Engine()


@asynccontextmanager
async def gateway(
    store: Store, name: str, engines: Mapping[str, Backend], **redis: Any
) -> AsyncIterator[tuple[Running, FakeBook]]:
    """One of several; a replica's engine is told to run eight at once."""
    book = FakeBook(store)
    section = {"url": "redis://book:6379", "name": name, **redis}
    async with gateway_over(engines, None, {"max_num_seqs": SEQUENCES}, book=book, redis=section) as running:
        yield running, book


async def flood(running: Running, requests: int) -> list[int | None]:
    calls = await asyncio.gather(*(post(running.app, CHAT, chat(stream=True)).run() for _ in range(requests)))
    return [call.status for call in calls]


async def get(running: Running, path: str) -> Call:
    return await Call(running.app, path, method="GET").run()


async def shared(running: Running) -> dict[str, Any]:
    found: dict[str, Any] = (await get(running, "/readyz")).json()["shared"]
    return found


def share(running: Running, replica: str = "a") -> float:
    return running.metric("penstock_replica_share_ratio", replica=replica)


def test_an_engine_is_full_and_never_overfull():
    """Three gateways with far more work than there is room for: eight run at once, never nine, and all are served."""

    async def main() -> tuple[list[set[int | None]], int]:
        store, engines = Store(), {"a": engine()}
        async with AsyncExitStack() as stack:
            all_ = [(await stack.enter_async_context(gateway(store, f"g{i}", engines)))[0] for i in range(3)]
            statuses = await asyncio.gather(*(flood(running, 60) for running in all_))
        return [set(each) for each in statuses], engines["a"].most

    statuses, most = run_virtual(main())
    assert statuses == [{200}, {200}, {200}]
    assert most == SEQUENCES


def test_shares_follow_demand():
    """One gateway has all the work and gets all there is; the other's first request has its turn before most of that work is done."""

    async def main() -> tuple[float, bool]:
        store, engines = Store(), {"a": engine()}
        async with gateway(store, "busy", engines) as (busy, _), gateway(store, "idle", engines) as (idle, _):
            await asyncio.sleep(NEW_BOOK_S)
            work = asyncio.get_running_loop().create_task(flood(busy, 200))
            await asyncio.sleep(2)
            held = share(busy)
            async with asyncio.timeout(3):
                assert await flood(idle, 1) == [200]
            early = not work.done()
            await work
            return held, early

    assert run_virtual(main()) == (1.0, True)


def test_one_that_ends_leaves_everything_at_once():
    """A clean end says so: the other has the whole with its next report, no lease need lapse."""

    async def main() -> float:
        store, engines = Store(), {"a": engine()}
        async with gateway(store, "stays", engines) as (stays, _):
            async with gateway(store, "goes", engines):
                await asyncio.sleep(NEW_BOOK_S)
            await asyncio.sleep(1.1)
            return share(stays)

    assert run_virtual(main()) == 1.0


def test_without_redis_it_goes_on_with_less_and_then_with_nothing(caplog: pytest.LogCaptureFixture):
    """Last shares, then the static one, then - past forget_s - nothing; each is said once, shown in /readyz and counted; it comes back."""

    async def main() -> list[tuple[str, float, int | None]]:
        store, engines = Store(), {"a": engine()}
        seen: list[tuple[str, float, int | None]] = []
        async with gateway(store, "g", engines, forget_s=20) as (running, book):
            for wait_s, reachable in ((NEW_BOOK_S, True), (1.0, False), (2, False), (20, False), (2, True)):
                book.reachable = reachable
                await asyncio.sleep(wait_s)
                mode = (await shared(running))["mode"]
                seen.append((mode, share(running), (await get(running, "/readyz")).status))
                assert running.metric("penstock_shared_budget_state", state=mode) == 1
            assert running.metric("penstock_redis_errors_total", kind="timeout") > 10
            assert running.metric("penstock_shared_budget_age_seconds") < 1
        return seen

    with caplog.at_level(logging.INFO, "penstock.shared"):
        seen = run_virtual(main())
    assert seen == [
        ("redis", 1.0, 200),
        ("last_lease", 1.0, 200),
        ("static", 0.125, 200),
        ("none", 0.0, 503),
        ("redis", 1.0, 200),
    ]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "WARNING", "ERROR", "INFO"]


def test_nobody_fails_while_redis_is_away():
    """Requests come all the time, for a minute without Redis: all are served, the engine is never over-full."""

    async def main() -> tuple[set[int | None], int, list[float]]:
        store, engines = Store(), {"a": engine()}
        statuses: set[int | None] = set()
        async with gateway(store, "g1", engines) as (one, first), gateway(store, "g2", engines) as (two, second):
            for second_of in range(75):
                first.reachable = second.reachable = not 5 <= second_of < 65
                for running in (one, two):
                    statuses.update(await flood(running, 2))
                await asyncio.sleep(1)
            return statuses, engines["a"].most, [share(one), share(two)]

    statuses, most, held = run_virtual(main())
    assert statuses == {200}
    assert most <= SEQUENCES
    assert sum(held) == pytest.approx(1.0, abs=0.01)


def test_what_is_silent_is_given_to_others_after_its_lease():
    """A gateway that cannot be heard keeps an eighth; the other has seven once lease and settling have passed, and not before."""

    async def main() -> tuple[float, float, float]:
        store, engines = Store(), {"a": engine()}
        async with gateway(store, "g1", engines) as (one, _), gateway(store, "g2", engines) as (two, book):
            await asyncio.sleep(NEW_BOOK_S)
            book.reachable = False
            work = asyncio.get_running_loop().create_task(flood(one, 400))
            await asyncio.sleep(1.4)
            before = share(one)
            await asyncio.sleep(2)
            after = share(one), share(two)
            await work
            return before, *after

    before, after, kept = run_virtual(main())
    assert before == pytest.approx(0.5, abs=0.01)
    assert after == pytest.approx(0.875, abs=0.001)
    assert kept == 0.125


class Far:
    """The same engine by another way: connections, while `connect_s` is set, take long to come about."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.connect_s = 0.0

    async def send(self, call: EngineCall) -> FakeReply:
        await asyncio.sleep(self.connect_s)
        return await self._engine.send(call)

    async def probe(self) -> ProbeResult:
        return await self._engine.probe()

    async def aclose(self) -> None:
        pass


def test_what_was_placed_before_a_lease_ended_and_not_sent_is_placed_anew():
    """It still waits for its connections when its lease ends and the other is given its room: none of it goes out on the old decision."""

    async def main() -> tuple[set[int | None], int, float]:
        store, engines = Store(), {"a": engine()}
        far = Far(engines["a"])
        async with gateway(store, "g1", engines) as (one, _), gateway(store, "g2", {"a": far}) as (two, book):
            await asyncio.sleep(NEW_BOOK_S)
            far.connect_s = 6.0
            late = asyncio.get_running_loop().create_task(flood(two, 4))
            await asyncio.sleep(0.1)
            book.reachable, far.connect_s = False, 0.0
            await asyncio.sleep(3)
            assert share(one) == pytest.approx(0.875, abs=0.001)
            statuses = {*await flood(one, 200), *await late}
            lapsed = two.metric("penstock_upstream_attempts_total", replica="a", outcome="lapsed")
            return statuses, engines["a"].most, lapsed

    statuses, most, lapsed = run_virtual(main())
    assert statuses == {200}
    assert lapsed == 4
    assert most <= SEQUENCES


def test_what_lapsed_and_finds_no_place_in_time_is_told_the_queues_own_words():
    """Held up for longer than it may wait: no engine has seen it, and none is blamed."""

    async def main() -> list[Call]:
        far = Far(engine())
        async with gateway(Store(), "g", {"a": far}) as (running, book):
            await asyncio.sleep(NEW_BOOK_S)
            far.connect_s, book.reachable = 40.0, False
            calls = [post(running.app, CHAT, chat(stream=stream)) for stream in (True, False)]
            return await asyncio.gather(*(call.run() for call in calls))

    for call in run_virtual(main()):
        assert b'"code":"queue_timeout"' in call.data.replace(b" ", b"")
        assert b"The engine" not in call.data


def test_a_request_at_the_very_moment_of_expiry_is_served():
    """A timer may be early: what is decided in the same turn stands, and is not placed again and again."""

    async def main() -> list[int | None]:
        async with gateway(Store(), "g", {"a": engine()}) as (running, book):
            await asyncio.sleep(NEW_BOOK_S)
            book.reachable = False
            await asyncio.sleep(0.5)
            await asyncio.sleep(running.gateway.admission.expires_s - asyncio.get_running_loop().time())
            await asyncio.sleep(0)
            return await flood(running, 1)

    assert run_virtual(main()) == [200]


def test_never_reached_means_not_ready_and_not_lost():
    """Started without Redis it says why it is not ready; what waits is served once there is a book."""

    async def main() -> tuple[Call, list[int | None]]:
        store, engines = Store(), {"a": engine()}
        async with gateway(store, "g", engines) as (running, book):
            book.reachable = False
            await asyncio.sleep(2)
            work = asyncio.get_running_loop().create_task(flood(running, 3))
            told = await get(running, "/readyz")
            book.reachable = True
            return told, await work

    told, statuses = run_virtual(main())
    assert told.status == 503
    assert any("Redis has not answered (no answer within 0.5 s)" in problem for problem in told.json()["problems"])
    assert statuses == [200, 200, 200]


def test_two_of_one_name_are_told():
    """The later has the share; the earlier places nothing, is not ready and says what to change, and comes back when the other has gone."""

    async def main() -> tuple[Call, str]:
        store, engines = Store(), {"a": engine()}
        async with gateway(store, "g", engines) as (first, _):
            await asyncio.sleep(NEW_BOOK_S)
            async with gateway(store, "g", engines):
                await asyncio.sleep(1)
                told = await get(first, "/readyz")
                assert share(first) == 0.0
            await asyncio.sleep(4)
            return told, (await shared(first))["mode"]

    told, after = run_virtual(main())
    assert told.status == 503
    assert any("give each its own redis.name" in problem for problem in told.json()["problems"])
    assert after == "redis"
