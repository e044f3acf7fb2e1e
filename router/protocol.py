"""uvicorn's HTTP/1.1 protocol with what it lacks: a deadline and a size for the request head, and errors in OpenAI's shape.

Uvicorn has no header timeout, so a client that dribbles a head would hold its socket for ever (slowloris).
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router.openai.errors import ApiError, bad_http, head_timeout, head_too_large

# Docs of OpenAI ask clients to stay below 64 KiB of headers; 100 is what common proxies allow.
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
KEEP_ALIVE_IDLE_S = 75  # longer than the usual 60 s of a load balancer, so that it closes first


def protocol_with(header_timeout_s: float) -> type[HttpToolsProtocol]:
    """The protocol class for `uvicorn.Config(http=...)`."""

    class PenstockProtocol(_HeadGuard):
        _head_timeout_s = header_timeout_s

    return PenstockProtocol


class _HeadGuard(HttpToolsProtocol):
    _head_timeout_s: float
    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"penstock.abort": self.transport.abort}  # type: ignore[dict-item]
        self._head_bytes = 0
        if self._head_timer is None:
            self._arm()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._grow(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._grow(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._disarm()
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(bad_http(msg))

    def _grow(self, size: int) -> None:
        self._head_bytes += size
        if (self._head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS) and not self._refused:
            self._refuse(head_too_large(MAX_HEAD_BYTES, MAX_HEADERS))

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(self._head_timeout_s, self._head_overdue)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        self._refuse(head_timeout(self._head_timeout_s))

    def _refuse(self, error: ApiError) -> None:
        """Answer outside ASGI: the request never became one."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        body = error.to_body()
        head = f"HTTP/1.1 {error.status} {error.phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()
