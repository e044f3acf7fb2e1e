"""Two attempts at one answer: who wins is said once, and what loses gives back its lease, begun or not."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from backends.backend import UpstreamError
from batching.ticket import Placed
from router.race import Opened, Race, Superseded
from tests.support.decisions import Kept
from tests.support.fake_engine import FakeEngine, FakeReply, Script
from tests.support.scheduling import profile, request


def placed() -> Placed:
    kept = Kept(profile("b"))
    kept.scheduler.submit(request(), 0.0)
    (decision,) = kept.scheduler.advance(0.0)
    assert isinstance(decision, Placed)
    return decision


class Second:
    """A second attempt of the test's making; `log` is what became of it."""

    def __init__(self, opens: Callable[[], Any] | None = None) -> None:
        self.placed = placed()
        self.log: list[str] = []
        self._opens = opens
        self.race = Race(self)

    async def open(self, placed: Placed) -> Opened | None:
        self.log.append("begun")
        engine = FakeEngine()
        try:
            if self._opens is not None:
                await self._opens()
        except UpstreamError:
            return None
        return Opened(placed, engine, FakeReply(Script(), engine), None)

    async def discard(self, opened: Opened) -> None:
        self.log.append("discarded")

    def give_back(self, placed: Placed) -> None:
        self.log.append("given back")

    def count(self, outcome: str) -> None:
        self.log.append(outcome)


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def fails() -> None:
    raise UpstreamError


async def test_the_first_claims_and_the_second_is_called_off() -> None:
    """What is under way is cancelled, its lease given back at once; the first one goes on."""
    second = Second(forever)
    async with second.race:
        second.race.offer(second.placed)
        await asyncio.sleep(0)
        second.race.claim()
        assert second.log == ["begun", "given back"]
        second.race.claim()
    await second.race.close()
    assert second.log[-1] == "lost"


async def test_a_second_that_has_not_begun_gives_its_lease_back() -> None:
    """Placed and called off in one turn of the loop: its task never runs a line."""
    second = Second(forever)
    async with second.race:
        second.race.offer(second.placed)
        second.race.claim()
    await second.race.close()
    assert second.log == ["given back", "given back", "lost"]  # a lease goes back once, however often it is given


async def test_the_second_wins_wherever_the_first_waits() -> None:
    """The first one's wait ends with Superseded; the winner is taken once, and is nobody's to discard then."""
    second = Second()

    async def first() -> None:
        async with second.race:
            second.race.offer(second.placed)
            await forever()

    with pytest.raises(Superseded):
        await first()
    assert second.race.take().placed is second.placed
    await second.race.close()
    assert second.log == ["begun", "won"]


async def test_a_claim_that_comes_too_late_is_refused() -> None:
    """The second has won, and the first one is just being told: what its engine sends in the same turn must not be passed on."""
    tokens = asyncio.Event()  # of both, in one turn; the second is the first to hear of them
    second = Second(tokens.wait)

    def engine_sends() -> None:
        with pytest.raises(Superseded):
            second.race.claim()
        second.log.append("refused")

    async def first() -> None:
        loop = asyncio.get_running_loop()
        async with second.race:
            second.race.offer(second.placed)
            await asyncio.sleep(0)
            loop.call_soon(tokens.set)
            loop.call_soon(loop.call_soon, engine_sends)
            await forever()

    with pytest.raises(Superseded):
        await first()
    await second.race.close()
    assert second.log == ["begun", "refused", "discarded", "won"]


async def test_a_winner_that_nobody_takes_is_discarded() -> None:
    """The client left in the turn in which the second won."""
    second = Second()
    second.race.offer(second.placed)
    await asyncio.sleep(0)
    await second.race.close()
    assert second.log == ["begun", "discarded", "won"]


async def test_only_one_second_and_none_when_it_is_over() -> None:
    """Any other placement is given back."""
    second = Second(forever)
    second.race.offer(second.placed)
    second.race.offer(second.placed)
    assert second.log == ["given back"]
    await second.race.close()
    second.race.offer(second.placed)
    assert second.log == ["given back", "given back", "cancelled", "given back"]


@pytest.mark.parametrize(("opens", "rescued"), [(None, True), (fails, False)])
async def test_who_failed_may_be_rescued(opens: Any, rescued: bool) -> None:
    """The first has failed: the second is waited for, if there is one."""
    second = Second(opens)
    assert not await second.race.rescued()
    second.race.offer(second.placed)
    assert await second.race.rescued() == rescued
    await second.race.close()
    assert second.log[-1] == ("won" if rescued else "failed")


async def test_a_cancellation_from_outside_stays_one() -> None:
    """Also where the second has won in the same turn: the client's leaving is no defeat."""
    second = Second()

    async def first() -> None:
        async with second.race:
            second.race.offer(second.placed)
            await forever()

    task = asyncio.get_running_loop().create_task(first())
    while not second.race.superseded:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await second.race.close()
    assert second.log == ["begun", "discarded", "won"]


async def test_a_cancellation_of_somebody_else_goes_on() -> None:
    """The client leaves in the turn in which the second wins: the first ends as cancelled, not as superseded."""
    second = Second()
    tasks = asyncio.get_running_loop()

    async def first() -> None:
        async with second.race:
            second.race.offer(second.placed)
            await forever()

    task = tasks.create_task(first())
    await asyncio.sleep(0)  # it waits, and the second has begun and won in its own turn
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await second.race.close()


async def test_a_task_that_was_once_to_be_cancelled_can_still_be_superseded() -> None:
    """An earlier request to cancel that was dealt with is not the race's, and does not hide its own."""
    second = Second()

    async def first() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        async with second.race:
            second.race.offer(second.placed)
            await forever()

    with pytest.raises(Superseded):
        await asyncio.get_running_loop().create_task(first())
    second.race.take()
    await second.race.close()
