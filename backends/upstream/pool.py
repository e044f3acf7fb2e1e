"""The connections to one replica: kept alive, used last-in first-out, closed before the engine would close them.

Decides which connection a request takes and when one that turned out stale is tried again. How many requests run at once is the
scheduler's business: the pool opens as many connections as it is asked to.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Final
from urllib.parse import urlsplit

from aiohappyeyeballs import start_connection

from backends.alarms import Alarms
from backends.backend import ClosedEarly, ConnectFailed
from backends.upstream.connection import Connection, encode_head
from backends.upstream.response import Patience, Response
from config.schema import Upstream

# uvicorn, and so vLLM, closes an idle connection after 5 s; a request that meets the close costs a retry.
_IDLE_S: Final = 4.0
# RFC 8305: how long an address may keep silent before the next one is tried beside it.
_NEXT_ADDRESS_S: Final = 0.25
_LAST_LOOK_S: Final = 0.01  # any time but none: the sockets' turn comes between


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """Connections now, and since the start."""

    open: int
    idle: int
    opened_total: int
    reused_total: int
    stale_retries_total: int


class Pool:
    """Keep-alive connections to `url` (http, https, or unix:///path). Owns them; `aclose` closes idle and busy ones alike."""

    def __init__(
        self, url: str, *, settings: Upstream, tls: ssl.SSLContext | None = None, idle_s: float = _IDLE_S
    ) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self._path = parts.path if parts.scheme == "unix" else None
        self._address = (parts.hostname or "localhost", parts.port or (443 if secure else 80))
        self._host = parts.netloc.rpartition("@")[2] or "localhost"
        self._tls = (tls or ssl.create_default_context()) if secure else None
        self._settings = settings
        self._idle_s = idle_s
        self._patience = Patience(
            first_byte_timeout_s=settings.first_byte_timeout_s, stall_timeout_s=settings.stall_timeout_s
        )
        self._alarms = Alarms()
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # oldest first: both ends and any middle are reached in O(1)
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False
        self._all_lost = asyncio.Event()
        self._opened_total = 0
        self._reused_total = 0
        self._stale_retries_total = 0

    async def send(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str],
        body: bytes = b"",
        may_go: Callable[[], None] | None = None,
    ) -> Response:
        """The answer, its head received. Cancelling closes the connection, which stops the engine's work.

        `may_go` is called right before anything is written. Raises what that raises; ConnectFailed, FirstByteTimeout, ClosedEarly or StreamCut.
        """
        if self._closed:
            raise ConnectFailed("the gateway is closing")
        parts = (encode_head(method, target, self._host, headers, len(body)), body)
        if may_go is not None:
            may_go()
        connection = self._take_idle()
        if connection is not None:
            self._reused_total += 1
            # The engine may close an idle connection just as we write to it: then it saw nothing, and a new one is due.
            with contextlib.suppress(ClosedEarly):
                return await self._exchange(connection, parts)
            self._stale_retries_total += 1
        connection = await self._connect()
        if may_go is not None:
            try:
                may_go()
            except BaseException:
                connection.shut()
                raise
        return await self._exchange(connection, parts)

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            open=len(self._open),
            idle=len(self._idle),
            opened_total=self._opened_total,
            reused_total=self._reused_total,
            stale_retries_total=self._stale_retries_total,
        )

    async def aclose(self) -> None:
        """Idempotent; returns when every socket is closed. Answers still being read end in StreamCut."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        for connection in list(self._open):
            connection.shut()
        if self._open:
            await self._all_lost.wait()

    async def _exchange(self, connection: Connection, parts: tuple[bytes, bytes]) -> Response:
        response = connection.start(parts, self._patience)
        try:
            await response.wait_head()
        except BaseException:
            response.close()
            raise
        return response

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()

        def protocol() -> Connection:
            return Connection(self, loop=loop, alarms=self._alarms, buffer_bytes=self._settings.buffer_bytes)

        try:
            async with _Patient(loop, self._settings.connect_timeout_s):
                if self._path is not None:
                    _, connection = await loop.create_unix_connection(protocol, self._path)
                else:
                    connection = await self._connect_tcp(loop, protocol)
        except TimeoutError as late:
            raise ConnectFailed(f"no connection within {self._settings.connect_timeout_s:g} s", late=True) from late
        except OSError as error:
            raise ConnectFailed(_reason(error)) from error
        if self._closed:
            connection.shut()
            raise ConnectFailed("the gateway is closing")
        return connection

    async def _connect_tcp(self, loop: asyncio.AbstractEventLoop, protocol: Callable[[], Connection]) -> Connection:
        host, port = self._address
        if _is_literal(host):
            _, connection = await loop.create_connection(protocol, host, port, ssl=self._tls)
        else:
            addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            # By a library because uvloop, unlike asyncio, tries one address after the other.
            wire = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S, loop=loop)
            name = host if self._tls else None
            _, connection = await loop.create_connection(protocol, sock=wire, ssl=self._tls, server_hostname=name)
        return connection

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.usable:
                return connection
        return None

    # Owner, called by the connections.

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)
        self._opened_total += 1

    def released(self, connection: Connection) -> None:
        if self._closed:
            connection.abort()
            return
        self._idle[connection] = None
        if len(self._idle) > self._settings.max_idle_connections:
            self._close_oldest()
        if self._expiry is None:
            self._arm_expiry()

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)
        if self._closed and not self._open:
            self._all_lost.set()

    def _close_oldest(self) -> None:
        oldest = next(iter(self._idle))
        del self._idle[oldest]
        oldest.abort()

    def _arm_expiry(self) -> None:
        oldest = next(iter(self._idle), None)
        if oldest is not None:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_at(oldest.idle_since_s + self._idle_s, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now = asyncio.get_running_loop().time()
        while self._idle and next(iter(self._idle)).idle_since_s + self._idle_s <= now:
            self._close_oldest()
        self._arm_expiry()


class _Patient:
    """As asyncio.timeout, but what has come by then is looked at first.

    A loop that was held up runs its timers before its sockets: without this, an engine is blamed for our own delay.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._timer = self._loop.call_later(self._timeout_s, self._last_look)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _last_look(self) -> None:
        self._timeout.reschedule(self._loop.time() + _LAST_LOOK_S)


def _is_literal(host: str) -> bool:
    """An address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _reason(error: OSError) -> str:
    """Why no connection came about, for people; never an address."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'handshake failed'}"
    if isinstance(error, socket.gaierror):
        return "the engine's host name is not known"
    if error.errno:
        return os.strerror(error.errno).lower()
    return "no address of the engine answers"
