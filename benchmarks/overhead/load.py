"""The load generator: raw HTTP over keep-alive connections, each sending its next request when the last answer is whole.

Closed loop: at saturation its latency says how the queue grew, not what the gateway adds; concurrency 1 says that.
"""

import asyncio
from dataclasses import dataclass, field
from time import perf_counter  # the loop's own clock counts milliseconds
from typing import cast

import httptools

_ANSWER_TIMEOUT_S = 60.0  # of one answer; a stream lasts seconds, so whoever needs longer hangs


@dataclass(slots=True)
class Seen:
    """What a load saw. Seconds."""

    latencies_s: list[float] = field(default_factory=list)  # to the end of the answer
    first_s: list[float] = field(default_factory=list)  # to the first byte of the body
    gaps_s: list[float] = field(default_factory=list)  # between reads of one body
    whole: int = 0
    broken: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`expected`: the body that every answer must be, byte for byte. `spread_s`: over which the connections begin."""

    port: int
    request: bytes
    expected: bytes
    connections: int
    seconds: float
    spread_s: float = 0.0


class _Connection(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop, seen: Seen) -> None:
        self._loop = loop
        self._seen = seen
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[bool] | None = None
        self._body: list[bytes] = []
        self._sent_s = self._last_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._answer(whole=False)

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        had = len(self._body)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
            return
        if len(self._body) > had:
            if had:
                self._seen.gaps_s.append(now - self._last_s)
            else:
                self._seen.first_s.append(now - self._sent_s)
            self._last_s = now

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._answer(whole=self._parser.get_status_code() == 200)

    async def exchange(self, request: bytes, expected: bytes) -> bool:
        """Whether the answer was whole; a connection that is gone or hangs answers nothing."""
        if self._transport is None:
            return False
        self._body.clear()
        self._parser = httptools.HttpResponseParser(self)
        answered = self._answered = self._loop.create_future()
        self._sent_s = perf_counter()
        self._transport.write(request)
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                whole = await answered
        except TimeoutError:
            self.close()
            return False
        self._seen.latencies_s.append(perf_counter() - self._sent_s)
        return whole and b"".join(self._body) == expected

    @property
    def open(self) -> bool:
        return self._transport is not None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _answer(self, *, whole: bool) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(whole)


async def run_load(load: Load) -> Seen:
    """All connections to the end of the answer that each is reading when time is up."""
    seen = Seen()
    start_s = perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(load.connections):
            tasks.create_task(_connection(load, seen, start_s, load.spread_s * number / load.connections))
    seen.duration_s = perf_counter() - start_s
    return seen


async def _connection(load: Load, seen: Seen, start_s: float, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: _Connection(loop, seen), "127.0.0.1", load.port)
    await asyncio.sleep(delay_s)
    try:
        while True:  # at least one answer each, however short the run
            if await connection.exchange(load.request, load.expected):
                seen.whole += 1
            else:
                seen.broken += 1
            if perf_counter() - start_s >= load.seconds or not connection.open:
                return
    finally:
        connection.close()
