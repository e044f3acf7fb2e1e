"""The caller's side of one exchange: start, write, end, over ASGI, with a bound on how long a client may refuse to read.

Decides when a client counts as gone; knows nothing of engines or of what the bytes mean.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from starlette.types import Scope, Send

Headers = Sequence[tuple[bytes, bytes]]

# Proxies must neither cache, compress nor buffer a token stream (docs/api.md, "Streaming").
SSE_HEADERS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
JSON_HEADERS: Headers = ((b"content-type", b"application/json"),)


class ClientGone(Exception):
    """The client hung up, or stopped reading for longer than it may; nothing more can be said to it."""


class Client:
    """One exchange. Bytes go out in the order of the calls; a write waits while the client's socket is full."""

    def __init__(self, scope: Scope, send: Send, *, request_id: str, write_stall_s: float) -> None:
        self.request_id = request_id
        self.started = False
        self.ended = False
        self._send = send
        self._write_stall_s = write_stall_s
        self._abort: Callable[[], None] | None = scope.get("extensions", {}).get("penstock.abort")

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        assert not self.started, "a response starts once"
        self.started = True
        own = (b"x-request-id", self.request_id.encode("ascii"))
        await self._emit({"type": "http.response.start", "status": status, "headers": [own, *headers]})

    async def write(self, data: bytes) -> None:
        if data and not self.ended:
            await self._emit({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        if not self.ended:
            self.ended = True
            await self._emit({"type": "http.response.body", "body": data, "more_body": False})

    async def respond(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = JSON_HEADERS) -> None:
        """A whole answer at once."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.end(body)

    async def _emit(self, message: dict[str, object]) -> None:
        try:
            async with asyncio.timeout(self._write_stall_s):
                await self._send(message)
        except TimeoutError:
            # The server would wait for ever to flush what the client does not read.
            if self._abort is not None:
                self._abort()
            raise ClientGone from None
        except OSError:
            raise ClientGone from None
