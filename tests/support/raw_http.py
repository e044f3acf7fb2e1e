"""An HTTP/1.1 client made of bytes: what libraries refuse to send can be sent, and the connection's end can be seen."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.patience import PATIENCE_S

# Never reached where things work; a hang must fail the test that hangs, not the whole run.
_LINGER_ZERO = struct.pack("ii", 1, 0)  # close sends RST


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, its shape checked."""
        error: dict[str, Any] = self.json()["error"]
        assert {"message", "type", "param", "code"} == error.keys()
        assert self.headers["content-type"] == "application/json"
        return error

    def events(self) -> list[Any]:
        """The data of an SSE body's events, decoded; `[DONE]` as it is."""
        data = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [item if item == "[DONE]" else json.loads(item) for item in data]


def head(method: str, path: str, *headers: str, version: str = "1.1") -> bytes:
    """A request's head; `headers` are whole lines."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "host: localhost", *headers, "", ""]).encode()


def post(path: str, body: object, *headers: str, version: str = "1.1") -> bytes:
    """A whole POST; what is not bytes is sent as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("POST", path, f"content-length: {len(raw)}", *headers, version=version) + raw


def get(path: str, *headers: str) -> bytes:
    return head("GET", path, *headers)


class RawClient:
    """One connection; every wait is bounded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, url: str, *, receive_buffer_bytes: int | None = None) -> Self:
        """`receive_buffer_bytes`: of the socket and of the reader, for a client that will not read."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.setblocking(False)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=receive_buffer_bytes or 2**20)
        return cls(reader, writer)

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self._writer.write(part)
            async with asyncio.timeout(PATIENCE_S):
                await self._writer.drain()

    async def send_until_refused(self, part: bytes, times: int) -> None:
        """`part` again and again; the other side may stop listening at any moment."""
        try:
            for _ in range(times):
                await self.send(part)
        except ConnectionError:
            pass

    async def head(self) -> tuple[int, dict[str, str]]:
        """A response's status and headers."""
        async with asyncio.timeout(PATIENCE_S):
            raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        return int(first.split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines)

    async def chunk(self) -> bytes:
        """One chunk of a chunked body; empty: the last one."""
        async with asyncio.timeout(PATIENCE_S):
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            return (await self._reader.readexactly(size + 2))[:-2]

    async def exactly(self, size: int) -> bytes:
        """So many bytes of a body."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.readexactly(size)

    async def answer(self, *, method: str = "POST") -> Answer:
        """One whole response, however it is framed."""
        status, headers = await self.head()
        if method == "HEAD":
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = await self.rest_of_chunks()
        elif "content-length" in headers:
            body = await self.exactly(int(headers["content-length"]))
        else:
            body = await self.until_closed()
        return Answer(status=status, headers=headers, body=body)

    async def rest_of_chunks(self) -> bytes:
        """To the end of a chunked body, whatever was read of it before."""
        return b"".join([chunk async for chunk in self._chunks()])

    async def ask(self, request: bytes) -> Answer:
        await self.send(request)
        return await self.answer(method=request.split(b" ", 1)[0].decode())

    async def until_closed(self) -> bytes:
        """Everything until the other side closes; a reset counts as closing."""
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(PATIENCE_S):
                while part := await self._reader.read(65536):
                    parts.append(part)
        except ConnectionError:
            pass
        return b"".join(parts)

    def end_writing(self) -> None:
        """Half-close: nothing more will be sent, answers are still wanted."""
        self._writer.write_eof()

    def reset(self) -> None:
        """RST instead of FIN."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while part := await self.chunk():
            yield part


@asynccontextmanager
async def connected(url: str, *, receive_buffer_bytes: int | None = None) -> AsyncIterator[RawClient]:
    """A connection that is closed at the end of the block."""
    client = await RawClient.connect(url, receive_buffer_bytes=receive_buffer_bytes)
    try:
        yield client
    finally:
        await client.close()


async def ask(url: str, request: bytes) -> Answer:
    """One request on a connection of its own."""
    async with connected(url) as client:
        return await client.ask(request)
