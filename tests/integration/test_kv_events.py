"""The subscriber against a publisher of our own that loses, swaps, replays and begins anew, over real ZeroMQ sockets."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zmq.asyncio

from backends.kv_events.messages import Batch, Removed
from backends.kv_events.subscriber import Subscriber
from tests.support.kv_publisher import Publisher, packed, publishing, removed
from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port


class Heard:
    """What a listener was told, batch by batch: the number that each batch carries as its one block's hash."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.complete: bool | None = None
        self._changed = asyncio.Condition()

    def on_batch(self, batch: Batch, *, complete: bool) -> None:
        (event,) = batch.events
        assert isinstance(event, Removed)
        self.complete = complete
        self._add(event.hashes[0])

    def on_gap(self, outcome: str) -> None:
        self._add(f"gap {outcome}")

    def on_reset(self, reason: str) -> None:
        self._add(f"reset {reason}")

    async def until(self, *log: Any) -> None:
        """Exactly these entries came; nothing is left to come that belongs to them."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.log) < len(log):
                await asyncio.sleep(0.002)
        assert self.log == list(log)

    def _add(self, entry: Any) -> None:
        self.log.append(entry)


@pytest.fixture
def context() -> Iterator[zmq.asyncio.Context]:
    context = zmq.asyncio.Context()
    yield context
    context.destroy(linger=0)


@asynccontextmanager
async def listening(
    context: zmq.asyncio.Context, publisher: Publisher, *, join: bool = True, **options: Any
) -> AsyncIterator[Heard]:
    """A subscriber at work; with `join`, once it is subscribed and has asked for what was before."""
    heard = Heard()
    subscriber = Subscriber(
        "r", heard, context,
        endpoint=publisher.endpoint, replay_endpoint=publisher.replay_endpoint, **{"topic": "kv-events", **options},
    )  # fmt: skip
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(subscriber.run())
        if join:
            await publisher.joined()
            await publisher.first_replay()
        yield heard
        running.cancel()


async def publish(publisher: Publisher, *numbers: int) -> None:
    for number in numbers:
        await publisher.publish(removed(number))


async def test_what_was_before_and_what_comes(context: zmq.asyncio.Context) -> None:
    """A late subscriber asks for all from number 0 on, and then hears everything once: it knows the whole."""
    async with publishing(context) as publisher:
        await publish(publisher, 0, 1, 2)
        async with listening(context, publisher) as heard:
            await publish(publisher, 3, 4)
            await heard.until(0, 1, 2, 3, 4)
            assert (heard.complete, publisher.replays) == (True, [0])


async def test_what_is_lost_is_asked_for(context: zmq.asyncio.Context) -> None:
    """A gap is filled from the replay, in order, before what came after it."""
    async with publishing(context) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0)
        lost = [publisher.number(removed(n)) for n in (1, 2)]
        assert [seq for seq, _ in lost] == [1, 2]
        await publish(publisher, 3)
        await heard.until(0, 1, 2, 3, "gap replayed")
        await publish(publisher, 4)
        await heard.until(0, 1, 2, 3, "gap replayed", 4)
        assert (heard.complete, publisher.replays[-1]) == (True, 0)


async def test_what_is_swapped_and_doubled_is_taken_once(context: zmq.asyncio.Context) -> None:
    """A batch that overtakes others is a gap; those it overtook are known when they arrive."""
    async with publishing(context) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0)
        one, two, three = (publisher.number(removed(n)) for n in (1, 2, 3))
        await publisher.send(three, one, two, three)
        await heard.until(0, 1, 2, 3, "gap replayed")
        await publish(publisher, 4)
        await heard.until(0, 1, 2, 3, "gap replayed", 4)
        assert heard.complete


async def test_a_replay_may_lose_batches_too(context: zmq.asyncio.Context) -> None:
    """A ROUTER drops what its queue cannot take: the rest is asked for again."""
    async with publishing(context) as publisher:
        await publish(publisher, *range(8))
        publisher.lose_replayed = {3, 4}
        async with listening(context, publisher) as heard:
            await publish(publisher, 8)
            await heard.until(*range(9))
            assert (heard.complete, publisher.replays) == (True, [0, 2])


async def test_a_long_replay_is_whole(context: zmq.asyncio.Context) -> None:
    """All 5,000 batches that an engine kept come, though its socket queues a thousand."""
    async with publishing(context) as publisher:
        for number in range(5000):
            publisher.number(removed(number))
        async with listening(context, publisher) as heard:
            await heard.until(*range(5000))
            assert heard.complete


async def test_what_the_engine_has_forgotten_resets(context: zmq.asyncio.Context) -> None:
    """A gap longer than the engine's buffer: all is forgotten, what is left of the buffer counts, the whole is not known."""
    async with publishing(context, buffer=3) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0)
        for number in range(1, 10):
            publisher.number(removed(number))
        await publish(publisher, 10)
        await heard.until(0, "reset lost", 8, 9, 10, "gap lost")
        assert heard.complete is False


async def test_without_a_replay_a_gap_resets(context: zmq.asyncio.Context) -> None:
    """No replay endpoint: forget and go on with what comes."""
    async with publishing(context, replay=False) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0)
        publisher.number(removed(1))
        await publish(publisher, 2, 3)
        await heard.until(0, "reset lost", "gap lost", 2, 3)
        assert heard.complete is False


