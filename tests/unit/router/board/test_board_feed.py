"""One look a second for all viewers; what becomes of those who are slow, too many, or still there at the end. In virtual time."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from router.board.document import Live, Pulse
from router.board.feed import MOST_VIEWERS, Feed, Viewer
from router.openai.errors import ApiError
from tests.support.board_documents import card, live
from tests.support.virtual_time import run_virtual


class Fleet:
    """Looked at; each time another token has come."""

    def __init__(self) -> None:
        self.looks: list[float] = []
        self.takes_s = 0.0
        self.fails = 0

    async def look(self, known: Live | None) -> Live:
        now = asyncio.get_running_loop().time()
        self.looks.append(now)
        if self.takes_s:
            await asyncio.sleep(self.takes_s)
        if self.fails:
            self.fails -= 1
            raise RuntimeError("a bug of ours")
        pulses = () if known is None else known.pulses
        return live(card("idle"), card("busy", running=len(self.looks)), pulses=(*pulses, Pulse(unix_s=now)))


def with_feed(main: Callable[[Feed, Fleet], Awaitable[None]]) -> None:
    async def run() -> None:
        fleet = Fleet()
        feed = Feed(fleet.look)
        async with asyncio.TaskGroup() as tasks:
            ticking = tasks.create_task(feed.run())
            await main(feed, fleet)
            ticking.cancel()

    run_virtual(run())


def read(event: bytes | None) -> Any:
    assert event is not None
    lines = event.decode().split("\n")
    assert lines[-2:] == ["", ""]
    assert "event: live" in lines
    return json.loads(next(text for text in lines if text.startswith("data: "))[6:])


async def take(viewer: Viewer) -> Any:
    return read(await viewer.next())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_the_first_event_is_whole_and_there_at_once():
    """Then one each whole second with what has changed; the first tells when to come back."""

    async def main(feed: Feed, fleet: Fleet) -> None:
        await asyncio.sleep(0.4)
        with feed.join() as viewer:
            first = await viewer.next()
            assert first is not None
            assert first.startswith(b"retry: ")
            assert read(first)["whole"] is True
            assert now() == 0.4
            for second in (1.0, 2.0, 3.0):
                event = await take(viewer)
                assert (event["whole"], [one["name"] for one in event["replicas"]]) == (False, ["busy"])
                assert now() == pytest.approx(second)

    with_feed(main)


def test_one_look_serves_all():
    """Made once and encoded once: every viewer gets the same bytes; who comes later begins from what the others know."""

    async def main(feed: Feed, fleet: Fleet) -> None:
        with feed.join() as one, feed.join() as other:
            assert await one.next() is await other.next()
            assert await one.next() is await other.next()
            with feed.join() as late:
                assert (await take(late))["whole"] is True
                assert len(fleet.looks) == 2
                assert await late.next() is await one.next()
        assert len(fleet.looks) == 3

    with_feed(main)


def test_nothing_is_looked_at_while_nobody_watches():
    """Before the first viewer, and after the last."""

    async def main(feed: Feed, fleet: Fleet) -> None:
        await asyncio.sleep(10)
        assert fleet.looks == []
        with feed.join() as viewer:
            await viewer.next()
            await viewer.next()
        looks = len(fleet.looks)
        await asyncio.sleep(10)
        assert len(fleet.looks) == looks
        with feed.join() as viewer:
            assert (await take(viewer))["whole"] is True
            assert (await take(viewer))["whole"] is False

    with_feed(main)


def test_a_slow_viewer_gets_the_whole_instead_of_a_backlog():
    """It has one event waiting at most, and what it gets after a pause is no older than a second."""

    async def main(feed: Feed, fleet: Fleet) -> None:
        with feed.join() as slow, feed.join() as quick:
            await slow.next()
            await quick.next()
            for _ in range(5):
                assert (await take(quick))["whole"] is False
            caught_up = await take(slow)
            assert caught_up["whole"] is True
            assert caught_up["pulses"][-1]["unix_s"] == fleet.looks[-1]
            assert await slow.next() is await quick.next()

    with_feed(main)


def test_viewers_are_capped():
    """With a 429 that says what to do; a place that is left is free at once."""

    async def main(feed: Feed, fleet: Fleet) -> None:
        viewers = [feed.join() for _ in range(MOST_VIEWERS)]
        with pytest.raises(ApiError, match="GET /admin/fleet") as refused:
            feed.join()
        assert (refused.value.status, refused.value.code) == (429, "too_many_viewers")
        feed.leave(viewers[0])
        with feed.join():
            assert len(feed) == MOST_VIEWERS

    with_feed(main)


def test_the_end_reaches_all_viewers_at_once():
    """Those who wait and those who have something waiting; nobody joins after it."""

    async def main(feed: Feed, fleet: Fleet) -> None:
        with feed.join() as waits, feed.join() as slow:
            await waits.next()
            await slow.next()
            await waits.next()
            async with asyncio.TaskGroup() as tasks:
                ending = tasks.create_task(waits.next())
                await asyncio.sleep(0.1)
                feed.end()
            assert ending.result() is None
            assert await slow.next() is None
            assert now() == pytest.approx(1.1)
            with pytest.raises(ApiError, match="shutting down"):
                feed.join()

    with_feed(main)


def test_a_look_that_fails_costs_one_picture():
    """The next second has its event."""

    async def main(feed: Feed, fleet: Fleet) -> None:
        with feed.join() as viewer:
            await viewer.next()
            fleet.fails = 1
            assert (await take(viewer))["whole"] is False
            assert now() == pytest.approx(2.0)

    with_feed(main)


def test_a_look_that_takes_long_does_not_pile_up():
    """As where a worker hangs: looks come one after the other, and viewers that come meanwhile wait for no second one."""

    async def main(feed: Feed, fleet: Fleet) -> None:
        fleet.takes_s = 2.5
        with feed.join() as one, feed.join() as other:
            async with asyncio.TaskGroup() as tasks:
                both = [tasks.create_task(viewer.next()) for viewer in (one, other)]
            assert now() == pytest.approx(2.5)
            assert both[0].result() is both[1].result()
            assert fleet.looks == [0.0]
            await take(one)
            assert fleet.looks == [0.0, pytest.approx(3.0)]
            assert now() == pytest.approx(5.5)

    with_feed(main)


def test_whoever_looks_once_gets_what_viewers_know():
    """No look of its own while there is one; else a look, which is nobody's beginning."""

    async def main(feed: Feed, fleet: Fleet) -> None:
        assert (await feed.document()).whole
        assert len(fleet.looks) == 1
        with feed.join() as viewer:
            await viewer.next()
            assert len(fleet.looks) == 2
            assert (await feed.document()).whole
            assert len(fleet.looks) == 2

    with_feed(main)
