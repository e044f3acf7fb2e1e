"""`penstock engine`: the simulated engine behind vLLM's HTTP API, so that a gateway can be tried against real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from backends.backend import StreamCut
from backends.simulated.answers import DONE
from backends.simulated.api import CHAT_PATH, COMPLETIONS_PATH, EMBEDDINGS_PATH, JSON, SSE, EngineApi, Reply, refusal
from backends.simulated.bodies import ChatBody, prompt_ids, render_chat
from backends.simulated.errors import Refused, bad_request
from backends.simulated.exposition import CONTENT_TYPE, exposition
from backends.simulated.options import EngineOptions
from backends.simulated.tokens import encode
from config.schema import ModelKind

VERSION = "0.32.0+penstock.simulated"  # the vLLM whose wire shapes this engine speaks

_MAX_BODY_BYTES = 64 * 2**20  # a full context of token ids takes a few hundred KiB; a gateway's own limit is lower
_GRACE_S = 2  # for clients to read the end of streams that were cut


def create_engine_app(options: EngineOptions) -> ASGIApp:
    """The ASGI app; its one model answers chat, plain completions and embeddings."""
    return _app(_api(options))


def serve_engine(options: EngineOptions, host: str, port: int) -> None:
    """Serve until told to stop; raises `SystemExit` where the address cannot be had."""
    with suppress(KeyboardInterrupt):  # uvicorn raises it anew once it has shut down
        engine_server(options, host, port).run()


def engine_server(options: EngineOptions, host: str, port: int) -> uvicorn.Server:
    """A server that is not running yet; port 0 lets the system choose."""
    api = _api(options)
    config = uvicorn.Config(_app(api), host=host, port=port, log_level="warning", timeout_graceful_shutdown=_GRACE_S)
    return _Server(config, api)


class _Server(uvicorn.Server):
    """Told to stop, it ends running streams with vLLM's engine-failure event instead of waiting for them."""

    def __init__(self, config: uvicorn.Config, api: EngineApi) -> None:
        super().__init__(config)
        self._api = api

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._api.runner.aclose()
        await super().shutdown(sockets)


def _api(options: EngineOptions) -> EngineApi:
    return EngineApi(options, {options.model: frozenset(ModelKind)})


def _app(api: EngineApi) -> Starlette:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await api.runner.aclose()

    endpoints = _Endpoints(api)
    return Starlette(
        lifespan=lifespan,
        routes=[
            *(
                Route(path, endpoints.answer, methods=["POST"])
                for path in (CHAT_PATH, COMPLETIONS_PATH, EMBEDDINGS_PATH)
            ),
            Route("/health", endpoints.health),
            Route("/version", endpoints.version),
            Route("/v1/models", endpoints.models),
            Route("/metrics", endpoints.metrics),
            Route("/load", endpoints.load),
            Route("/tokenize", endpoints.tokenize, methods=["POST"]),
            Route("/sleep", endpoints.sleep, methods=["POST"]),
            Route("/wake_up", endpoints.wake_up, methods=["POST"]),
            Route("/is_sleeping", endpoints.is_sleeping),
        ],
    )


class _Endpoints:
    """HTTP in, `EngineApi` out."""

    def __init__(self, api: EngineApi) -> None:
        self._api = api
        self._answering = 0

    async def answer(self, request: Request) -> Response:
        request_id = request.headers.get("x-request-id") or uuid4().hex[:16]
        try:
            reply = self._api.respond(request.scope["path"], await _fields(request), request_id)
        except Refused as refused:
            reply = refusal(refused)
        return _EngineResponse(reply, request_id)

    async def health(self, _request: Request) -> Response:
        return Response(status_code=200)  # asleep, too, as vLLM's

    async def version(self, _request: Request) -> Response:
        return _json({"version": VERSION})

    async def models(self, _request: Request) -> Response:
        options = self._api.options
        created = int(self._api.wall_clock())
        rows = [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "penstock",
                "root": name,
                "parent": None,
                "max_model_len": options.context_tokens,
            }
            for name in self._api.models
        ]
        return _json({"object": "list", "data": rows})

    async def metrics(self, _request: Request) -> Response:
        text = exposition(self._api.runner.engine, self._api.options)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def load(self, _request: Request) -> Response:
        figures = self._api.runner.engine.statistics()
        return _json({"server_load": figures.running + figures.waiting})

    async def tokenize(self, request: Request) -> Response:
        try:
            fields = await _fields(request)
            if "messages" in fields:
                ids = encode(render_chat(msgspec.convert(fields, ChatBody)))
            else:
                prompt = fields.get("prompt")
                if not isinstance(prompt, str):
                    raise bad_request("prompt must be a text", "prompt")
                ids = prompt_ids(prompt)
        except (Refused, msgspec.ValidationError) as error:
            return _EngineResponse(refusal(error if isinstance(error, Refused) else bad_request(str(error))), "")
        document = {
            "count": len(ids),
            "max_model_len": self._api.options.context_tokens,
            "tokens": ids,
            "token_strs": None,
        }
        return _json(document)

    async def sleep(self, _request: Request) -> Response:
        self._api.runner.sleep()
        return Response(status_code=200)

    async def wake_up(self, _request: Request) -> Response:
        self._api.runner.wake()
        return Response(status_code=200)

    async def is_sleeping(self, _request: Request) -> Response:
        return _json({"is_sleeping": self._api.runner.engine.asleep})


class _EngineResponse(Response):
    """Sends a reply piece by piece; the client's going away ends its work, in streams and before a whole answer alike."""

    def __init__(self, reply: Reply, request_id: str) -> None:
        super().__init__(status_code=reply.status, headers={"content-type": reply.content_type})
        del self.headers["content-length"]
        if request_id:
            self.headers["x-request-id"] = request_id
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        try:
            async with asyncio.TaskGroup() as group:
                gone = group.create_task(_until_gone(receive))
                sent = group.create_task(self._send(send))
                gone.add_done_callback(lambda _: sent.cancel())
                sent.add_done_callback(lambda _: gone.cancel())
        finally:
            await self._reply.aclose()

    async def _send(self, send: Send) -> None:
        started = self._reply.content_type == SSE  # as vLLM: a stream's head is sent before its first token
        if started:
            await self._start(send)
        try:
            async for piece in self._reply.body():
                if not started:
                    await self._start(send)
                    started = True
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except StreamCut:
            error = Refused(500, "InternalServerError", "EngineCore encountered an issue.").body()
            if started:  # the status is out: vLLM says it in the stream
                error = b"data: " + error + b"\n\n" + DONE
            else:
                self.status_code = 500
                await self._start(send)
            await send({"type": "http.response.body", "body": error, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _fields(request: Request) -> Mapping[str, object]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise Refused(413, "RequestEntityTooLarge", f"the body has more than {_MAX_BODY_BYTES} bytes")
    try:
        fields = msgspec.json.decode(bytes(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise bad_request("the body is not a JSON object")
    return fields


def _json(document: object) -> Response:
    return Response(msgspec.json.encode(document), headers={"content-type": JSON})
