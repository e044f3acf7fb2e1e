"""A hot request served by its own connection: body in, one task for the handler, answer out. ASGI is not involved.

Stands where uvicorn's protocol keeps its RequestResponseCycle, and has what the protocol asks of one. Which requests come here is
`router.protocol`'s business: those whose framing leaves no question open. All others take the ASGI way, to the same handler.
"""

import asyncio
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from router.body_budget import BodyBudget
from router.client import JSON_HEADERS, Client, Headers
from router.inbound import Handler, Inbound, answer, read_headers, request_id
from router.openai.errors import body_timeout
from router.tenants.caller import Caller
from router.tenants.gate import Gate

# The lines that tell the sizes of chunks, as far as events with one token mostly are.
_SIZES: Final = tuple(b"%x\r\n" % size for size in range(1024))


@dataclass(frozen=True, slots=True, kw_only=True)
class HotPlane:
    """What a connection needs to serve hot requests itself. Bytes and seconds."""

    handler: Handler
    bodies: BodyBudget
    max_body_bytes: int
    body_timeout_s: float
    buffer_bytes: int  # kept for a client that reads slowly, before its engine is asked to wait
    gate: Gate | None = None  # asks for a key, before a body is read; None: nobody is asked
    cors: bool = False  # what browsers of other origins send belongs to a middleware


class Connection(Protocol):
    """uvicorn's protocol, as far as a cycle needs it."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    tasks: set[asyncio.Task[None]]
    default_headers: list[tuple[bytes, bytes]]  # date, renewed each second

    def on_response_complete(self) -> None: ...


class _Nobody:
    """uvicorn wakes its own cycles by an event; nothing waits here."""

    def set(self) -> None:
        pass


class HotCycle(Client):
    """One request on one connection. `feed` its body, then `begin`; `hang_up` when the connection is lost."""

    waiting_for_100_continue = False
    message_event = _Nobody()

    def __init__(
        self,
        connection: Connection,
        plane: HotPlane,
        path: str,
        headers: Headers,
        *,
        keep_alive: bool,
        caller: Caller | None = None,
    ) -> None:
        super().__init__(request_id(headers))
        self.keep_alive = keep_alive
        self.disconnected = False
        self._connection = connection
        self._transport = connection.transport
        self._plane = plane
        self._path = path
        self._headers = headers
        self._caller = caller
        self._received_s = connection.loop.time()
        self._parts: list[bytes] = []
        self._held_bytes = 0  # of the budget
        self._task: asyncio.Task[None] | None = None
        self._unsent = b""  # a head: it goes with the first bytes of its body
        self._chunked = True

    @property
    def response_complete(self) -> bool:
        return self.ended

    def feed(self, body: bytes) -> bool:
        """Another part; False: there is no room for it, and what came before is gone."""
        if not self._plane.bodies.take(len(body)):
            self._let_go()
            return False
        self._held_bytes += len(body)
        self._parts.append(body)
        return True

    def _let_go(self) -> None:
        """Of the body, or of a request that has ended."""
        self._parts.clear()
        self._plane.bodies.give_back(self._held_bytes)
        self._held_bytes = 0

    def begin(self) -> None:
        """The body is whole."""
        parts, headers = self._parts, self._headers
        self._parts, self._headers = [], ()
        inbound = Inbound(
            request_id=self.request_id,
            path=self._path,
            body=parts[0] if len(parts) == 1 else b"".join(parts),
            headers=read_headers(headers),
            received_s=self._received_s,
            whole_s=perf_counter(),
            caller=self._caller,
        )
        tasks = self._connection.tasks  # uvicorn waits for them when it stops
        self._task = task = self._connection.loop.create_task(self._serve(inbound), name="request")
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def body_overdue(self) -> None:
        """The rest of the body did not come in time."""
        self._let_go()
        error = body_timeout(self._plane.body_timeout_s)
        self._plane.handler.refused(self._path, error, self.request_id)
        self.keep_alive = False
        self.respond(error.status, error.to_body(self.request_id), [*JSON_HEADERS, *error.headers()])

    def hang_up(self) -> None:
        """The connection is gone."""
        self.disconnected = True
        if self._task is None:
            self._let_go()
        elif not self.ended:
            self._task.cancel()

    def pause(self) -> None:
        """The socket takes no more for now."""
        self.full = True

    def resume(self) -> None:
        self._room()

    async def _serve(self, inbound: Inbound) -> None:
        try:
            await answer(self._plane.handler, inbound, self)
        except asyncio.CancelledError:
            if not self.disconnected:
                raise
        finally:
            self._let_go()

    def _head(self, status: int, headers: Headers) -> None:
        lines = [STATUS_LINE[status]]
        for name, value in (*self._connection.default_headers, *headers):
            if name == b"content-length":
                self._chunked = False
            lines.append(b"%b: %b\r\n" % (name, value))
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines):
            raise ValueError("a header may not contain a line break")
        self._unsent = head

    def write(self, data: bytes) -> None:
        """Once a token: the base's, in one step."""
        if self._unsent or not self._chunked or self.ended:
            super().write(data)
        elif data and not self._transport.is_closing():
            size = len(data)
            self._transport.write(b"".join((_SIZES[size] if size < len(_SIZES) else b"%x\r\n" % size, data, b"\r\n")))

    @property
    def takes_frames(self) -> bool:
        return self._chunked and not self._unsent

    def write_frames(self, data: bytes) -> None:
        if not self.ended and not self._transport.is_closing():
            self._transport.write(data)

    def _body(self, data: bytes) -> None:
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        if not self._transport.is_closing():
            self._transport.write(data)

    def _last(self, data: bytes) -> None:
        if data:
            self._body(data)
        if not self._transport.is_closing():
            end = b"0\r\n\r\n" if self._chunked else b""
            if end or self._unsent:
                self._transport.write(self._unsent + end)
            if not self.keep_alive:
                self._transport.close()
        self._connection.on_response_complete()
