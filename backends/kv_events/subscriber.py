"""Listens to one engine's KV events: subscribes, asks for what it missed, begins anew where that cannot be had.

After each connection it asks, too: a lost connection hides what was sent meanwhile, and that the engine was restarted.

Owns the sockets and decides when to ask for a replay; what order means is `order`'s, what events mean the listener's. Loads ZeroMQ, so
import it late. vLLM's replay: a DEALER sends `["", first number]` and gets `["", topic, number, batch]` for each batch it still has
(10,000 by default), then one whose number is -1.
"""

import asyncio
import logging
from enum import Enum, auto
from typing import Protocol

import zmq
import zmq.asyncio

from backends.kv_events.messages import Batch, UnreadableError, read_batch
from backends.kv_events.order import Order, Verdict

log = logging.getLogger("penstock.kv_events")

_BACKLOG = 10_000  # batches held unread, vLLM's own replay buffer: what is dropped beyond it can be asked for again
_MAX_FRAME_BYTES = 64 * 2**20  # a step of a million new tokens is 10 MB
_REPLAY_PAUSE_S = 5.0  # after a replay that failed: an engine that cannot answer is not asked for every batch
_MAX_ROUNDS = 50  # a ROUTER drops what its 1,000-message queue cannot take, so that a long replay comes in parts
_END = (-1).to_bytes(8, "big", signed=True)
_RECONNECT_MS, _RECONNECT_MAX_MS = (
    100,
    2_000,
)  # libzmq's own backoff, doubling; an engine's first batches should be heard
_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 10_000, 30_000  # finds peers that vanished without a FIN
_RESTART_S, _RESTART_MAX_S = 1.0, 30.0  # after an error of the sockets themselves


class Listener(Protocol):
    """Whoever keeps the picture of the engine's cache."""

    def on_batch(self, batch: Batch, *, complete: bool) -> None:
        """The next batch. `complete`: all since the engine began, or since `on_reset`, was told."""

    def on_gap(self, outcome: str) -> None:
        """Batches were missing: `replayed` or `lost`."""

    def on_reset(self, reason: str) -> None:
        """All that was told counts no more: `lost` or `restarted`."""


class _Round(Enum):
    DONE = auto()
    AGAIN = auto()
    FAILED = auto()


