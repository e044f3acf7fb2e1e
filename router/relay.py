"""From an engine's bytes to the client's: whole events only, edits by the chunk filter, silence filled with comments.

Decides when a stream counts as whole; what an event means is `router.openai.chunks`', which replica sends it the dispatcher's.
Memory: one read of the upstream at a time; a client that reads slowly leaves the rest with the engine.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from backends.alarms import Alarm, Alarms
from backends.backend import EngineReply, UpstreamError
from metrics.histogram import Series
from metrics.overhead import EVERY, Overhead
from metrics.timeline import Timeline
from router.client import Client, Headers
from router.openai.chunks import ChunkFilter, Document, check_document
from router.openai.errors import ApiError, from_engine, upstream_garbled, upstream_lost

KEEP_ALIVE: Final = b": keep-alive\n\n"
# How far the ledger may be behind a stream: half a block of most engines, so that each boundary is seen in time.
_LEDGER_STEP_TOKENS: Final = 8
# After [DONE] an engine only has to close its framing; past this the connection is not worth keeping.
_TAIL_TIMEOUT_S: Final = 1.0
# A whole document is held at once: 64 MiB are 768 embeddings of 4,096 floats, or any chat answer.
MAX_DOCUMENT_BYTES: Final = 64 * 2**20


class RelayFailed(Exception):
    """The upstream did not deliver a whole answer. `forwarded`: some of it reached the client, so it can't be sent again.

    `lost`: it broke off or fell silent; else what it said was not an answer.
    """

    def __init__(
        self, error: ApiError, *, forwarded: bool, outcome: str, repeatable: bool = True, lost: bool = False
    ) -> None:
        super().__init__(error.message)
        self.lost = lost
        self.error = error
        self.forwarded = forwarded
        self.outcome = outcome
        self.repeatable = repeatable and not forwarded


class KeepAlive:
    """Writes an SSE comment whenever a stream has been silent for `interval_s`; the first one commits the headers.

    It says nothing before `begin`, the first placement: a request that was never placed can still be refused with a status.
    """

    def __init__(self, client: Client, interval_s: float, headers: Callable[[], Headers], alarms: Alarms) -> None:
        self._client = client
        self._alarms = alarms
        self._interval_s = interval_s
        self.headers = headers
        self._loop = asyncio.get_running_loop()
        self.last_s = 0.0  # when something came last, as the relay writes it; who is silent is found by it
        self._said_s = 0.0  # when a comment was written last
        self._timer: Alarm | None = None

    def begin(self) -> None:
        """The request was placed: from now on silence counts. Again on a later attempt: what was committed stays."""
        self.last_s = self._loop.time()
        if self._timer is None:
            self._timer = self._alarms.call_at(self.last_s + self._interval_s, self._fire)

    def pause(self) -> None:
        """Back in the queue: with nothing committed yet, silence again."""
        if self._timer is not None and not self._client.started:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        now = self._loop.time()
        due_s = max(self.last_s, self._said_s) + self._interval_s
        if now >= due_s:
            self._said_s = now
            due_s = now + self._interval_s
            self._write()
        self._timer = self._alarms.call_at(due_s, self._fire)

    def _write(self) -> None:
        if not self._client.started:
            self._client.start(200, self.headers())
        if not self._client.full:  # what is kept for it will do
            self._client.write(KEEP_ALIVE)


class Listener(Protocol):
    """Who is told of a stream's tokens: `router.heard`."""

    def first(self, now: float) -> None:
        """The first token of this engine is here, at this time."""

    def step(self, total: int) -> None:
        """So many tokens came of it so far."""


