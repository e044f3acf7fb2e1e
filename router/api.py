"""The FastAPI application: the API surface that is not hot - models, health, metrics, OpenAPI - and the error handlers.

The three hot endpoints are routes here too: they document themselves in OpenAPI, and take the connection over when no ingress
stands in front.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.telemetry import TelemetryConfig
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from router.admin import add_admin
from router.board.page import add_page
from router.gateway import Gateway
from router.health import readiness
from router.inbound import request_id
from router.ingress import CALLER, HotPath
from router.oidc.logins import Logins, watched
from router.openai.errors import ApiError, from_http_status, internal_error, model_not_found
from router.openai.models import ModelEntry, model_document, model_list, near
from router.openai.shapes import (
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    EmbeddingList,
    EmbeddingRequest,
    ErrorResponse,
    Model,
    ModelList,
)
from router.scrapes import add_scrapes
from router.tenants.policy import may_use

log = logging.getLogger("penstock")

DESCRIPTION = "An OpenAI-compatible gateway that places requests into the running batches of vLLM and Triton replicas."


def build_api(gateway: Gateway, hot: HotPath, version: str) -> FastAPI:
    """FastAPI over a gateway that starts and stops with the application's lifespan."""
    oidc = gateway.config.server.admin_oidc
    logins = Logins(oidc) if oidc.enabled else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.running(), watched(logins):
            yield

    # Traces are `router.tracing`'s; FastAPI would read the environment for its own.
    untold: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
    api = FastAPI(
        title="Penstock",
        version=version,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=untold,
    )
    _handle_errors(api)
    _add_models(api, gateway)
    _add_health(api, gateway)
    add_scrapes(api, gateway)
    add_admin(api, gateway, logins)
    add_page(api, gateway)
    _add_hot_paths(api, hot)
    return api


def entries(gateway: Gateway) -> list[ModelEntry]:
    """Every model known, served now or not, from memory: answered at once even when all replicas are down."""
    found: dict[str, ModelEntry] = {}
    for state in gateway.scheduler.states(0.0):
        for name, kind in state.profile.models.items():
            before = found.get(name)
            length = state.profile.max_model_len
            known = [n for n in (length, before.max_model_len if before else None) if n is not None]
            found[name] = ModelEntry(
                id=name,
                kind=kind.value,
                max_model_len=max(known, default=None),
                replicas=(before.replicas if before else 0) + 1,
            )
    return sorted(found.values(), key=lambda entry: entry.id)


def _add_models(api: FastAPI, gateway: Gateway) -> None:
    def _seen(request: Request) -> list[ModelEntry]:
        caller = request.scope.get("state", {}).get(CALLER)
        found = entries(gateway)
        return found if caller is None else [entry for entry in found if may_use(caller.policy, entry.id)]

    @api.get("/v1/models", response_model=None, responses={200: {"model": ModelList}}, tags=["models"])
    async def list_models(request: Request) -> Response:
        """The models that replicas serve, as far as the key has access to them."""
        return JSONResponse(model_list(_seen(request), created=gateway.started_unix_s))

    @api.get(
        "/v1/models/{model:path}",
        response_model=None,
        responses={200: {"model": Model}, 404: {"model": ErrorResponse}},
        tags=["models"],
    )
    async def get_model(model: str, request: Request) -> Response:
        """One model; ids may contain slashes."""
        known = {entry.id: entry for entry in _seen(request)}
        if model not in known:
            raise model_not_found(model, near(model, known))
        return JSONResponse(model_document(known[model], created=gateway.started_unix_s))


def _add_health(api: FastAPI, gateway: Gateway) -> None:
    @api.get("/livez", tags=["health"])
    @api.get("/healthz", tags=["health"], include_in_schema=False)
    async def livez() -> dict[str, str]:
        """The process and its event loop are alive; says nothing of engines."""
        return {"status": "alive"}

    @api.get("/readyz", tags=["health"])
    async def readyz() -> JSONResponse:
        """200 while the gateway can accept work, also by queueing it; else 503 and why."""
        shared = gateway.shared
        no_share = None if shared is None else shared.budgets.problem()
        no_keys = None if gateway.keys is None else gateway.keys.problem()
        verdict = readiness(gateway.watched(), draining=gateway.draining, no_share=no_share, no_keys=no_keys)
        document, crew = verdict.document(), gateway.crew
        if shared is not None:
            document["shared"] = shared.document()
        if gateway.keys is not None and (keys := gateway.keys.document()) is not None:
            document["keys"] = keys
        if crew is not None:
            document["workers"] = {"answered_by": crew.seat, "live": crew.live, "configured": crew.seats}
        return JSONResponse(document, status_code=200 if verdict.ready else 503)


class TakenOver(Response):
    """A response that hands the connection to the hot path, body and all."""

    def __init__(self, hot: HotPath, path: str) -> None:
        super().__init__()
        self._hot = hot
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._hot.serve(self._path, scope, receive, send)


def _taken_over(hot: HotPath, path: str) -> Callable[[], Awaitable[Response]]:
    async def endpoint() -> Response:  # async: what is not would wait for a thread
        return TakenOver(hot, path)

    return endpoint


def _add_hot_paths(api: FastAPI, hot: HotPath) -> None:
    """The hot endpoints as routes, for the OpenAPI document and for whoever mounts the API without the ingress."""
    described: tuple[tuple[str, type[BaseModel], type[BaseModel]], ...] = (
        ("/v1/chat/completions", ChatCompletionRequest, ChatCompletion),
        ("/v1/completions", CompletionRequest, Completion),
        ("/v1/embeddings", EmbeddingRequest, EmbeddingList),
    )
    parts: dict[str, object] = {}  # what the request schemas refer to
    for path, wanted, answered in described:
        schema = wanted.model_json_schema(ref_template="#/components/schemas/{model}")
        parts.update(schema.pop("$defs", {}))
        api.add_api_route(
            path,
            _taken_over(hot, path),
            methods=["POST"],
            name=path.rsplit("/", 1)[-1],
            tags=["inference"],
            response_model=None,
            responses={200: {"model": answered}, "4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
            description=wanted.__doc__,
        )
    generated = api.openapi

    def openapi() -> dict[str, Any]:
        document = generated()
        document["components"]["schemas"].update(parts)
        return document

    api.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _handle_errors(api: FastAPI) -> None:
    @api.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return _response(request, error)

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return _response(request, from_http_status(error.status_code, request.method, request.url.path))

    @api.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("unexpected error", exc_info=error)
        return _response(request, internal_error())


def _response(request: Request, error: ApiError) -> Response:
    rid = request_id(request.scope["headers"])
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(
        error.to_body(rid),
        status_code=error.status,
        headers={**headers, "x-request-id": rid},
        media_type="application/json",
    )
