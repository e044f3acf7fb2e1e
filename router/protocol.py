"""uvicorn's HTTP/1.1 protocol with what it lacks: deadlines and sizes for the request head, errors in OpenAI's shape, and more.

Uvicorn has no header timeout, so a client that dribbles a head would hold its socket for ever (slowloris). It also tells only the
last of several pipelined requests that the client has gone, loses the body of a request that offers an upgrade, and chunks the
answers of HTTP/1.0 clients.
"""

import asyncio
from functools import cached_property
from typing import Any

import httptools
from starlette.types import Message
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from config.tenants import Scope
from router.hot_cycle import HotCycle, HotPlane
from router.inbound import HOT_PATHS, head_bytes, request_id
from router.openai.errors import ApiError, bad_http, head_timeout, head_too_large

# Docs of OpenAI ask clients to stay below 64 KiB of headers; 100 is what common proxies allow.
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
KEEP_ALIVE_IDLE_S = 75  # longer than the usual 60 s of a load balancer, so that it closes first
_LINGER_S = 2.0  # for a refused client to stop sending and read why
_UPGRADE_HEADERS = frozenset({b"connection", b"upgrade", b"http2-settings"})
_HOT_TARGETS = {path.encode(): path for path in HOT_PATHS}
# Requests with these need what only the ASGI way does: chunked bodies, 100-continue, refusals.
_SLOW_HEADERS = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"})


def protocol_with(
    header_timeout_s: float, write_stall_timeout_s: float = 60.0, plane: HotPlane | None = None
) -> type[HttpToolsProtocol]:
    """The protocol class for `uvicorn.Config(http=...)`; with a `plane`, hot requests are served by their connection."""
    addresses: dict[Any, Any] = {}

    class PenstockProtocol(_HeadGuard):
        _head_timeout_s = header_timeout_s
        _flush_timeout_s = write_stall_timeout_s
        _plane = plane
        _addresses = addresses

    return PenstockProtocol


