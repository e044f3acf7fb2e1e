"""`/admin/*`: what the gateway decided and why, what becomes of its replicas, and all of it live; for whom `router.admin_access` says."""

from typing import Final

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request, Response

from router.admin_access import refuse_strangers
from router.admin_registrations import add_registrations
from router.admin_replicas import add_replicas
from router.admin_usage import add_usage
from router.board.routes import add_board
from router.decision_documents import Document
from router.decision_log import Asked
from router.gateway import Gateway
from router.oidc.logins import Logins
from router.openai.errors import ApiError, Case, invalid_request

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 1000  # each costs the event loop some tens of microseconds


def add_admin(api: FastAPI, gateway: Gateway, logins: Logins | None = None) -> None:
    """The routes; refused as a whole to strangers. `logins`: of people with tokens."""

    async def allowed(request: Request) -> None:  # async: what is not would wait for a thread
        try:
            server = gateway.config.server
            await refuse_strangers(server, request, gateway.admin_at, gate=gateway.gate, logins=logins)
        except ApiError as error:
            if error.case is Case.UNAUTHORIZED:
                gateway.metrics.auth_failures_total.labels("admin_key").inc()
            raise

    admin = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(allowed)])
    _add_decisions(admin, gateway)
    add_replicas(admin, gateway)
    add_registrations(admin, gateway)
    add_usage(admin, gateway)
    add_board(admin, gateway)
    api.include_router(admin)


def _add_decisions(admin: APIRouter, gateway: Gateway) -> None:

    @admin.get("/decisions", response_model=None)
    async def decisions(
        limit: str = str(DEFAULT_LIMIT),
        request_id: str | None = None,
        replica: str | None = None,
        model: str | None = None,
    ) -> Response:
        """The last placements, newest first: what was asked, every candidate's offer and score, the choice, what came of it."""
        if gateway.decisions.ledger is None:
            raise _off()
        asked = Asked(limit=_limit(limit), request_id=request_id, replica=replica, model=model)
        return _json({"object": "list", "data": await _recent(gateway, asked)})

    @admin.get("/decisions/{request_id}", response_model=None)
    async def decision(request_id: str) -> Response:
        """The last placement of one request; `earlier` counts those before it, each on another replica."""
        ledger = gateway.decisions.ledger
        if ledger is None:
            raise _off()
        found = await _recent(gateway, Asked(limit=MAX_LIMIT, request_id=request_id))
        if not found:
            message = (
                f"No placement of this request is among the last {len(ledger)} kept; it may be older (decisions.ring), "
                "or was never placed. GET /admin/decisions lists what there is."
            )
            raise ApiError(Case.NOT_FOUND, message)
        return _json({**found[0], "earlier": len(found) - 1})


async def _recent(gateway: Gateway, asked: Asked) -> list[Document]:
    """Of all workers, where there are several."""
    return gateway.decisions.recent(asked) if gateway.crew is None else await gateway.crew.decisions(asked)


def _limit(said: str) -> int:
    if said.isascii() and said.isdigit() and 1 <= int(said) <= MAX_LIMIT:
        return int(said)
    raise invalid_request(f"`limit` must be a whole number from 1 to {MAX_LIMIT}.", param="limit")


def _off() -> ApiError:
    return ApiError(Case.NOT_FOUND, "Decisions are not kept here: decisions.ring is 0; set it, and start again.")


def _json(found: object) -> Response:
    return Response(msgspec.json.encode(found), media_type="application/json")
