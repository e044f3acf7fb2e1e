"""Asks a cloud's metadata service: directly, boundedly, and following nobody elsewhere."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import httpx

LINK_LOCAL: Final = "http://169.254.169.254"  # AWS and Azure
GCP_HOST: Final = "http://metadata.google.internal"
_MAX_BODY_BYTES: Final = 256 * 1024  # the longest, Azure's events of a whole scale set, is some tens of KiB


class MetadataError(Exception):
    """The service could not be asked, or its answer is none of its own; one line for the log. It may be asked again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Whole, and not a redirect."""

    status: int
    body: str
    headers: Mapping[str, str]  # names in lower case


class MetadataClient:
    """Of one service. Proxies that the environment names are not for link-local addresses, and are ignored."""

    def __init__(self, base_url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._client = httpx.AsyncClient(
            base_url=base_url,
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # noqa: S113 - _ask bounds the whole question
            transport=transport,
        )
        self._base_url = base_url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def get(
        self,
        path: str,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """Raises MetadataError."""
        return await self._ask("GET", path, headers, timeout_s, query=query)

    async def put(self, path: str, *, headers: Mapping[str, str], timeout_s: float) -> Answer:
        """Raises MetadataError."""
        return await self._ask("PUT", path, headers, timeout_s)

    async def post(
        self,
        path: str,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        body: str,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """Raises MetadataError."""
        return await self._ask("POST", path, headers, timeout_s, query=query, body=body)

    async def _ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        timeout_s: float,
        *,
        query: Mapping[str, str] | None = None,
        body: str | None = None,
    ) -> Answer:
        where = f"{method} {self._base_url}{path}"
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream(method, path, headers=dict(headers), params=query, content=body) as response,
            ):
                text = await _bounded(response, where)
        except TimeoutError:
            raise MetadataError(f"{where}: no answer within {timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise MetadataError(f"{where}: {error or type(error).__name__}") from None
        if response.is_redirect:
            raise MetadataError(f"{where}: answered {response.status_code}, a redirect, which is not followed")
        return Answer(response.status_code, text, dict(response.headers))


async def _bounded(response: httpx.Response, where: str) -> str:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise MetadataError(f"{where}: more than {_MAX_BODY_BYTES // 1024} KiB, which no metadata service sends")
    return body.decode(errors="replace")