class _Flow(FlowControl):
    """uvicorn's, whose event is made when an ASGI answer first waits for it: 0.7 kB that a stream on the hot way has no use for."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False

    @cached_property
    def _is_writable_event(self) -> asyncio.Event:  # type: ignore[override]
        event = asyncio.Event()
        event.set()
        return event


class _Pipeline(list[Any]):
    """Requests that came before the last one was answered, as uvicorn keeps them: in its deque no request at all takes 0.7 kB."""

    def appendleft(self, request: Any) -> None:
        self.insert(0, request)


class _HeadGuard(HttpToolsProtocol):
    # Slots, because uvicorn's own attributes already fill what instances of a class can share: with ours each had a dictionary of 1.5 kB.
    __slots__ = (
        "_collecting", "_flush_timer", "_head_timer", "_in_head", "_later_bytes", "_refused", "_stall_timer", "_unanswered",
        "default_headers",
    )  # fmt: skip
    _head_timeout_s: float
    _flush_timeout_s: float
    _plane: HotPlane | None = None
    _addresses: dict[Any, Any]  # our own, each once: a few for thousands of connections
    cycle: RequestResponseCycle | HotCycle  # type: ignore[assignment]  # the latter has what uvicorn asks of a cycle

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = _Pipeline()  # type: ignore[assignment]
        self._collecting: HotCycle | None = None  # its body is not whole yet
        self._head_timer: asyncio.TimerHandle | None = None
        self._flush_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._later_bytes = 0  # of reads that lie wholly within one head: a line without an end is no header yet
        self._in_head = False
        self._refused = False
        self._unanswered: list[RequestResponseCycle | HotCycle] = []
        self.default_headers = self.server_state.default_headers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.server = self._addresses.setdefault(self.server, self.server)
        self.flow = _Flow(self.transport)
        if self._plane is not None:
            self.transport.set_write_buffer_limits(high=self._plane.buffer_bytes)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        for timer in (self._flush_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        for cycle in self._unanswered:  # uvicorn tells the last one only
            if isinstance(cycle, HotCycle):
                cycle.hang_up()
            else:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        in_head = self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError:
            self._refuse(bad_http("Invalid HTTP request received."))
        if self._in_head:
            self._later_bytes += len(data) if in_head else 0
            self._check_size()
        if self._head_timer is None:
            self._watch_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        if isinstance(self.cycle, HotCycle):
            self.cycle.pause()
            self._watch_stall(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if isinstance(self.cycle, HotCycle):
            self.cycle.resume()

    # Parser callbacks.

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        self._later_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm()
        self._check_size()
        if self._refused or self.parser.should_upgrade():
            return
        if (hot := self._hot()) is not None:
            self._begin_hot(*hot)
            return
        self._begin_asgi()
        self._unanswered.append(self.cycle)
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = _UntilClose

    def _begin_hot(self, path: str, body_bytes: int) -> None:
        plane, caller = self._plane, None
        assert plane is not None
        if plane.gate is not None:
            try:
                caller = plane.gate.admit(self.headers, Scope.INFERENCE, self.client)
            except ApiError as error:
                self._refuse_hot(path, error)
                return
        if not plane.bodies.announced(body_bytes):
            self._refuse_hot(path, plane.bodies.refusal())
            return
        keep_alive = self.parser.should_keep_alive()
        self._collecting = HotCycle(self, plane, path, self.headers, keep_alive=keep_alive, caller=caller)
        self.cycle = self._collecting
        self._unanswered.append(self._collecting)

    def on_body(self, body: bytes) -> None:
        if self._collecting is not None:
            if not self._collecting.feed(body):
                self._unanswered.remove(self._collecting)
                self._collecting = None
                assert self._plane is not None
                self._refuse_hot(_HOT_TARGETS[self.url], self._plane.bodies.refusal())
        elif not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._collecting is not None:
            cycle, self._collecting = self._collecting, None
            self._disarm()
            cycle.begin()
            self.headers = []  # for as long as a stream runs nobody else needs them
            return
        if self._refused or self.parser.should_upgrade():
            return
        super().on_message_complete()
        if not self._unanswered:  # the rest of a body whose answer did not wait for it
            self._disarm()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        del self._unanswered[0]
        super().on_response_complete()
        if self._flush_timer is None:
            self._flush_timer = self.loop.call_later(self._flush_timeout_s, self._flush_overdue)

    def _begin_asgi(self) -> None:
        """What uvicorn does at a message's beginning and at its head's end; hot requests need neither."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        self.scope["extensions"] = {"penstock.abort": self.transport.abort}  # type: ignore[dict-item]
        super().on_headers_complete()

    def _hot(self) -> tuple[str, int] | None:
        """Path and bytes of the body of a request that its connection serves itself; None: it takes the ASGI way."""
        plane = self._plane
        if plane is None or self._unanswered or self.flow.write_paused or self.parser.get_method() != b"POST":
            return None  # a client that has not read its last answer: ASGI waits before it writes the next
        length = b""
        for name, value in self.headers:
            if name == b"content-length":
                length = value
            elif name in _SLOW_HEADERS or (name == b"origin" and plane.cors):
                return None
        path = _HOT_TARGETS.get(self.url)
        if path is None or not length.isdigit() or self.parser.get_http_version() != "1.1":
            return None
        body_bytes = int(length)
        return None if body_bytes > plane.max_body_bytes else (path, body_bytes)

    def _refuse_hot(self, path: str, error: ApiError) -> None:
        """A hot request whose body is not read: nobody may send it, or there is no room."""
        assert self._plane is not None
        rid = request_id(self.headers)
        self._plane.handler.refused(path, error, rid)
        self._refuse(error, rid)

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the same request without its offer: the parser takes what follows the head for another protocol.

        Java's HTTP client offers h2c with every request, bodies included.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(bad_http("CONNECT is not offered here."))
        if self._refused:
            return
        kept = [b"%b: %b\r\n" % header for header in self.headers if header[0] not in _UPGRADE_HEADERS]
        version = self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(kept)) + rest)

    # Deadlines and sizes.

    def _check_size(self) -> None:
        read = len(self.url) + head_bytes(self.headers)
        if max(read, self._later_bytes) > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse(head_too_large(MAX_HEAD_BYTES, MAX_HEADERS))

    def _watch_request(self) -> None:
        """What a read leaves unfinished, a head or a body, must be finished in time; empty lines begin a head, too."""
        if self._collecting is not None:
            assert self._plane is not None
            self._head_timer = self.loop.call_later(self._plane.body_timeout_s, self._body_overdue)
        elif (self._in_head or not self._unanswered) and not self._refused:
            self._arm()

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(self._head_timeout_s, self._head_overdue)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self.flow.read_paused:  # it is we who do not read
            self._arm()
        else:
            self._refuse(head_timeout(self._head_timeout_s))

    def _body_overdue(self) -> None:
        self._head_timer = None
        cycle, self._collecting = self._collecting, None
        if cycle is not None:
            cycle.body_overdue()

    def _watch_stall(self, unread_bytes: int) -> None:
        """A client that has read nothing of `unread_bytes` when we look again is cut off; a slow one is not."""
        self._stall_timer = self.loop.call_later(self._flush_timeout_s, self._stalled, unread_bytes)

    def _stalled(self, unread_bytes: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left < unread_bytes:
            self._watch_stall(left)
        else:
            self.transport.abort()

    def _flush_overdue(self) -> None:
        """An answer that its client does not read holds no socket for ever, finished or not."""
        self._flush_timer = None
        if not self._unanswered and self.transport.get_write_buffer_size():
            self.transport.abort()

    def _refuse(self, error: ApiError, request_id: str = "") -> None:
        """Answer outside ASGI: the request never became one. Behind answers under way it is only that nothing more is read."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._disarm()
        if self._unanswered:
            self._unanswered[-1].keep_alive = False
            return
        body, headers = error.to_body(request_id), error.headers()
        if request_id:
            headers.append((b"x-request-id", request_id.encode("ascii")))
        told = b"".join(b"%b: %b\r\n" % header for header in headers)
        head = f"HTTP/1.1 {error.status} {error.phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        self.transport.write(head.encode("ascii") + told + b"\r\n" + body)
        # Closing with unread bytes would be a reset, which takes the answer back from a client that still sends.
        self.transport.write_eof()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self._flush_timer = self.loop.call_later(_LINGER_S, self.transport.abort)


class _UntilClose(RequestResponseCycle):
    """HTTP/1.0 knows no chunks: a body without a length ends with the connection."""

    async def send(self, message: Message) -> None:  # type: ignore[override]  # uvicorn's types are private
        if message["type"] == "http.response.start":
            self.chunked_encoding = False
        else:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)  # type: ignore[arg-type]
