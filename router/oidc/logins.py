"""The issuer's keys, as this gateway knows them: read in the background, kept when they cannot be read, looked up by requests.

Decides when the issuer is asked. A token whose key is unknown - it may have been changed a moment ago - has them read once more, for all
who wait for that, and not again for a while: whoever sends such tokens cannot make this gateway ask without end.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from math import inf
from typing import Final

import httpx
import msgspec

from config.oidc import AdminOidc
from router.oidc.tokens import BadToken, Bearer, IssuerKey, Why, judged, keys_of, looks_like_one

log = logging.getLogger("penstock.oidc")

_MAX_DOCUMENT_BYTES: Final = 512 * 1024
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0  # after a failure; doubles
_LEAST_S: Final = 30.0  # between two readings for unknown keys
_DISCOVERY: Final = "/.well-known/openid-configuration"


class Unavailable(Exception):
    """Nobody can say whether the token is good."""


class Logins:
    """`run` until cancelled; `bearer` for each request. `client`: makes what asks the issuer."""

    def __init__(self, oidc: AdminOidc, client: Callable[[], httpx.AsyncClient] | None = None) -> None:
        self._oidc = oidc
        self._new_client = client or _client
        self._keys: tuple[IssuerKey, ...] = ()
        self._failed: str | None = "not read yet"
        self._asked = asyncio.Event()
        self._read = asyncio.Condition()
        self._begun, self._done = 0, 0  # readings
        self._last_s = -inf  # that a token asked for one

    async def bearer(self, token: str) -> Bearer | None:
        """Whose it is; None: it is no token of this kind. Raises BadToken, Unavailable."""
        if not looks_like_one(token):
            return None
        for read in (self._read_under_way, self._read_once):
            try:
                return self._judged(token)
            except BadToken as error:
                if error.why is not Why.UNKNOWN_KEY:
                    raise
            await read()
        return self._judged(token)

    def _judged(self, token: str) -> Bearer:
        try:
            return judged(token, self._keys, self._oidc)
        except BadToken as error:
            if error.why is Why.UNKNOWN_KEY and self._failed is not None:
                raise Unavailable from None
            raise

    async def _read_under_way(self) -> None:
        """Returns when it is done. The issuer has a key before it signs with it: what is read now may have it already."""
        if self._done < self._begun:
            await self._until(self._begun)

    async def _read_once(self) -> None:
        """Once more, unless that was asked for a moment ago."""
        now, before = asyncio.get_running_loop().time(), self._begun
        if not self._asked.is_set():
            if now - self._last_s < _LEAST_S:
                return
            self._last_s = now
            self._asked.set()
        await self._until(before + 1)

    async def _until(self, reading: int) -> None:
        """It is done, or takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(3 * self._oidc.timeout_s), self._read:
                await self._read.wait_for(lambda: self._done >= reading)

    async def run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        async with self._new_client() as client:
            while True:
                self._begun += 1
                self._asked.clear()
                failed = await self._take(client)
                self._say(failed)
                async with self._read:
                    self._done = self._begun
                    self._read.notify_all()
                due_s = self._oidc.refresh_s if failed is None else pause_s
                pause_s = _FIRST_PAUSE_S if failed is None else min(2 * pause_s, _LONGEST_PAUSE_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(due_s):
                        await self._asked.wait()

    async def _take(self, client: httpx.AsyncClient) -> str | None:
        """Why they could not be read; those that there were stay then."""
        try:
            self._keys = keys_of(await self._document(client))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TimeoutError) as error:
            return str(error) or type(error).__name__
        except Exception as error:  # whatever the issuer says, lists in lists in lists: it must not end the gateway
            log.debug("the issuer's keys: what it says cannot be read", exc_info=True)
            return f"it says what cannot be read: {type(error).__name__}"
        return None

    def _say(self, failed: str | None) -> None:
        """Once at each change."""
        before, self._failed = self._failed, failed
        if failed is None and before is not None:
            log.info("keys of %s read: %d", self._oidc.issuer, len(self._keys))
        elif failed is not None and failed != before:
            left = "those that were read stay" if self._keys else "until then nobody is let in by a token"
            log.error("keys of %s cannot be read (%s); %s", self._oidc.issuer, failed, left)

    async def _document(self, client: httpx.AsyncClient) -> object:
        oidc = self._oidc
        url = oidc.jwks_url
        if url is None:
            about = await self._get(client, str(oidc.issuer).rstrip("/") + _DISCOVERY)
            if not isinstance(about, dict) or about.get("issuer") != oidc.issuer:
                raise ValueError(f"{_DISCOVERY} is not of that issuer, to the letter")
            url = about.get("jwks_uri")
            if not isinstance(url, str) or not _may_be_asked(url, oidc):
                raise ValueError(f"{_DISCOVERY} names no jwks_uri that can be trusted")
        return await self._get(client, url)

    async def _get(self, client: httpx.AsyncClient, url: str) -> object:
        """JSON; raises httpx.HTTPError, ValueError."""
        body = bytearray()
        async with asyncio.timeout(self._oidc.timeout_s), client.stream("GET", url) as answer:
            if answer.status_code != httpx.codes.OK:
                raise ValueError(f"{url} answers {answer.status_code}")
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > _MAX_DOCUMENT_BYTES:
                    raise ValueError(f"{url} says more than {_MAX_DOCUMENT_BYTES} bytes")
        return msgspec.json.decode(bytes(body))


@asynccontextmanager
async def watched(logins: Logins | None) -> AsyncIterator[None]:
    """Its keys are read as long as the block lasts."""
    async with asyncio.TaskGroup() as tasks:
        reading = None if logins is None else tasks.create_task(logins.run(), name="logins")
        yield
        if reading is not None:
            reading.cancel()


def _may_be_asked(url: str, oidc: AdminOidc) -> bool:
    """As if it were configured."""
    try:
        AdminOidc.model_validate({**oidc.model_dump(), "jwks_url": url})
    except ValueError:
        return False
    return True


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(follow_redirects=False, trust_env=False)
