"""An upstream connection on a transport that goes nowhere: bytes in by hand, and a log of what its owner was told."""

import asyncio
from collections.abc import Iterable

from backends.alarms import Alarms
from backends.upstream.connection import Connection
from backends.upstream.response import Patience, Response

PATIENCE = Patience(first_byte_timeout_s=300, stall_timeout_s=60)
REQUEST = (b"POST / HTTP/1.1\r\n\r\n", b"")


class RecordingTransport(asyncio.Transport):
    """Sends nowhere; remembers what it was told."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self.sent = b""
        self.unsent_bytes = 0
        self.reading = True
        self.aborted = False

    def writelines(self, parts: Iterable[bytes]) -> None:
        self.sent += b"".join(parts)

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)

    def lose(self, error: Exception | None = None) -> None:
        """The other side is gone."""
        self.aborted = True
        self._connection.connection_lost(error)


class Wired:
    """A connection on such a transport, and what its owner was told."""

    def __init__(self, *, buffer_bytes: int = 1000) -> None:
        self.log: list[str] = []
        self.connection = Connection(self, loop=asyncio.get_running_loop(), alarms=Alarms(), buffer_bytes=buffer_bytes)
        self.transport = RecordingTransport(self.connection)
        self.connection.connection_made(self.transport)

    def opened(self, connection: Connection) -> None:
        self.log.append("opened")

    def released(self, connection: Connection) -> None:
        self.log.append("released")

    def lost(self, connection: Connection) -> None:
        self.log.append("lost")

    def start(self) -> Response:
        return self.connection.start(REQUEST, PATIENCE)

    def receive(self, *parts: bytes) -> None:
        for part in parts:
            self.connection.data_received(part)


async def rest_of(response: Response) -> bytes:
    body = b""
    while data := await response.read():
        body += data
    return body
