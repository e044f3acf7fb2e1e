"""A publisher of KV events as vLLM's is (ZmqEventPublisher, 0.32), which also loses, holds back and repeats batches on demand."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Self

import msgspec
import zmq
import zmq.asyncio

TOPIC = b"kv-events"
END = (-1).to_bytes(8, "big", signed=True)


def stored(
    hashes: Sequence[Any], tokens: Sequence[int], *, parent: Any = None, block_size: int = 4, **more: Any
) -> dict[str, Any]:
    """A BlockStored event as it goes over the wire."""
    return {
        "type": "BlockStored", "block_hashes": list(hashes), "parent_block_hash": parent, "token_ids": list(tokens),
        "block_size": block_size, "lora_id": None, "medium": "GPU", "lora_name": None, **more,
    }  # fmt: skip


def removed(*hashes: Any, **more: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", **more}


def cleared() -> dict[str, Any]:
    return {"type": "AllBlocksCleared"}


def packed(events: Sequence[Any], ts: float = 1.0, rank: int | None = 0) -> bytes:
    return msgspec.msgpack.encode([ts, list(events), rank])


class Publisher:
    """Times grow by one with each batch. `born`: of its first; a later life of an engine has a later one."""

    def __init__(
        self, context: zmq.asyncio.Context, *, born: float = 100.0, buffer: int = 10_000, replay: bool = True
    ) -> None:
        self._context = context
        self._events = context.socket(zmq.XPUB)  # as PUB, but tells of subscriptions
        self._replay = context.socket(zmq.ROUTER) if replay else None
        for end in (self._events, self._replay):
            if end is not None:
                end.setsockopt(zmq.LINGER, 0)
        self.serving: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()
        self._numbers = count()
        self._born = born
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer)
        self.replays: list[int] = []  # the numbers asked for
        self.mute = False  # replays are not answered
        self.lose_replayed: set[int] = set()  # numbers that the next replay leaves out, once each

    async def bind(self, endpoint: str = "tcp://127.0.0.1:*", replay_endpoint: str = "tcp://127.0.0.1:*") -> Self:
        await _bind(self._events, endpoint)
        if self._replay is not None:
            await _bind(self._replay, replay_endpoint)
        return self

    @property
    def endpoint(self) -> str:
        return self._events.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def replay_endpoint(self) -> str | None:
        return None if self._replay is None else self._replay.getsockopt_string(zmq.LAST_ENDPOINT)

    async def break_line(self) -> None:
        """The subscribers' connections are gone, the engine is not."""
        endpoint = self.endpoint
        self._events.close()
        self._events = self._context.socket(zmq.XPUB)
        self._events.setsockopt(zmq.LINGER, 0)
        await _bind(self._events, endpoint)

    async def joined(self) -> None:
        """Until somebody has subscribed: what is published before is lost to it."""
        assert (await self._events.recv())[:1] == b"\x01"

    async def first_replay(self) -> None:
        """Until the question that each subscriber begins with is answered, if it can be."""
        if self._replay is not None:
            await self._asked.wait()

    def number(self, *events: Any, rank: int | None = 0) -> tuple[int, bytes]:
        """A batch that an engine has made and not sent yet."""
        seq = next(self._numbers)
        return self.keep(seq, packed(events, self._born + seq, rank))

    def keep(self, seq: int, payload: bytes) -> tuple[int, bytes]:
        self._buffer.append((seq, payload))
        return seq, payload

    def forget_buffer(self) -> None:
        """As when more was published than the engine keeps."""
        self._buffer.clear()

    def broken(self) -> tuple[int, bytes]:
        """A batch that nobody can read."""
        return self.keep(next(self._numbers), b"\xc1")

    async def send(self, *batches: tuple[int, bytes]) -> None:
        for seq, payload in batches:
            await self._events.send_multipart([TOPIC, seq.to_bytes(8, "big"), payload])

    async def publish(self, *events: Any) -> None:
        await self.send(self.number(*events))

    async def serve_replays(self) -> None:
        assert self._replay is not None
        while True:
            client, _, start = await self._replay.recv_multipart()
            first = int.from_bytes(start, "big")
            self.replays.append(first)
            if self.mute:
                self._asked.set()
                continue
            lost, self.lose_replayed = self.lose_replayed, set()
            for seq, payload in list(self._buffer):
                if seq >= first and seq not in lost:
                    await self._replay.send_multipart([client, b"", TOPIC, seq.to_bytes(8, "big"), payload])
            await self._replay.send_multipart([client, b"", b"", END, b""])
            self._asked.set()

    def close(self) -> None:
        """As when its engine dies; again is nothing."""
        if self.serving is not None:
            self.serving.cancel()
        self._events.close()
        if self._replay is not None:
            self._replay.close()


async def _bind(end: zmq.asyncio.Socket, address: str) -> None:
    """Where another publisher has just died, its port is free in a moment."""
    while True:
        try:
            end.bind(address)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:
                raise
            await asyncio.sleep(0.01)
        else:
            return


@asynccontextmanager
async def publishing(
    context: zmq.asyncio.Context, endpoints: tuple[str, str] | None = None, **options: Any
) -> AsyncIterator[Publisher]:
    """Bound to `endpoints`, or to free ports, and answering replays; gone at the end of the block."""
    publisher = await Publisher(context, **options).bind(*(endpoints or ()))
    async with asyncio.TaskGroup() as tasks:
        publisher.serving = tasks.create_task(publisher.serve_replays()) if publisher.replay_endpoint else None
        try:
            yield publisher
        finally:
            publisher.close()