async def test_a_replay_that_never_comes_resets(context: zmq.asyncio.Context) -> None:
    """Silence is waited for once, not for every batch; what follows is heard."""
    async with publishing(context) as publisher:
        publisher.mute = True
        async with listening(context, publisher, replay_timeout_s=0.1) as heard:
            await publish(publisher, 0)
            publisher.number(removed(1))
            await publish(publisher, 2)
            publisher.number(removed(3))
            await publish(publisher, 4)
            await heard.until(0, "reset lost", "gap lost", 2, "reset lost", "gap lost", 4)
            assert heard.complete is False
            assert len(publisher.replays) <= 2


async def test_an_engine_that_begins_anew(context: zmq.asyncio.Context) -> None:
    """Numbers from 0 with later times: all is forgotten, and the new engine is known whole."""
    async with publishing(context) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0, 1, 2)
        await heard.until(0, 1, 2)
        endpoints = publisher.endpoint, publisher.replay_endpoint or ""
        publisher.close()
        async with publishing(context, endpoints, born=900.0) as reborn:
            await reborn.joined()
            await publish(reborn, 70, 71)
            await heard.until(0, 1, 2, "reset restarted", 70, 71)
            assert heard.complete


async def test_a_new_engine_that_is_further_than_the_old_one_was(context: zmq.asyncio.Context) -> None:
    """Its numbers would pass for a gap; the replay shows that they are another engine's, and tells all of it."""
    async with publishing(context) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0, 1)
        await heard.until(0, 1)
        endpoints = publisher.endpoint, publisher.replay_endpoint or ""
        publisher.close()
        async with publishing(context, endpoints, born=900.0) as reborn:
            for number in (70, 71, 72, 73):
                reborn.number(removed(number))
            await reborn.joined()
            await publish(reborn, 74)
            await heard.until(0, 1, "reset restarted", 70, 71, 72, 73, 74)
            assert heard.complete


async def test_a_new_engine_that_is_less_far(context: zmq.asyncio.Context) -> None:
    """Its replay does not know the batch that was read last, and has nothing after it."""
    async with publishing(context) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0, 1, 2, 3)
        await heard.until(0, 1, 2, 3)
        endpoints = publisher.endpoint, publisher.replay_endpoint or ""
        publisher.close()
        async with publishing(context, endpoints, born=900.0) as reborn:
            reborn.number(removed(70))
            await reborn.joined()
            await publish(reborn, 71)
            await heard.until(0, 1, 2, 3, "reset restarted", 70, 71)
            assert heard.complete


async def test_a_new_engine_is_noticed_before_it_says_anything(context: zmq.asyncio.Context) -> None:
    """The connection itself is a reason to ask: a restarted engine that is idle holds nothing."""
    async with publishing(context) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0, 1)
        await heard.until(0, 1)
        endpoints = publisher.endpoint, publisher.replay_endpoint or ""
        publisher.close()
        async with publishing(context, endpoints, born=900.0):
            await heard.until(0, 1, "reset restarted")


async def test_a_broken_line_hides_nothing(context: zmq.asyncio.Context) -> None:
    """What was published while the connection was down is asked for when it is back, though nothing more is published."""
    async with publishing(context) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0, 1)
        await heard.until(0, 1)
        publisher.number(removed(2))
        await publisher.break_line()
        await heard.until(0, 1, 2)
        assert (heard.complete, publisher.replays[-1]) == (True, 1)


async def test_a_broken_line_without_a_replay_resets(context: zmq.asyncio.Context) -> None:
    """Nobody can say what was missed."""
    async with publishing(context, replay=False) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0, 1)
        await heard.until(0, 1)
        await publisher.break_line()
        await heard.until(0, 1, "reset lost")


async def test_an_engine_that_is_not_there_yet(context: zmq.asyncio.Context) -> None:
    """Gateway first, engine later: the connection is made when there is one."""
    endpoints = f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"
    async with (
        listening(context, _Elsewhere(*endpoints), join=False) as heard,
        publishing(context, endpoints) as late,
    ):
        await late.joined()
        await publish(late, 0, 1)
        await heard.until(0, 1)
        assert heard.complete


async def test_what_cannot_be_read_is_a_gap(context: zmq.asyncio.Context) -> None:
    """An unreadable batch costs what was known, not the subscription."""
    async with publishing(context) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0)
        await heard.until(0)
        await publisher.send(publisher.broken())
        await publish(publisher, 2, 3)
        await heard.until(0, "reset lost", "gap lost", 2, 3)
        assert heard.complete is False


async def test_another_rank_is_not_this_one(context: zmq.asyncio.Context) -> None:
    """Data-parallel ranks number their batches themselves: only the first one heard counts."""
    async with publishing(context) as publisher, listening(context, publisher) as heard:
        await publish(publisher, 0)
        await publisher.send((0, packed([removed(99)], 500.0, rank=1)))
        await publish(publisher, 1)
        await heard.until(0, 1)
        assert heard.complete


async def test_topics_select(context: zmq.asyncio.Context) -> None:
    """An empty topic hears what comes, as vLLM's default is."""
    async with publishing(context) as publisher, listening(context, publisher, topic="") as heard:
        await publish(publisher, 0)
        await heard.until(0)


async def test_another_topic_is_not_heard(context: zmq.asyncio.Context) -> None:
    """Of two subscribers the one that asked for the engine's topic hears it."""
    async with (
        publishing(context, replay=False) as publisher,
        listening(context, publisher, topic="another") as deaf,
        listening(context, publisher) as heard,
    ):
        await publish(publisher, 0, 1)
        await heard.until(0, 1)
        assert deaf.log == []


class _Elsewhere(Publisher):
    """Only an address."""

    def __init__(self, endpoint: str, replay_endpoint: str) -> None:
        self._addresses = endpoint, replay_endpoint

    @property
    def endpoint(self) -> str:
        return self._addresses[0]

    @property
    def replay_endpoint(self) -> str:
        return self._addresses[1]
