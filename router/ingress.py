"""The ASGI edge: which path is hot, the body within its limits, the client's hang-up, errors as OpenAI objects.

Hot paths never enter FastAPI's stack (it costs more than the rest of a request, docs/decisions/0002); all else goes to it.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config.schema import Server
from router.client import JSON_HEADERS, Client, ClientGone
from router.openai.errors import (
    ApiError,
    Case,
    body_timeout,
    body_too_large,
    internal_error,
    invalid_request,
    method_not_allowed,
    stream_error_event,
)

log = logging.getLogger("penstock")

HOT_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
_SHORT = re.compile(r"^/(chat/completions|completions|embeddings|models(?:/.*)?)$")
_LINGER_S = 5.0  # nginx's lingering_timeout: for a client to finish sending a body that was refused
_VISIBLE_ASCII = re.compile(rb"^[\x21-\x7e]{1,128}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """One request as it came in; `headers` has lower-case names, the last of each counts."""

    request_id: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    received_s: float
    spawn: Callable[[Callable[[], Awaitable[None]]], None]  # run beside this request, end with it


class Handler(Protocol):
    """What serves a hot path; raises ApiError as long as nothing was sent."""

    async def __call__(self, inbound: Inbound, client: Client) -> None: ...

    def refused(self, path: str, error: ApiError) -> None:
        """A request ended before the handler saw it."""


class Ingress:
    """The outermost ASGI application: hot paths leave here, the rest goes on."""

    def __init__(self, rest: ASGIApp, hot: "HotPath") -> None:
        self._rest = rest
        self._hot = hot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        path = canonical_path(scope["path"])
        if path in HOT_PATHS:
            await self._hot.serve(path, scope, receive, send)
            return
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        named = _with_request_id(send, request_id(scope["headers"]))
        await self._rest({**scope, "path": path, "raw_path": path.encode(), "method": method}, receive, named)


class HotPath:
    """Serves one endpoint's connection: body in, handler, hang-up, errors out."""

    def __init__(self, handler: Handler, server: Server) -> None:
        self._handler = handler
        self._server = server

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """One chat, completion or embedding request."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        client = Client(
            scope, send, request_id=request_id(scope["headers"]), write_stall_s=self._server.write_stall_timeout_s
        )
        try:
            if scope["method"] != "POST":
                raise method_not_allowed(scope["method"], ("POST",))
            if headers.get("content-encoding", "identity") != "identity":
                raise invalid_request("Send the body uncompressed: content-encoding is not supported.")
            received_s = asyncio.get_running_loop().time()
            body = await self._read_body(headers, receive)
        except ApiError as error:
            self._handler.refused(path, error)
            await _refuse_body(client, error, receive)
            return
        except ClientGone:
            return
        await self._serve(path, headers, body, received_s, client, receive)

    async def _serve(
        self, path: str, headers: Mapping[str, str], body: bytes, received_s: float, client: Client, receive: Receive
    ) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                extra: set[asyncio.Task[None]] = set()

                def spawn(work: Callable[[], Awaitable[None]]) -> None:
                    task = group.create_task(_run(work))
                    extra.add(task)
                    task.add_done_callback(extra.discard)

                watcher = group.create_task(_watch_disconnect(receive, client))
                inbound = Inbound(
                    request_id=client.request_id,
                    path=path,
                    body=body,
                    headers=headers,
                    received_s=received_s,
                    spawn=spawn,
                )
                await self._handle(inbound, client)
                watcher.cancel()
                for task in tuple(extra):
                    task.cancel()
        except* ClientGone:
            pass  # the handler has been cancelled and has counted it

    async def _handle(self, inbound: Inbound, client: Client) -> None:
        try:
            await self._handler(inbound, client)
        except ApiError as error:
            assert not client.started, "the handler says it in the stream itself"
            await client.respond(error.status, error.to_body(client.request_id), [*JSON_HEADERS, *error.headers()])
        except ClientGone:
            raise
        except Exception:  # the ASGI boundary: a bug of ours must look like an error, not like an end
            log.exception("request %s failed unexpectedly", client.request_id)
            await _own_up(client)

    async def _read_body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        limit = self._server.max_body_bytes
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise body_too_large(limit)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._server.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    part: bytes = message.get("body", b"")
                    size += len(part)
                    if size > limit:
                        raise body_too_large(limit)
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise body_timeout(self._server.body_timeout_s) from None


async def _refuse_body(client: Client, error: ApiError, receive: Receive) -> None:
    """The answer at once; then read the rest of the body for a while before the connection is closed.

    Closing with unread bytes would be a reset, which takes the answer back from a client that sends all before it reads (httpx).
    """
    body = error.to_body(client.request_id)
    length = (b"content-length", b"%d" % len(body))
    try:
        await client.start(error.status, [*JSON_HEADERS, *error.headers(), length, (b"connection", b"close")])
        await client.write(body)
        # One that did not send in time is not waited for any longer.
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if error.case is Case.REQUEST_TIMEOUT else _LINGER_S):
                while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                    pass
        await client.end()
    except ClientGone:
        pass


def _with_request_id(send: Send, request_id: str) -> Send:
    """Every answer carries the id, also those of FastAPI's routes; an answer that has one already keeps it."""

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start" and not any(
            name == b"x-request-id" for name, _ in message["headers"]
        ):
            message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode("ascii"))]}
        await send(message)

    return named


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def _watch_disconnect(receive: Receive, client: Client) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if not client.ended:  # a server also says disconnect once the response is complete
        raise ClientGone


def canonical_path(path: str) -> str:
    """`/v1//models/` and `/models` mean `/v1/models`: clients join base URLs in every way (open-webui#12117)."""
    if "//" in path:
        path = re.sub(r"/{2,}", "/", path)
    if len(path) > 1 and path.endswith("/"):
        path = path[:-1]
    return f"/v1{path}" if _SHORT.match(path) else path


def request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The client's own id where it is short visible ASCII, else a fresh one."""
    for wanted in (b"x-request-id", b"x-client-request-id"):
        for name, value in headers:
            if name == wanted and _VISIBLE_ASCII.match(value):
                return value.decode("ascii")
    return f"req-{secrets.token_hex(12)}"


async def _own_up(client: Client) -> None:
    error = internal_error()
    if not client.started:
        await client.respond(error.status, error.to_body(client.request_id))
    elif not client.ended:
        await client.end(stream_error_event(error, client.request_id))
