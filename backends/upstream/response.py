"""One answer of an engine: its head, then its body through a bounded buffer.

Decides when an engine has been silent for too long, and when its connection may serve again; parses nothing.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from backends.alarms import Alarm, Alarms
from backends.backend import FirstByteTimeout, Sink, StreamCut, UpstreamError

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long an engine may be silent. Seconds."""

    first_byte_timeout_s: float  # from the request's sending to the first byte of a body: the prefill is in it
    stall_timeout_s: float  # between bytes from then on, while a reader waits for them


class Wire(Protocol):
    """The connection, as far as an answer needs it."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def release(self) -> None:
        """The answer has been received and read: the connection may serve another."""

    def abort(self) -> None:
        """Close at once: how an engine learns that nobody waits any more."""


class Response:
    """Has one reader. Owns its buffer, so that no later use of the connection can touch it.

    The connection is given back exactly once: by the read that drains the last byte, or by `close`.
    """

    __slots__ = (
        "_alarms",
        "_began_s",
        "_buffer_bytes",
        "_buffered_bytes",
        "_chunks",
        "_complete",
        "_error",
        "_has_head",
        "_loop",
        "_patience",
        "_paused",
        "_refusal",
        "_sink",
        "_timer",
        "_underway",
        "_waiter",
        "_waiting_since_s",
        "_wire",
        "headers",
        "status",
    )

    def __init__(
        self,
        wire: Wire,
        *,
        loop: asyncio.AbstractEventLoop,
        alarms: Alarms,
        patience: Patience,
        buffer_bytes: int,
    ) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = _NO_HEADERS
        self._wire: Wire | None = wire
        self._loop = loop
        self._alarms = alarms
        self._patience = patience
        self._buffer_bytes = buffer_bytes
        self._chunks: list[bytes] = []
        self._buffered_bytes = 0
        self._has_head = False
        self._underway = False  # the body's first byte has come
        self._complete = False
        self._paused = False
        self._error: UpstreamError | None = None
        self._sink: Sink | None = None  # while the body is poured, no reader stands between
        self._refusal: Exception | None = None  # what the sink raised
        self._waiter: asyncio.Future[None] | None = None
        self._began_s = loop.time()
        self._waiting_since_s = self._began_s
        self._timer: Alarm | None = None

    # The reader's side.

    async def wait_head(self) -> None:
        """Until `status` and `headers` are known. Raises the UpstreamError that came instead."""
        while not self._has_head:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """What has arrived since the last read, waiting for it if need be; b"" at the end.

        Raises FirstByteTimeout or StreamCut, after everything that came before has been read.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._complete:
                return b""
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered_bytes = 0
        if self._complete:
            self._release()
        elif self._paused:
            self._paused = False
            if self._wire is not None:
                self._wire.resume()
        return data

    async def pour(self, sink: Sink) -> bool:
        """The body into `sink`, each read as it arrives, until it has ended or the sink is closed; the rest is there for `read`.

        Returns whether there is no rest: an answer's last byte mostly comes with its `[DONE]`.

        Raises FirstByteTimeout, StreamCut, and whatever the sink raises. While the sink is full the engine is not read.
        """
        if self._chunks and not sink.closed and not sink.feed(await self.read(), self._loop.time()):
            self._hold_back(sink)
        self._sink = sink
        try:
            while not (sink.closed or self._complete):
                if self._error is not None:
                    raise self._error
                await self._wait()
                if self._refusal is not None:
                    raise self._refusal
        finally:
            self._sink = None
        return self._complete and not self._chunks

    def close(self) -> None:
        """Idempotent. An answer that is not complete is aborted; what is buffered is forgotten."""
        self._chunks.clear()
        if self._complete:
            self._release()
        else:
            self.fail(StreamCut("closed by the gateway"))

    # The connection's side.

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers, self._has_head = status, headers, True
        self._wake()

    def forget_head(self) -> None:
        """Its headers are read, and would be kept for as long as a stream runs."""
        self.headers = _NO_HEADERS

    def feed(self, data: bytes) -> None:
        if not self._underway:
            self._underway = True
            self._disarm()  # the clock of stalls runs from the next wait on
        sink = self._sink
        if sink is None:
            self._keep(data)
            return
        now = self._waiting_since_s = self._loop.time()
        if self._timer is None:
            self._timer = self._alarms.call_at(self._due_s(), self._check_silence)
        try:
            if sink.feed(data, now):
                return
        except Exception as error:  # noqa: BLE001 - it is the pourer's to handle
            self._refusal = error
        if self._refusal is not None or sink.closed:
            self._sink = None  # what else comes is there for `read`
            self._wake()
        else:
            self._hold_back(sink)

    def feed_frames(self, data: bytes) -> int:
        """As `feed`, of whole chunks with their framing: how much of it is done with."""
        sink = self._sink
        if sink is None or not self._underway:
            return 0
        now = self._loop.time()
        try:
            done = sink.feed_frames(data, now)
        except Exception as error:  # noqa: BLE001 - it is the pourer's to handle
            self._refusal, self._sink = error, None
            self._wake()
            return 0
        if done:
            self._waiting_since_s = now
            if self._timer is None:
                self._timer = self._alarms.call_at(self._due_s(), self._check_silence)
            self._hold_back(sink)
        return done

    def _keep(self, data: bytes) -> None:
        self._chunks.append(data)
        self._buffered_bytes += len(data)
        if self._buffered_bytes > self._buffer_bytes and not self._paused and self._wire is not None:
            self._paused = True
            self._wire.pause()
        self._wake()

    def _hold_back(self, sink: Sink) -> None:
        if sink.full and not self._paused and self._wire is not None:
            self._paused = True
            self._wire.pause()
            sink.when_room(self._go_on)

    def _go_on(self) -> None:
        self._paused = False
        self._waiting_since_s = self._loop.time()  # until now it was we who did not read
        if self._wire is not None:
            self._wire.resume()

    def complete(self) -> None:
        """The whole answer is here."""
        self._complete = True
        self._disarm()
        if not self._chunks:
            self._release()
        self._wake()

    def fail(self, error: UpstreamError) -> None:
        """Nothing more will come; the first reason stands."""
        if self._complete or self._error is not None:
            return
        self._error = error
        self._disarm()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
        self._wake()

    def _release(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.release()

    # Waiting, with one timer a response that is moved lazily: a timer set and cancelled per chunk costs more than the chunk.

    async def _wait(self) -> None:
        assert self._waiter is None, "a response has one reader"
        self._waiting_since_s = self._loop.time()
        self._waiter = self._loop.create_future()
        if self._timer is None:
            self._timer = self._alarms.call_at(self._due_s(), self._check_silence)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _due_s(self) -> float:
        if not self._underway:
            return self._began_s + self._patience.first_byte_timeout_s
        return self._waiting_since_s + self._patience.stall_timeout_s

    def _check_silence(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return  # the reader is what we wait for; its next wait arms the timer again
        due_s = self._due_s()
        if self._paused and self._sink is not None:
            again_s = self._loop.time() + self._patience.stall_timeout_s
            self._timer = self._alarms.call_at(again_s, self._check_silence)
        elif self._loop.time() < due_s:
            self._timer = self._alarms.call_at(due_s, self._check_silence)
        elif self._underway:
            self.fail(StreamCut(f"stalled: nothing for {self._patience.stall_timeout_s:g} s"))
        else:
            self.fail(FirstByteTimeout(f"no answer within {self._patience.first_byte_timeout_s:g} s"))

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
