"""Follows a gateway's `GET /admin/live` from outside: the whole document after each event, and again after the gateway was away.

Decides when a stream counts as lost and when it is worth another try; shows nothing.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import httpx
import msgspec

from backends.spot_agent.admin_client import AdminError, refusal
from router.board.changes import applied
from router.board.document import VERSION, Live

_TIMEOUT_S: Final = 5.0  # to connect, and for a whole document
_SILENCE_S: Final = 20.0  # events come every second, comments at least every 15
_PAUSE_S: Final = 1.0  # between tries
_MOST_BYTES: Final = 64 * 2**20  # of one event: a thousand replicas have half a megabyte


@dataclass(frozen=True, slots=True)
class Away:
    """The gateway does not answer; it is asked again."""

    why: str


class Watching:
    """Of one gateway; asked directly, as by the other commands."""

    def __init__(self, url: str, key: str | None = None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._transport = transport

    async def document(self) -> bytes:
        """The whole, as the gateway wrote it; raises AdminError."""
        try:
            async with self._asking("/admin/fleet", _TIMEOUT_S) as answer:
                return await answer.aread()
        except httpx.HTTPError as error:
            raise self._lost(error) from None

    async def follow(self) -> AsyncIterator[Live | Away]:
        """For ever. Raises AdminError where the first try fails, or the gateway refuses: then another would, too."""
        known: Live | None = None
        while True:
            try:
                async with self._asking("/admin/live", _SILENCE_S) as answer:
                    stream_of: Live | None = None
                    async for data in _events(answer.aiter_bytes()):
                        known = stream_of = self.read(data, stream_of)
                        yield known
                away = Away("the stream has ended")
            except httpx.HTTPError as error:
                if known is None:
                    raise self._lost(error) from None
                away = Away(_said(error))
            except AdminError as error:
                if known is None or error.status is None or error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
                away = Away(str(error))
            yield away
            await asyncio.sleep(_PAUSE_S)

    def read(self, data: bytes, known: Live | None = None) -> Live:
        """The whole document after this one or this event; raises AdminError for what this version does not know."""
        try:
            event = msgspec.json.decode(data, type=Live)
            if event.version == VERSION:
                return applied(known, event)
        except (msgspec.DecodeError, ValueError):
            pass
        raise AdminError(
            f"{self.url}: what answers there is no gateway of this version; use the penstock that it came with", 200
        )

    @asynccontextmanager
    async def _asking(self, path: str, silence_s: float) -> AsyncIterator[httpx.Response]:
        """Raises httpx.HTTPError where nobody answers, AdminError where somebody refuses."""
        timeout = httpx.Timeout(_TIMEOUT_S, read=silence_s)
        async with (
            httpx.AsyncClient(
                headers=self._headers,
                follow_redirects=False,
                trust_env=False,  # no proxies
                timeout=timeout,
                transport=self._transport or httpx.AsyncHTTPTransport(trust_env=True),  # but SSL_CERT_FILE
            ) as client,
            client.stream("GET", self.url + path) as answer,
        ):
            if answer.status_code != HTTPStatus.OK:
                raise AdminError(f"{self.url}: {await _refusal(answer)}", answer.status_code)
            yield answer

    def _lost(self, error: httpx.HTTPError) -> AdminError:
        return AdminError(f"{self.url}: {_said(error)}")


def _said(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return str(error) or type(error).__name__


async def _refusal(answer: httpx.Response) -> str:
    try:
        document = msgspec.json.decode(await answer.aread())
    except msgspec.DecodeError:
        document = None
    if answer.status_code == HTTPStatus.NOT_FOUND and not isinstance(document, dict):
        return "what answers there is no gateway of this version: it knows no /admin/live"
    return refusal(answer.status_code, document)


async def _events(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each; comments and other fields are passed over."""
    kept = bytearray()
    async for part in parts:
        kept += part
        if b"\n\n" not in part and b"\n\n" not in kept[-len(part) - 1 :]:
            if len(kept) > _MOST_BYTES:
                raise httpx.ReadError("an event without an end")
            continue
        *whole, rest = bytes(kept).split(b"\n\n")
        kept = bytearray(rest)
        for text in whole:
            for line in text.split(b"\n"):
                if line.startswith(b"data: "):
                    yield line[6:]
