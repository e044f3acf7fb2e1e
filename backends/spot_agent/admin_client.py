"""Speaks a gateway's admin API about replicas: notice, drain, restore, and how far it is."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx

from backends.spot_agent.notice import Notice

_TIMEOUT_S: Final = 5.0  # a gateway answers in milliseconds; of 30 s of notice, one lost request may cost this much
_SHOWN: Final = 200  # characters of an answer that is no gateway's


class AdminError(Exception):
    """A gateway could not be asked, or refused; the message is one line and names it.

    `status` is the HTTP status of a refusal, None where no gateway answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica as a gateway tells of it."""

    name: str
    lifecycle: str
    detail: str
    requests: int  # of this gateway, under way there
    deadline_unix_s: float | None
    reason: str | None
    released: bool  # nothing of this gateway runs there, and nothing will be sent


class AdminClient:
    """Of one gateway. Asked directly: a proxy would see the key, and a gateway without one answers no proxy."""

    def __init__(self, url: str, key: str | None = None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            follow_redirects=False,
            trust_env=False,  # no proxies
            timeout=None,  # noqa: S113 - _ask bounds the whole question
            transport=transport or httpx.AsyncHTTPTransport(trust_env=True),  # but SSL_CERT_FILE, of a private CA
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def replicas(self) -> list[ReplicaView]:
        """Raises AdminError, as all of these."""
        document = await self._ask("GET", "")
        listed = document.get("data")
        if not isinstance(listed, list):
            raise self._strange(document)
        return [self._view(item) for item in listed]

    async def replica(self, name: str) -> ReplicaView:
        return self._view(await self._ask("GET", f"/{_path(name)}"))

    async def drain(self, name: str, deadline_s: float | None) -> ReplicaView:
        """`deadline_s`: from now; None: its streams may take their time."""
        body = {} if deadline_s is None else {"deadline_s": deadline_s}
        return self._view(await self._ask("POST", f"/{_path(name)}/drain", body))

    async def restore(self, name: str) -> ReplicaView:
        return self._view(await self._ask("POST", f"/{_path(name)}/restore", {}))

    async def notice(self, name: str, notice: Notice) -> ReplicaView:
        body = {
            "provider": notice.provider.value,
            "kind": notice.kind.value,
            "deadline_unix_s": notice.deadline_unix_s,
            "observed_unix_s": notice.observed_unix_s,
            "id": notice.id,
        }
        return self._view(await self._ask("POST", f"/{_path(name)}/notice", body))

    async def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await self._client.request(method, f"/admin/replicas{path}", json=body)
        except TimeoutError:
            raise AdminError(f"{self.url}: no answer within {_TIMEOUT_S:g} s") from None
        except httpx.HTTPError as error:
            raise AdminError(f"{self.url}: {error or type(error).__name__}") from None
        try:
            document = answer.json()
        except (ValueError, RecursionError):
            document = None
        if answer.status_code != HTTPStatus.OK:
            raise AdminError(f"{self.url}: {refusal(answer.status_code, document)}", answer.status_code)
        if not isinstance(document, dict):
            raise self._strange(answer.text)
        return document

    def _view(self, document: object) -> ReplicaView:
        if not isinstance(document, dict):
            raise self._strange(document)
        try:
            deadline_unix_s = document.get("deadline_unix_s")
            reason = document.get("reason")
            return ReplicaView(
                name=str(document["name"]),
                lifecycle=str(document["lifecycle"]),
                detail=str(document.get("detail") or ""),
                requests=int(document["requests"]),
                deadline_unix_s=None if deadline_unix_s is None else float(deadline_unix_s),
                reason=None if reason is None else str(reason),
                released=bool(document["released"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise self._strange(document) from None

    def _strange(self, said: object) -> AdminError:
        shown = repr(said)[:_SHOWN]
        return AdminError(f"{self.url}: what answers there is no gateway of this version: {shown}", HTTPStatus.OK)


def gateway_url(text: str) -> str:
    """`text` without a slash at its end; raises ValueError where it is not the URL of a gateway."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is no URL ({error}); write http://HOST:PORT") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError(f"{text!r} is no URL of a gateway; write http://HOST:PORT")
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError(f"{text!r} says more than where the gateway is; write http://HOST:PORT, and a key with --key")
    return text.rstrip("/")


def _path(name: str) -> str:
    return quote(name, safe="")


def refusal(status: int, document: object) -> str:
    """What a gateway said as it refused, and what to do about it where that is known."""
    error = document.get("error") if isinstance(document, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    said = message if isinstance(message, str) and message else "it does not say why"
    if status == HTTPStatus.UNAUTHORIZED:
        return f"refused the key (401: {said}); --key must be the gateway's server.admin_key"
    return f"refused with {status}: {said}"
