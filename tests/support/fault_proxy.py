"""Stands in front of one engine over real sockets and breaks chosen answers at the exact event, byte or moment.

Faults are planned by request: the n-th attempt of a request meets the n-th fault of its plan, whichever replica it is sent to; what
has no plan passes unharmed. Knows HTTP/1.1 and server-sent events just so far as to find an event's edges.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_LINGER_ZERO = struct.pack("ii", 1, 0)  # close sends RST


class Broken(Exception):
    """The fault has ended the connection."""


class Passage:
    """One request on its way to the engine and one answer back, in a fault's hands."""

    def __init__(self, request: bytes, engine: "Engine", writer: asyncio.StreamWriter) -> None:
        self.request = request
        self._engine = engine
        self._writer = writer
        self._reader: asyncio.StreamReader | None = None
        self._engine_writer: asyncio.StreamWriter | None = None
        self.head = b""

    async def ask(self) -> bytes:
        """Send the request on; the head of the answer."""
        host, port = self._engine.address
        self._reader, self._engine_writer = await asyncio.open_connection(host, port, limit=2**24)
        head, _, body = self.request.partition(b"\r\n\r\n")
        self._engine_writer.write(head + b"\r\nconnection: close\r\n\r\n" + body)
        self.head = (await self._reader.readuntil(b"\r\n\r\n")).replace(b"connection: close\r\n", b"")
        return self.head

    async def body(self) -> AsyncIterator[bytes]:
        """The answer's body as the engine frames it: chunks, or all at once."""
        assert self._reader is not None
        if b"transfer-encoding: chunked" not in self.head.lower():
            yield await self._reader.read(-1)
            return
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]

    async def events(self) -> AsyncIterator[bytes]:
        """The body's server-sent events, each whole."""
        held = b""
        async for data in self.body():
            *events, held = (held + data).split(b"\n\n")
            for event in events:
                yield event + b"\n\n"
        if held:
            yield held

    async def send_head(self) -> None:
        """The engine's head, asked for first where that has not been done."""
        await self.raw(self.head or await self.ask())

    async def send(self, data: bytes) -> None:
        """Part of the body, framed as the head says."""
        chunked = b"transfer-encoding: chunked" in self.head.lower()
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

    async def end(self) -> None:
        """The body's regular end."""
        if b"transfer-encoding: chunked" in self.head.lower():
            await self.raw(b"0\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def flushed(self) -> None:
        """Until the gateway's kernel has it all: a reset overtakes what was written before it."""
        raw = self._writer.get_extra_info("socket")
        while struct.unpack("i", _unsent(raw))[0]:
            await asyncio.sleep(0.001)

    async def reset(self) -> None:
        """RST, once what was sent has arrived."""
        await self.flushed()
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._writer.transport.abort()
        raise Broken

    async def close(self) -> None:
        """FIN in the middle of whatever was being said."""
        self._writer.close()
        raise Broken

    async def hang(self) -> None:
        """Nothing more, until the gateway leaves."""
        await self._engine.gateway_left(self._writer)
        raise Broken

    def drop_engine(self) -> None:
        if self._engine_writer is not None:
            self._engine_writer.transport.abort()


Fault = Callable[[Passage], Awaitable[None]]


class Plan:
    """Who meets what: faults by request id. Shared by all proxies of a fleet."""

    def __init__(self) -> None:
        self._faults: dict[str, list[Fault]] = {}
        self.met: list[tuple[str, str]] = []  # (request id, replica), in their order

    def add(self, request_id: str, *faults: Fault) -> None:
        """The request's attempts meet these, one each; later ones nothing."""
        self._faults[request_id] = list(faults)

    def take(self, request: bytes, replica: str) -> Fault | None:
        """An attempt's id may have something behind the client's."""
        for line in request.partition(b"\r\n\r\n")[0].split(b"\r\n"):
            name, _, value = line.partition(b": ")
            if name.lower() == b"x-request-id":
                for request_id, faults in self._faults.items():
                    if faults and value.decode().startswith(request_id):
                        self.met.append((request_id, replica))
                        return faults.pop(0)
        return None

    @property
    def left(self) -> list[str]:
        """Requests whose faults have not all been met."""
        return [request_id for request_id, faults in self._faults.items() if faults]


class FaultProxy:
    """Listens in front of one engine; an async context manager."""

    def __init__(self, name: str, target: str, plan: Plan) -> None:
        self.name = name
        self.requests = 0  # POSTs that came
        self.probes = 0  # GETs
        self.black_hole: frozenset[bytes] = frozenset()  # targets that are accepted and never answered
        self._engine = Engine(target)
        self._plan = plan
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        """Listen, on the port of the first time."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port, limit=2**24)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Connections are refused from now on, and those that stand are cut."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, Broken):
            pass  # the gateway left, the engine is gone, the fault has struck, or the test is over
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if task.cancelling() else writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await _whole_request(reader)
            target = request.split(b" ", 2)[1]
            passage = Passage(request, self._engine, writer)
            self._engine.readers[writer] = reader
            try:
                if target in self.black_hole:
                    await passage.hang()
                fault = None
                self.probes += request.startswith(b"GET")
                if request.startswith(b"POST"):
                    self.requests += 1
                    fault = self._plan.take(request, self.name)
                await (fault or passes)(passage)
            finally:
                passage.drop_engine()
                del self._engine.readers[writer]


class Engine:
    """Where a proxy's requests go, and how it hears of a gateway that leaves."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.readers: dict[asyncio.StreamWriter, asyncio.StreamReader] = {}

    async def gateway_left(self, writer: asyncio.StreamWriter) -> None:
        while await self.readers[writer].read(65536):
            pass


async def passes(passage: Passage) -> None:
    """No fault; a gateway that leaves in the middle ends the engine's answer, too."""
    await passage.send_head()
    async for data in passage.body():
        await passage.send(data)
    await passage.end()


async def _whole_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    return head + await reader.readexactly(int(fields.get(b"content-length", b"0")))


def _unsent(raw: socket.socket) -> bytes:
    """Bytes that the other side has not acknowledged, as an int's bytes (SIOCOUTQ)."""
    import fcntl
    import termios

    return fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")


def is_token(event: bytes) -> bool:
    """Whether an event carries a token: not the role's, the usage's, or [DONE]."""
    return b'"choices":[{' in event and b'"role":' not in event
