"""One HTTP/1.1 connection to an engine: writes a request, finds the answer's head and body in what comes back.

Decides whether the connection may be used again, and what an early end means; which connection to use is the pool's business.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, cast

import httptools

from backends.alarms import Alarms
from backends.backend import ClosedEarly, StreamCut
from backends.upstream.response import Patience, Response

_MAX_HEAD_BYTES: Final = 64 * 1024  # as much as uvicorn and nginx take in a request; engines send below 1 kB
# What is read of an answer's head, here or by a backend; the rest is nobody's business and not kept.
_READ_HEADERS: Final = {
    name.encode(): name for name in ("content-type", "content-length", "transfer-encoding", "retry-after")
}
# What they mostly say, once for all connections.
_USUAL_VALUES: Final = {
    value.encode(): value
    for value in ("application/json", "text/event-stream; charset=utf-8", "text/event-stream", "chunked")
}
_EVENT_END: Final = b"\n\n\r\n"  # and of its chunk


class Owner(Protocol):
    """Who opened the connection and is told what becomes of it."""

    def opened(self, connection: "Connection") -> None: ...

    def released(self, connection: "Connection") -> None:
        """It may serve again."""

    def lost(self, connection: "Connection") -> None:
        """It is gone, for whatever reason; called once."""


class _Unreadable(Exception):
    """Raised inside parser callbacks; httptools turns it into its own error."""


def encode_head(method: str, target: str, host: str, headers: Mapping[str, str], body_bytes: int) -> bytes:
    """Raises ValueError where a value could forge a line. HEAD is not spoken: its answer looks as if a body followed."""
    assert method in {"GET", "POST"}, method
    said = [f"{method} {target} HTTP/1.1", f"host: {host}"]
    for name, value in headers.items():
        said.append(f"{name}: {value}")
    if body_bytes or method == "POST":
        said.append(f"content-length: {body_bytes}")
    head = "\r\n".join(said)
    breaks = len(said) - 1
    if head.count("\n") != breaks or head.count("\r") != breaks or "\0" in head:
        raise ValueError("a header may not contain a line break")
    return f"{head}\r\n\r\n".encode("latin-1")


class Connection(asyncio.Protocol):
    """Serves one request at a time. Also the callbacks of its parser: on_message_begin to on_message_complete."""

    def __init__(self, owner: Owner, *, loop: asyncio.AbstractEventLoop, alarms: Alarms, buffer_bytes: int) -> None:
        self._owner = owner
        self._loop = loop
        self._alarms = alarms
        self._buffer_bytes = buffer_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self.idle_since_s = 0.0
        self._begin_answer()

    def _begin_answer(self) -> None:
        self._received_bytes = 0
        self._headers: dict[str, str] = {}
        self._has_head = False
        self._informational = False
        self._until_eof = False  # the body has no length of its own
        self._complete = False
        self._keep_alive = False
        self._between = False  # two chunks of the body

    @property
    def usable(self) -> bool:
        """May take a request now, as far as is known here."""
        return self._transport is not None and not self._transport.is_closing() and self._response is None

    def start(self, parts: Sequence[bytes], patience: Patience) -> Response:
        """Send a request, its head and its body; the answer, or why there is none, comes through the Response."""
        assert self._response is None, "a connection serves one request at a time"
        self._begin_answer()
        response = Response(
            self, loop=self._loop, alarms=self._alarms, patience=patience, buffer_bytes=self._buffer_bytes
        )
        if self._transport is None or self._transport.is_closing():
            response.fail(ClosedEarly("the engine closed the connection before the request"))
            return response
        self._response = response
        self._transport.writelines(parts)
        return response

    def shut(self) -> None:
        """Close at once; an answer under way ends in StreamCut."""
        if self._response is not None:
            self._response.fail(StreamCut("the gateway is closing"))
        self.abort()

    # Wire, called by the Response.

    def pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def release(self) -> None:
        self._response = None
        if not (self._keep_alive and self.usable and self._request_is_sent()):
            self.abort()
            return
        self.resume()  # the end may have come while paused
        self.idle_since_s = self._loop.time()
        self._owner.released(self)

    def _request_is_sent(self) -> bool:
        """A server may answer before it has read the whole request; what is left of it would garble the next one."""
        return self._transport is not None and self._transport.get_write_buffer_size() == 0

    def abort(self) -> None:
        self._response = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # nobody asked: a confused server, or one that says good-bye with a 408
            self.abort()
            return
        self._received_bytes += len(data)
        if self._between and (done := response.feed_frames(data)):
            if done == len(data):
                return
            data = data[done:]
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._keep_alive = False
            response.fail(StreamCut("the engine's answer is not readable HTTP"))
            self.abort()
            return
        if not self._has_head and self._received_bytes > _MAX_HEAD_BYTES:
            response.fail(StreamCut("the head of the engine's answer is too long"))
        # The line of a size may be read and its chunk not begun, of which no callback tells; what ends so ends an event.
        self._between = self._between and data[-4:] == _EVENT_END

    def connection_lost(self, exc: Exception | None) -> None:
        response, self._response = self._response, None
        self._owner.lost(self)
        if response is None:
            return
        if self._has_head and self._until_eof and exc is None:
            self._keep_alive = False
            response.complete()
        elif not self._received_bytes:
            response.fail(ClosedEarly("the engine closed the connection without an answer"))
        else:
            response.fail(StreamCut("the engine broke off its answer"))

    # Parser callbacks.

    def on_message_begin(self) -> None:
        if self._complete or self._response is None:
            raise _Unreadable  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        known = None if self._has_head else _READ_HEADERS.get(name.lower())  # trailers are dropped
        if known is not None:
            self._headers[known] = _USUAL_VALUES.get(value) or value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._informational = status < 200
        if self._informational:
            if status == 101:
                raise _Unreadable  # an upgrade that nobody asked for
            return
        coding = self._headers.get("transfer-encoding", "").lower()
        has_length = "content-length" in self._headers or coding.endswith("chunked")
        self._until_eof = not has_length and status not in {204, 304}
        self._has_head = True
        if self._response is not None:
            self._response.begin(status, self._headers)
            self._headers = {}

    def on_body(self, data: bytes) -> None:
        self._between = False
        if self._response is not None:
            self._response.feed(data)

    def on_chunk_complete(self) -> None:
        self._between = True

    def on_message_complete(self) -> None:
        if self._informational:
            self._headers = {}
            return
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()
        if self._response is not None:
            self._response.complete()