class Relay:
    """A stream's way to its client: what `EngineReply.pour` feeds, once a token and more; so it is one flat stretch of code.

    `begins` is called before anything is passed on; if it raises, nothing is. `heard` is told each time the ledger is to know. `before`:
    tokens that other engines said of this answer.
    """

    __slots__ = (
        "_before", "_begins", "_chunks", "_client", "_clock", "_first", "_gaps", "_heard", "_overhead", "_reads",
        "_silence", "_timeline", "_told",
        "closed", "drained", "forwarded",
    )  # fmt: skip

    def __init__(
        self,
        client: Client,
        chunks: ChunkFilter,
        timeline: Timeline,
        *,
        gaps: Series,
        overhead: Overhead,
        begins: Callable[[], None],
        heard: Listener,
        silence: KeepAlive,
        before: int = 0,
        forwarded: bool = False,
    ) -> None:
        self._client = client
        self._chunks = chunks
        self._timeline = timeline
        self._gaps = gaps
        self._overhead = overhead.relay
        self._clock = overhead.clock
        self._reads = overhead.phase()
        self._begins = begins
        self._heard = heard
        self._silence = silence
        self._before = before
        self._told = before + 1
        self._first = True
        self.closed = False
        self.drained = False  # the engine's answer was read to its end
        self.forwarded = forwarded

    @property
    def full(self) -> bool:
        return self._client.full

    def when_room(self, resume: Callable[[], None]) -> None:
        self._client.when_room(resume)

    def feed(self, data: bytes, now: float) -> bool:
        self._reads = reads = self._reads + 1
        began = None if reads % EVERY else self._clock()
        chunks = self._chunks
        before = chunks.tokens
        out = chunks.read(data)
        self._silence.last_s = now
        if out and not self.forwarded:
            self._begin()
        if chunks.tokens != before:
            self._count(chunks.tokens - before, now)
        if out:
            self._client.write(out)
        if began is not None:
            self._overhead.observe(self._clock() - began)
        if chunks.done or chunks.error is not None:
            self.closed = True
            return False
        return not self._client.full

    def feed_frames(self, data: bytes, now: float) -> int:
        if not (self.forwarded and self._client.takes_frames):
            return 0
        chunks = self._chunks
        before = chunks.tokens
        began = None if (self._reads + 1) % EVERY else self._clock()
        end = chunks.read_frames(data)
        if not end:
            return 0
        self._reads += 1
        self._silence.last_s = now
        self._count(chunks.tokens - before, now)
        self._client.write_frames(data if end == len(data) else data[:end])
        if began is not None:
            self._overhead.observe(self._clock() - began)
        return end

    def _begin(self) -> None:
        self._begins()
        if not self._client.started:
            self._client.start(200, self._silence.headers())
        self.forwarded = True

    def _count(self, tokens: int, now: float) -> None:
        """`tokens` came at once: the first of them waited for it, the others for nothing, as the client sees them."""
        timeline = self._timeline
        gap_s = timeline.on_tokens(tokens, now)
        if self._first:
            self._first = False
            self._heard.first(now)
        if gap_s is not None:
            self._gaps.observe(gap_s)
        if tokens > 1:
            self._gaps.observe(0.0, tokens - 1)
        if timeline.output_tokens >= self._told:
            self._told = timeline.output_tokens + _LEDGER_STEP_TOKENS
            self._heard.step(timeline.output_tokens - self._before)


async def relay_stream(reply: EngineReply, relay: Relay, chunks: ChunkFilter) -> bytes:
    """Pass a stream on until its end; raises `RelayFailed` where it has none.

    Returns the last bytes, `[DONE]` among them: the caller ends the response with them once the lease is given back.
    """
    try:
        relay.drained = await reply.pour(relay)
    except UpstreamError as error:
        if not chunks.complete:  # else only the tail is missing
            raise RelayFailed(upstream_lost(), forwarded=relay.forwarded, outcome=error.outcome, lost=True) from error
    if chunks.error is not None:
        raise RelayFailed(chunks.error, forwarded=relay.forwarded, outcome="error_event")
    end = chunks.end()
    if end.error is not None:
        raise RelayFailed(end.error, forwarded=relay.forwarded, outcome="stream_cut")
    return end.tail


async def read_beginning(reply: EngineReply, chunks: ChunkFilter) -> tuple[list[bytes], AsyncIterator[bytes]]:
    """A stream as far as its first token: what was read, and what gives the rest. Raises `RelayFailed` where it fails before that."""
    read, rest = [], reply.body()
    try:
        async for data in rest:
            read.append(data)
            chunks.read(data)
            if chunks.error is not None:
                raise RelayFailed(chunks.error, forwarded=False, outcome="error_event")
            if chunks.tokens or chunks.done:
                return read, rest
    except UpstreamError as error:
        raise RelayFailed(upstream_lost(), forwarded=False, outcome=error.outcome, lost=True) from error
    end = chunks.end()
    if end.error is not None:
        raise RelayFailed(end.error, forwarded=False, outcome="stream_cut")
    return read, rest


async def drain_tail(reply: EngineReply, relay: Relay) -> None:
    """Read what follows `[DONE]`, so that the connection can serve the next request."""
    if relay.drained:
        return
    try:
        async with asyncio.timeout(_TAIL_TIMEOUT_S):
            async for _ in reply.body():
                pass
    except (TimeoutError, UpstreamError):
        pass  # the answer was whole; closing the connection costs only a new one


async def read_document(reply: EngineReply, *, chat: bool) -> Document:
    """A non-streaming answer, whole and checked; raises `RelayFailed` (nothing was forwarded)."""
    parts: list[bytes] = []
    size = 0
    try:
        async for data in reply.body():
            parts.append(data)
            size += len(data)
            if size > MAX_DOCUMENT_BYTES:
                raise RelayFailed(upstream_garbled(), forwarded=False, outcome="too_large", repeatable=False)
    except UpstreamError as error:
        raise RelayFailed(upstream_lost(), forwarded=False, outcome=error.outcome, lost=True) from error
    try:
        document = check_document(b"".join(parts), chat=chat)
    except ApiError as garbled:
        raise RelayFailed(garbled, forwarded=False, outcome="garbled") from garbled
    if not document.finished:
        raise RelayFailed(upstream_lost(), forwarded=False, outcome="stream_cut")
    return document


async def read_error(reply: EngineReply) -> ApiError:
    """An engine's refusal, translated."""
    parts: list[bytes] = []
    size = 0
    try:
        async for data in reply.body():
            parts.append(data)
            size += len(data)
            if size > 64 * 1024:  # an error is a sentence; the rest is noise
                break
    except UpstreamError:
        pass  # the status alone says enough
    return from_engine(reply.status, b"".join(parts), reply.headers)
