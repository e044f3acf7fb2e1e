"""A replica that one gateway of several finds grey, in virtual time: the others ask it themselves, and believe what they find."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from backends.backend import EngineCall, EngineReply, ProbeResult
from tests.support.fake_book import FakeBook, Store
from tests.support.standing_fleet import Standing, StandingEngine, hang_up, standing_fleet
from tests.support.virtual_time import run_virtual

SETTLED_S = 4.0  # a new book gives nothing for a lease
BY_HEARSAY = "other_gateway"


class Seen(StandingEngine):
    """An engine as one gateway sees it, which may be cut off from it; what moves and stands is the engine itself."""

    def __init__(self, engine: StandingEngine) -> None:
        self._of = engine
        self.__dict__.update(engine.__dict__)
        self.tokens_asked = []
        self.replies = set()
        self.cut = asyncio.Event()
        self.cut.set()

    async def send(self, call: EngineCall) -> EngineReply:
        if call.request_id == "penstock-one-token":
            self.tokens_asked.append(asyncio.get_running_loop().time())
        await self.cut.wait()
        return await self._of.send(call)

    async def probe(self) -> ProbeResult:
        """While it is cut off: what it had seen last."""
        if self.cut.is_set() or self._last is None:
            self._last = await self._of.probe()
        return self._last

    async def aclose(self) -> None:
        self.cut.set()
        await self._of.aclose()


@asynccontextmanager
async def two(*names: str, **sections: object) -> AsyncIterator[tuple[Standing, Standing, list[FakeBook]]]:
    """Gateways over the same engines: `g1` has learned to predict them and is at work, `g2` has never sent anything."""
    store = Store()
    books = [FakeBook(store), FakeBook(store)]
    section = {"url": "redis://book:6379"}
    async with standing_fleet(
        *names, recorded=False, book=books[0], redis={**section, "name": "g1"}, **sections
    ) as one:
        theirs = {name: Seen(engine) for name, engine in one.engines.items()}
        redis = {**section, "name": "g2"}
        async with standing_fleet(
            *names, recorded=False, engines=theirs, book=books[1], redis=redis, **sections
        ) as other:
            await asyncio.sleep(SETTLED_S)
            yield one, other, books


def doubted_by_hearsay(fleet: Standing, name: str) -> float:
    return fleet.running.metric("penstock_replica_suspicions_total", replica=name, reason=BY_HEARSAY)


def ejected(fleet: Standing, name: str) -> float:
    return fleet.running.metric("penstock_replica_ejections_total", replica=name)


def test_one_finds_it_grey_and_the_other_asks_at_once():
    """Idle there, the other gateway would have learned nothing: it pauses new work within a report's way, asks, and ejects it by its own finding."""

    async def main() -> tuple[float, list[str], float, float]:
        async with two("a", "b") as (one, other, _):
            await one.teach()
            streams = one.begin(8)
            await asyncio.sleep(3)
            one.engines["a"].stand()
            await one.until("a", "suspect")
            doubted_s = asyncio.get_running_loop().time()
            await other.until("a", "suspect")
            late_s = asyncio.get_running_loop().time() - doubted_s
            await asyncio.sleep(12)
            hang_up(streams)
            return late_s, other.states("a")[:2], ejected(other, "a"), doubted_by_hearsay(other, "a")

    late_s, states, ejections, doubts = run_virtual(main())
    assert late_s < 0.2
    assert states == ["suspect", "down"]
    assert (ejections, doubts) == (1, 1)


def test_it_comes_back_at_both():
    """It moves again: whoever is the first to get a token says so, and the other asks without waiting out its pause."""

    async def main() -> tuple[str, str, float]:
        async with two("a", "b", health={"warming_timeout_s": 1.0, "pause_s": 1.0}) as (one, other, _):
            await one.teach()
            streams = one.begin(8)
            await asyncio.sleep(3)
            one.engines["a"].stand()
            await asyncio.sleep(40)
            one.engines["a"].go_on()
            loop = asyncio.get_running_loop()

            async def back_s(fleet: Standing) -> float:
                await fleet.until("a", "ready")
                return loop.time()

            times = await asyncio.gather(back_s(one), back_s(other))
            hang_up(streams)
            return one.now("a"), other.now("a"), max(times) - min(times)

    one, other, between_s = run_virtual(main())
    assert (one, other) == ("ready", "ready")
    assert between_s < 2.5


