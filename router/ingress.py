"""The ASGI edge: which path is hot, the body within its limits, the client's hang-up.

Hot paths never enter FastAPI's stack (it costs more than the rest of a request, docs/decisions/0002); all else goes to it. Under our
own server most hot requests do not even come here: `router.hot_cycle` serves them on their connection.
"""

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config.schema import Server
from config.tenants import Scope as KeyScope
from router.asgi_client import AsgiClient
from router.body_budget import BodyBudget
from router.client import JSON_HEADERS, Client, ClientGone
from router.inbound import HOT_PATHS, Handler, Inbound, answer, header_map, read_headers, request_id
from router.openai.errors import (
    ApiError,
    Case,
    body_timeout,
    body_too_large,
    invalid_request,
    method_not_allowed,
)
from router.tenants.gate import Gate

CALLER = "penstock.caller"  # in a scope's state: who asks, for whoever lists what he may see
_SHORT = re.compile(r"^/(chat/completions|completions|embeddings|models(?:/.*)?)$")
_LINGER_S = 5.0  # nginx's lingering_timeout: for a client to finish sending a body that was refused


class Ingress:
    """The outermost ASGI application: hot paths leave here, the rest goes on."""

    def __init__(self, rest: ASGIApp, hot: "HotPath", gate: Gate | None = None) -> None:
        self._rest = rest
        self._hot = hot
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        path = canonical_path(scope["path"])
        if path in HOT_PATHS:
            await self._hot.serve(path, scope, receive, send)
            return
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        rid = request_id(scope["headers"])
        state = dict(scope.get("state") or {})
        if self._gate is not None and (needed := self._gate.scope_of(method, path)) is not None:
            try:
                state[CALLER] = self._gate.admit(scope["headers"], needed, scope.get("client"))
            except ApiError as error:
                await _refuse(send, error, rid)
                return
        routed = {**scope, "path": path, "raw_path": path.encode(), "method": method, "state": state}
        await self._rest(routed, receive, _with_request_id(send, rid))


class HotPath:
    """Serves one endpoint's connection over ASGI: body in, handler, hang-up, errors out."""

    def __init__(
        self, handler: Handler, server: Server, buffer_bytes: int, bodies: BodyBudget, *, gate: Gate | None = None
    ) -> None:
        """`buffer_bytes`: kept for a client that reads slowly, before its engine is asked to wait. `gate`: asks for a key."""
        self._handler = handler
        self._server = server
        self._buffer_bytes = buffer_bytes
        self._bodies = bodies
        self._gate = gate

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """One chat, completion or embedding request."""
        headers = header_map(scope["headers"])
        client = AsgiClient(
            scope,
            send,
            request_id=request_id(scope["headers"]),
            write_stall_s=self._server.write_stall_timeout_s,
            buffer_bytes=self._buffer_bytes,
        )
        held = _Held(self._bodies)
        try:
            await self._answer(path, scope, receive, client, headers, held)
        finally:
            held.let_go()

    async def _answer(
        self,
        path: str,
        scope: Scope,
        receive: Receive,
        client: AsgiClient,
        headers: Mapping[str, str],
        held: "_Held",
    ) -> None:
        caller = None
        try:
            if self._gate is not None and scope["method"] != "OPTIONS":
                caller = self._gate.admit(scope["headers"], KeyScope.INFERENCE, scope.get("client"))
            if scope["method"] != "POST":
                raise method_not_allowed(scope["method"], ("POST",))
            if headers.get("content-encoding", "identity") != "identity":
                raise invalid_request("Send the body uncompressed: content-encoding is not supported.")
            received_s = asyncio.get_running_loop().time()
            body = await self._read_body(headers, receive, held)
        except ApiError as error:
            held.let_go()
            self._handler.refused(path, error, client.request_id)
            await _refuse_body(client, error, receive)
            return
        except ClientGone:
            return
        inbound = Inbound(
            request_id=client.request_id,
            path=path,
            body=body,
            headers=read_headers(scope["headers"]),
            received_s=received_s,
            whole_s=perf_counter(),
            caller=caller,
        )
        await self._serve(inbound, client, receive)

    async def _serve(self, inbound: Inbound, client: AsgiClient, receive: Receive) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(_watch_disconnect(receive, client))
                pump = group.create_task(client.pump())
                await answer(self._handler, inbound, client)
                await pump
                watcher.cancel()
        except* ClientGone:
            pass  # the handler has been cancelled and has counted it

    async def _read_body(self, headers: Mapping[str, str], receive: Receive, held: "_Held") -> bytes:
        limit = self._server.max_body_bytes
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise body_too_large(limit)
        if declared.isdigit() and not self._bodies.announced(int(declared)):
            raise self._bodies.refusal()
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
                    held.take(len(part))
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise body_timeout(self._server.body_timeout_s) from None


class _Held:
    """What one request has of the budget."""

    def __init__(self, bodies: BodyBudget) -> None:
        self._bodies = bodies
        self._size = 0

    def take(self, size: int) -> None:
        if not self._bodies.take(size):
            raise self._bodies.refusal()
        self._size += size

    def let_go(self) -> None:
        self._bodies.give_back(self._size)
        self._size = 0


async def _refuse(send: Send, error: ApiError, request_id: str) -> None:
    """In place of what is behind the gate."""
    body = error.to_body(request_id)
    headers = [*JSON_HEADERS, *error.headers(), (b"content-length", b"%d" % len(body))]
    headers.append((b"x-request-id", request_id.encode("ascii")))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse_body(client: AsgiClient, error: ApiError, receive: Receive) -> None:
    """The answer at once; then read the rest of the body for a while before the connection is closed.

    Closing with unread bytes would be a reset, which takes the answer back from a client that sends all before it reads (httpx).
    """
    body = error.to_body(client.request_id)
    length = (b"content-length", b"%d" % len(body))
    client.start(error.status, [*JSON_HEADERS, *error.headers(), length, (b"connection", b"close")])
    client.write(body)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(client.pump())
            # One that did not send in time is not waited for any longer.
            with suppress(TimeoutError):
                async with asyncio.timeout(0 if error.case is Case.REQUEST_TIMEOUT else _LINGER_S):
                    while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                        pass
            client.end()
    except* ClientGone:
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
