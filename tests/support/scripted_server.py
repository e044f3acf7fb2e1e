"""A TCP server that plays one script a connection: exact bytes, exact breaks. Loopback, a port of the system's choice."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

_LINGER_ZERO = struct.pack("ii", 1, 0)  # close sends RST


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: list[bytes]) -> None:
        self._reader = reader
        self._writer = writer
        self._requests = requests

    async def request(self) -> bytes:
        """The next whole request, head and body; also kept in `ScriptedServer.requests`."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        request = head + await self._reader.readexactly(int(fields.get(b"content-length", b"0")))
        self._requests.append(request)
        return request

    async def send(self, *parts: bytes) -> None:
        """Each part in a write of its own."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()

    async def dribble(self, data: bytes) -> None:
        """Byte by byte."""
        await self.send(*(data[i : i + 1] for i in range(len(data))))

    async def gone(self) -> None:
        """Until the client has closed its end, whatever it sends before."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        """RST instead of FIN."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class ScriptedServer:
    """Plays the first script on the first connection, and so on; the last one on all later ones. A context manager."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None, path: Path | None = None) -> None:
        """`path`: listen on a Unix socket there, not on a port."""
        self._path = path
        self._scripts = scripts
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._playing: set[asyncio.Task[None]] = set()
        self.address = ""
        self.connections = 0
        self.requests: list[bytes] = []

    @property
    def url(self) -> str:
        return f"unix://{self._path}" if self._path else f"{'https' if self._tls else 'http'}://{self.address}"

    async def __aenter__(self) -> Self:
        if self._path is not None:
            self._server = await asyncio.start_unix_server(self._accepted, self._path)
            return self
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=self._tls)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._playing:
            task.cancel()
        await asyncio.gather(*self._playing, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._playing.add(task)
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        if self._path is None:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await script(Peer(reader, writer, self.requests))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            self._playing.discard(task)
            writer.transport.abort() if self._tls else writer.close()


def answer(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    """A whole answer with a length; `headers` are lines, each with its CR LF."""
    return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


def chunked(*chunks: bytes, content_type: str = "text/event-stream", end: bool = True) -> list[bytes]:
    """The parts of a chunked answer: its head, each chunk, the end."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    return [head, *(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks), *([b"0\r\n\r\n"] if end else [])]


def answers(*parts: bytes) -> Script:
    """Answers each request of a connection with the same parts, keeping it alive."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*parts)

    return play


def answers_once(*parts: bytes) -> Script:
    """Answers one request and closes."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(*parts)

    return play


async def never_answers(peer: Peer) -> None:
    """Takes the request and keeps the connection, without a word."""
    await peer.request()
    await peer.gone()


async def resets(peer: Peer) -> None:
    """Takes the request and resets the connection."""
    await peer.request()
    peer.reset()


async def closes(peer: Peer) -> None:
    """Takes the request and closes without an answer."""
    await peer.request()