def test_a_gateway_that_is_cut_off_ejects_nothing_at_the_others():
    """It reaches no engine and accuses half of them: the others ask, get their tokens, and never take one out of service."""

    async def main() -> tuple[list[float], set[str], set[str], float]:
        async with two("a", "b", "c", "d") as (one, broken, _):
            streams = one.begin(16, tokens=3000)
            theirs = broken.begin(24)
            await asyncio.sleep(3)
            for engine in broken.engines.values():
                assert isinstance(engine, Seen)
                engine.cut.clear()
            suspicion = broken.running.gateway.watch.suspicion  # type: ignore[union-attr]
            theirs += broken.begin(24)
            states, accused = set[str](), set[str]()
            for _ in range(400):
                await asyncio.sleep(0.1)
                states |= {one.now(name) for name in one.engines}
                accused = accused | suspicion.findings().keys()
            found = [ejected(one, name) for name in one.engines]
            doubts = sum(doubted_by_hearsay(one, name) for name in one.engines)
            hang_up(streams + theirs)
            return found, states, accused, doubts

    ejections, states, accused, doubts = run_virtual(main())
    assert accused
    assert doubts > 0
    assert ejections == [0, 0, 0, 0]
    assert "down" not in states


async def say(other: Standing, **accused: str) -> None:
    """Another gateway's word, until the next report of it has been heard."""
    suspicion = other.running.gateway.watch.suspicion  # type: ignore[union-attr]
    suspicion.findings = lambda: dict(accused)  # type: ignore[method-assign,assignment]
    suspicion.on_found()
    await asyncio.sleep(0.7)


def test_a_healthy_replica_works_on_after_a_token():
    """A false word costs it one token, and a moment without new work; said again and again it costs no moment any more."""

    async def main() -> tuple[list[str], int, float]:
        async with two("a", "b") as (one, other, _):
            before = len(one.states("a"))
            for _ in range(5):
                await say(other, a="silent_streams")
                await say(other)
            return one.states("a")[before:], len(one.engines["a"].tokens_asked), ejected(one, "a")

    states, asked, ejections = run_virtual(main())
    assert states == ["suspect", "ready"]
    assert (asked, ejections) == (5, 0)


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_the_last_replica_takes_work_whatever_others_say(names: tuple[str, ...]):
    """All that there are are accused, and stand: one of them is in service at every moment."""

    async def main() -> list[int]:
        async with two(*names) as (one, other, _):
            for engine in one.engines.values():
                engine.stand()
            await say(other, **dict.fromkeys(names, "silent_streams"))
            seen = []
            for _ in range(80):
                await asyncio.sleep(0.25)
                seen.append([one.now(name) for name in names].count("ready"))
            return seen

    assert min(run_virtual(main())) >= 1


def test_a_word_that_is_taken_back_is_forgotten():
    """It stands, is doubted by hearsay, and its accuser takes that back while it is asked: ready again, with no finding of our own."""

    async def main() -> tuple[str, str, float]:
        async with two("a", "b") as (one, other, _):
            one.engines["a"].stand()
            await say(other, a="silent_streams")
            asked = one.now("a")
            await say(other)
            return asked, one.now("a"), ejected(one, "a")

    assert run_virtual(main()) == ("suspect", "ready", 0)


def test_a_gateway_that_is_not_heard_any_more_accuses_nobody():
    """Its lease lapses while its word is being asked about."""

    async def main() -> tuple[str, str]:
        async with two("a", "b") as (one, other, books):
            one.engines["a"].stand()
            await say(other, a="silent_streams")
            asked = one.now("a")
            books[1].reachable = False
            await asyncio.sleep(4)
            return asked, one.now("a")

    assert run_virtual(main()) == ("suspect", "ready")


def test_what_is_heard_is_not_said_on():
    """Two gateways that only heard of a doubt from each other would never lose it."""

    async def main() -> tuple[str, dict[str, bytes]]:
        async with two("a", "b") as (one, other, _):
            one.engines["a"].stand()
            await say(other, a="silent_streams")
            shared = one.running.gateway.shared
            assert shared is not None
            return one.now("a"), dict(shared.budgets.holder.more)

    state, said = run_virtual(main())
    assert state == "suspect"
    assert said["suspicion"] == b""


def test_another_version_s_words_are_ignored():
    """They cannot be read: nothing is doubted, and reports go on."""

    async def main() -> tuple[list[str], str]:
        async with two("a", "b") as (one, other, _):
            topic = other.running.gateway.shared.budgets.topics[0]  # type: ignore[union-attr]
            topic.say = lambda holder: holder.more.update(suspicion=msgspec.msgpack.encode([1, 2]))  # type: ignore[method-assign]
            before = len(one.states("a"))
            await asyncio.sleep(3)
            return one.states("a")[before:], one.running.gateway.shared.budgets.holder.mode.value  # type: ignore[union-attr]

    assert run_virtual(main()) == ([], "redis")