class Subscriber:
    """`run` until cancelled. Endpoints are the engine's, as seen from here: `tcp://host:port`."""

    def __init__(
        self,
        name: str,
        listener: Listener,
        context: zmq.asyncio.Context,
        *,
        endpoint: str,
        replay_endpoint: str | None = None,
        topic: str = "",
        replay_timeout_s: float = 5.0,
    ) -> None:
        """`replay_timeout_s`: between two frames of a replay; vLLM looks for requests ten times a second."""
        self._name = name
        self._listener = listener
        self._context = context
        self._endpoint = endpoint
        self._replay_endpoint = replay_endpoint
        self._topic = topic.encode()
        self._replay_timeout_s = replay_timeout_s
        self._order = Order()
        self._rank: int | None = None
        self._resets = 0
        self._no_replay_before_s = 0.0
        self._warned: set[str] = set()

    async def run(self) -> None:
        delay_s = _RESTART_S
        while True:
            try:
                await self._listen()
            except zmq.ZMQError as error:
                log.warning("replica %s: KV events: %s; again in %g s", self._name, error, delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _RESTART_MAX_S)

    async def _listen(self) -> None:
        with _socket(self._context, zmq.SUB) as events:
            connections = events.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            try:
                await self._follow(events, connections)
            finally:
                events.disable_monitor()
                connections.close(linger=0)

    async def _follow(self, events: zmq.asyncio.Socket, connections: zmq.asyncio.Socket) -> None:
        poller = zmq.asyncio.Poller()
        poller.register(connections, zmq.POLLIN)
        poller.register(events, zmq.POLLIN)
        events.subscribe(self._topic)
        events.connect(self._endpoint)
        while True:
            # Nobody else waits between two batches of a burst: give the loop a turn.
            await asyncio.sleep(0)
            ready = dict(await poller.poll())
            if connections in ready:
                await connections.recv_multipart()
                await self._connected()
            elif (message := self._read(await events.recv_multipart())) is not None:
                await self._published(*message)

    async def _connected(self) -> None:
        """For the first time, or again: what was sent between is lost, and behind the address may be another engine."""
        if not await self._catch_up():
            self._reset("lost")

    async def _published(self, seq: int, batch: Batch) -> None:
        verdict = self._order.judge(seq, batch.ts)
        if verdict is Verdict.RESTARTED:
            self._reset("restarted")
            verdict = self._order.judge(seq, batch.ts)
        if verdict is Verdict.MISSING:
            begun, resets = self._order.last is not None, self._resets
            await self._catch_up()
            verdict = self._order.judge(seq, batch.ts)
            if verdict is Verdict.MISSING:  # the replay did not help, or there is none
                self._reset("lost")
                verdict = Verdict.FOLLOWS
            if begun:
                self._listener.on_gap("replayed" if resets == self._resets else "lost")
        if verdict is Verdict.FOLLOWS:
            self._take(seq, batch)

    async def _catch_up(self) -> bool:
        """Reads what the engine still has from the last batch on; without a `last`, all of it. False: it could not be had."""
        now = asyncio.get_running_loop().time()
        if self._replay_endpoint is None or now < self._no_replay_before_s:
            return False
        for _ in range(_MAX_ROUNDS):
            with _socket(self._context, zmq.DEALER) as replay:
                replay.connect(self._replay_endpoint)
                end = await self._round(replay)
            if end is _Round.DONE:
                return True
            if end is _Round.FAILED:
                break
        self._no_replay_before_s = asyncio.get_running_loop().time() + _REPLAY_PAUSE_S
        return False

    async def _round(self, replay: zmq.asyncio.Socket) -> _Round:
        asked = self._order.last
        await replay.send_multipart([b"", (asked or 0).to_bytes(8, "big")])
        came = 0
        while True:
            await asyncio.sleep(0)
            try:
                async with asyncio.timeout(self._replay_timeout_s):
                    frames = await replay.recv_multipart()
            except TimeoutError:
                return _Round.AGAIN if self._order.last != asked else _Round.FAILED
            if len(frames) == 4 and frames[2] == _END:
                if asked is not None and not came:  # the engine does not know the batch that we read last
                    self._reset("restarted")
                    return _Round.AGAIN
                return _Round.DONE
            message = self._read(frames[1:])
            if message is None:
                return _Round.FAILED
            came += 1
            verdict = self._order.judge_replayed(message[0], message[1].ts)
            if verdict is Verdict.RESTARTED:
                self._reset("restarted")
                return _Round.AGAIN
            if verdict is Verdict.MISSING and asked is not None and came == 1:
                self._reset("lost")  # the engine's buffer begins later
            elif verdict is Verdict.MISSING and self._order.last is not None:
                return _Round.AGAIN if self._order.last != asked else _Round.FAILED
            if verdict is not Verdict.REPEATED:
                self._take(*message)

    def _take(self, seq: int, batch: Batch) -> None:
        self._order.read(seq, batch.ts)
        self._listener.on_batch(batch, complete=self._order.complete)

    def _reset(self, reason: str) -> None:
        if self._order.last is not None:
            self._resets += 1
            log.info("replica %s: KV events begin anew: %s", self._name, reason)
            self._listener.on_reset(reason)
        self._order.begin_anew()

    def _read(self, frames: list[bytes]) -> tuple[int, Batch] | None:
        """None for what is no batch, or one of another rank."""
        if len(frames) != 3 or len(frames[1]) != 8:
            self._warn("sends what is no batch of KV events")
            return None
        try:
            batch = read_batch(frames[2])
        except UnreadableError as error:
            self._warn(f"sends an unreadable batch: {error}")
            return None
        if self._rank is None:
            self._rank = batch.rank
        if batch.rank != self._rank:
            self._warn("sends events of several data-parallel ranks on one endpoint; the first counts")
            return None
        return int.from_bytes(frames[1], "big"), batch

    def _warn(self, what: str) -> None:
        """Once for each kind: a stream of them would fill the log."""
        if what not in self._warned:
            self._warned.add(what)
            log.warning("replica %s: the KV event publisher %s", self._name, what)


def open_context() -> zmq.asyncio.Context:
    """For all subscribers of one gateway: it has a thread. `term()` it when they have ended."""
    return zmq.asyncio.Context()


def _socket(context: zmq.asyncio.Context, kind: int) -> zmq.asyncio.Socket:
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, _BACKLOG)
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.IPV6, 1)
    return socket
