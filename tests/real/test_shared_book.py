"""The scripts in a real Redis do what the pure book does, report for report."""

import asyncio
import random
from itertools import count

import msgspec
import pytest

from batching.request import ReplicaId
from batching.shared_book import Join, Report, SharedBook, Terms, Wish
from batching.shares import WHOLE
from batching.shelf import KEEP_MS, Shelf
from config.shared import SharedRedis
from router.shared.book_in_redis import BookInRedis
from router.shared.redis_line import Unreachable
from router.shared.shelf import ShelfInRedis
from tests.real.conftest import RedisServer
from tests.support.patience import PATIENCE_S

pytestmark = pytest.mark.real

TERMS = Terms(1500, 1000, 20_000, WHOLE // 8)
NAMES = ("g1", "g2", "g3", "g4")
NUMBERS = count()


def book_at(redis_server: RedisServer) -> BookInRedis:
    """One that nobody has written in."""
    return BookInRedis(SharedRedis(url=redis_server.url, prefix=f"test:{next(NUMBERS)}", lease_s=60, timeout_s=60))


def some_report(random_: random.Random, numbers: dict[str, int]) -> Report:
    """Anything that a holder could say, and some things that none would."""
    name = random_.choice(NAMES)
    numbers[name] += random_.choice((1, 1, 1, 1, 0))
    parts = (0, WHOLE // 8, WHOLE // 3, WHOLE // 2, WHOLE)
    wishes = {
        ReplicaId(replica): Wish(random_.choice(parts), random_.choice(parts), random_.choice(parts))
        for replica in random_.sample(("a", "b", "r\u00e9plica"), random_.randint(0, 3))
    }
    return Report(
        name=name,
        instance=random_.choice(("one", "one", "one", "two")),
        number=numbers[name],
        terms=TERMS._replace(static=random_.choice((0, WHOLE // 8))),
        wishes=wishes,
        known={other: WHOLE // 8 for other in NAMES if random_.random() < 0.3},
        join=random_.choice((Join.NO, Join.NO, Join.FIRST, Join.AGAIN)),
        words=random_.randbytes(random_.randint(0, 20)),
    )


@pytest.mark.parametrize("seed", range(12))
async def test_the_script_is_the_book(redis_server: RedisServer, seed: int):
    """A thousand reports of four holders, with clocks that jump and servers that change: every answer is the same."""
    random_, numbers = random.Random(seed), dict.fromkeys(NAMES, 0)
    pure, real = SharedBook(), book_at(redis_server)
    now_ms, server = 1_764_000_000_000, "s1"
    for _ in range(1000):
        now_ms += random_.choice((0, 5, 50, 300, 900, 1100, 2600, -700, 25_000))
        server = random_.choice((server,) * 40 + ("s1", "s2"))
        report = some_report(random_, numbers)
        if random_.random() < 0.05:
            pure.leave(report.name, report.instance)
            await real.leave(report.name, report.instance)
        expected = pure.report(now_ms, server, report)
        heard = await real.report(report, b"", now_ms=now_ms, server=server)
        assert heard.reply == expected
    await real.aclose()


async def test_a_server_s_life_is_told_by_redis_itself(redis_server: RedisServer):
    """Without a test's clock: the first report is to a new book, which raises nobody; the time is Redis' own."""
    book = book_at(redis_server)
    report = Report(name="g", instance="1", number=1, terms=TERMS, wishes={ReplicaId("a"): Wish(0, 0, WHOLE)})
    reply = (await book.report(report, b"")).reply
    assert (reply.frozen, reply.bounds) == (True, {"a": 0})
    assert reply.now_ms > 1_700_000_000_000
    await book.aclose()


async def test_nobody_there_is_said_in_one_word():
    """A port where nobody listens, and a password that is wrong."""
    book = BookInRedis(SharedRedis(url="redis://127.0.0.1:1/0"))
    with pytest.raises(Unreachable) as caught:
        await book.leave("g", "1")
    assert caught.value.kind == "connection"


async def test_notices_are_written_if_nobody_was_faster(redis_server: RedisServer):
    """Who knows what stands may write what stands next; who does not is told to look again. All are in the next answer, once."""
    book = book_at(redis_server)
    number = await book.note("a", 0, b"drain", 30_000)
    assert number > 0
    assert await book.note("a", 0, b"another", None) < 0
    report = Report(name="g", instance="1", number=1, terms=TERMS, wishes={})
    heard = await book.report(report, b"")
    assert heard.notices is not None
    assert set(heard.notices) == {b"", b"a"}
    again = await book.report(Report(name="g", instance="1", number=2, terms=TERMS, wishes={}), heard.stamp)
    assert again.notices is None
    ended = await book.note("a", number, b"", None)
    assert ended > number
    last = await book.report(Report(name="g", instance="1", number=3, terms=TERMS, wishes={}), heard.stamp)
    assert last.notices is not None
    assert msgspec.msgpack.decode(last.notices[b"a"]) == [ended, "", 0]  # that it may work again is kept, too
    await book.aclose()


async def test_who_is_short_calls_the_others(redis_server: RedisServer):
    """A report that says so is heard by all who listen, under its holder's name; others are not."""
    book, heard, said = book_at(redis_server), asyncio.Queue[str](), asyncio.Queue[bytes]()
    listening = asyncio.get_running_loop().create_task(book.listen(heard.put_nowait, said.put_nowait))
    numbers = count(1)

    async def report(name: str, *, short: bool) -> None:
        await book.report(
            Report(name=name, instance="1", number=next(numbers), terms=TERMS, wishes={}, short=short), b""
        )

    async with asyncio.timeout(PATIENCE_S):
        while heard.empty():  # until the subscription stands
            await report("calls", short=True)
            await asyncio.sleep(0.01)
        assert await heard.get() == "calls"
        await book.tell(b"what runs \xff")
        assert await said.get() == b"what runs \xff"
        await report("is silent", short=False)
        await report("calls last", short=True)
        while (name := await heard.get()) == "calls":
            pass
        assert name == "calls last"
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await book.aclose()


@pytest.mark.parametrize("seed", range(4))
async def test_the_scripts_are_the_shelf(redis_server: RedisServer, seed: int):
    """Three hundred words of a hundred gateways, with a clock that jumps over a day at times: every answer is the same."""
    random_, pure = random.Random(seed), Shelf()
    real = ShelfInRedis(SharedRedis(url=redis_server.url, prefix=f"test:{next(NUMBERS)}", lease_s=60, timeout_s=60))
    now_ms = 1_764_000_000_000
    for _ in range(300):
        now_ms += random_.choice((0, 1, 30_000, 30_000, -500, KEEP_MS // 40, KEEP_MS if random_.random() < 0.1 else 0))
        name, body = f"pod-{random_.randint(0, 100)}", random_.randbytes(random_.randint(0, 60))
        pure.put(now_ms, name, body)
        await real.put(name, body, now_ms=now_ms)
        if random_.random() < 0.3:
            now_ms += random_.choice((0, 0, 7, KEEP_MS // 2))
            assert await real.read(now_ms=now_ms) == pure.read(now_ms)
    await real.aclose()


async def test_the_shelf_s_time_is_redis_own(redis_server: RedisServer):
    """Without a test's clock: what was put down just now is young, and Redis itself lets go of it after a day."""
    real = ShelfInRedis(SharedRedis(url=redis_server.url, prefix="test:shelf", lease_s=60, timeout_s=60))
    await real.put("g", b"body")
    ((name, age_ms, body),) = await real.read()
    assert (name, body) == ("g", b"body")
    assert 0 <= age_ms < 600_000
    left_ms = await real._line.asked("return redis.call('PTTL', KEYS[1])", real._keys, ())
    assert 0 < left_ms <= KEEP_MS
    await real.aclose()
