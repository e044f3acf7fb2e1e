"""A client behind any ASGI server: what is written is kept, and a task of the request hands it on as fast as the server takes it.

Decides when a client that does not read counts as gone.
"""

import asyncio

from starlette.types import Message, Scope, Send

from router.client import Client, ClientGone, Headers


class AsgiClient(Client):
    """`pump` must run beside whoever writes; it returns when the last byte is with the server."""

    def __init__(self, scope: Scope, send: Send, *, request_id: str, write_stall_s: float, buffer_bytes: int) -> None:
        super().__init__(request_id)
        self._send = send
        self._write_stall_s = write_stall_s
        self._buffer_bytes = buffer_bytes
        self._abort = scope.get("extensions", {}).get("penstock.abort")
        self._start: Message | None = None
        self._parts: list[bytes] = []
        self._kept_bytes = 0
        self._wake = asyncio.Event()

    async def pump(self) -> None:
        """Raises ClientGone where the client refuses to read for too long."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._start is not None:
                start, self._start = self._start, None
                await self._emit(start)
            ended = self.ended  # as far as `data` reaches
            data = b"".join(self._parts)
            self._parts.clear()
            self._kept_bytes = 0
            if data or ended:
                await self._emit({"type": "http.response.body", "body": data, "more_body": not ended})
            if ended:
                return
            if self.full and self._kept_bytes <= self._buffer_bytes:
                self._room()

    def _head(self, status: int, headers: Headers) -> None:
        self._start = {"type": "http.response.start", "status": status, "headers": headers}
        self._wake.set()

    def _body(self, data: bytes) -> None:
        self._parts.append(data)
        self._kept_bytes += len(data)
        self.full = self.full or self._kept_bytes > self._buffer_bytes
        self._wake.set()

    def _last(self, data: bytes) -> None:
        self._parts.append(data)
        self._wake.set()

    async def _emit(self, message: Message) -> None:
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
