"""`/admin/registrations`: engines that call in, and call again before their time is up (docs/discovery.md)."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from backends.discovery.found import NotFit, refuse_host
from backends.discovery.registration import Full, Registered, Registrations
from config.problems import explain
from config.replica import ReplicaConfig
from router.admin_access import who
from router.admin_body import admin_body
from router.gateway import Gateway
from router.openai.body import parse_object
from router.openai.errors import ApiError, Case, invalid_request

log = logging.getLogger("penstock.discovery")

_MAX_DEPTH: Final = 8


def add_registrations(admin: APIRouter, gateway: Gateway) -> None:
    """On the admin router."""

    @admin.get("/registrations", response_model=None)
    async def registrations() -> Response:
        """Those whose time is not up."""
        table = _table(gateway)
        known = table.known(asyncio.get_running_loop().time())
        return _json({"object": "list", "data": [_document(one) for one in known]})

    @admin.put("/registrations/{name}", response_model=None)
    async def register(name: str, request: Request) -> Response:
        """A replica as in the configuration, without its name: `{"url": "http://10.0.0.7:8000", "gpu": {"type": "H100-80G"}}`.

        Again within `ttl_s`, or it is over; with other values it is changed. It is tried like any replica before it takes work.
        """
        table = _table(gateway)
        raw = await admin_body(request, gateway.config.server.body_timeout_s)
        replica = _replica(name, parse_object(raw, max_depth=_MAX_DEPTH).fields)
        if any(replica.name == own.name for own in _own(gateway)):
            raise ApiError(Case.CONFLICT, f"The configuration has a replica {name!r} of its own; take another name.")
        now = asyncio.get_running_loop().time()
        if all(one.replica != replica for one in table.known(now)):
            log.info("registration of replica %s at %s, by %s", name, replica.url, who(gateway.config.server, request))
        await _tell(gateway, name, replica)
        return _json({**_document(Registered(replica, now + table.ttl_s)), "ttl_s": table.ttl_s})

    @admin.delete("/registrations/{name}", response_model=None)
    async def unregister(name: str, request: Request) -> Response:
        """It gets nothing new from now on; what runs there ends."""
        table = _table(gateway)
        if all(one.replica.name != name for one in table.known(asyncio.get_running_loop().time())):
            raise ApiError(Case.NOT_FOUND, f"No replica {name[:64]!r} is registered; it may be over already.")
        log.info("registration of replica %s is ended by %s", name, who(gateway.config.server, request))
        await _tell(gateway, name, None)
        return _json({"name": name, "ended": True})


def _own(gateway: Gateway) -> Sequence[ReplicaConfig]:
    """Those of the configuration itself."""
    return () if gateway.discovered is None else gateway.discovered.own


def _table(gateway: Gateway) -> Registrations:
    table = None if gateway.discovered is None else gateway.discovered.registrations
    if table is None:
        message = "Registrations are off; set discovery.registration.enabled, and start again."
        raise ApiError(Case.NOT_FOUND, message)
    return table


async def _tell(gateway: Gateway, name: str, replica: ReplicaConfig | None) -> None:
    """All workers of the gateway. Raises ApiError."""
    try:
        if gateway.discovered is not None:
            gateway.discovered.register(name, replica)
    except Full:
        message = "There are as many registrations as discovery.registration.most allows; let some end, or raise it."
        raise ApiError(Case.CONFLICT, message) from None
    if gateway.crew is not None:
        await gateway.crew.register(name, None if replica is None else replica.model_dump(mode="json"))


def _replica(name: str, fields: Mapping[str, Any]) -> ReplicaConfig:
    """Raises ApiError with every problem."""
    if "name" in fields:
        raise invalid_request("The name stands in the path; leave `name` out.", param="name", code="unknown_field")
    key = fields.get("api_key")
    if isinstance(key, str) and key.startswith(("env:", "file:")):
        raise invalid_request("`api_key` must be the key itself: nothing is read here for a caller.", param="api_key")
    try:
        replica = ReplicaConfig.model_validate({"name": name, **fields})
        if replica.url is None:
            raise invalid_request("`url` is missing; such as http://10.0.0.7:8000.", param="url", code="missing")
        refuse_host(replica.url)
        if replica.metrics_url is not None:
            refuse_host(replica.metrics_url)
    except ValidationError as error:
        raise invalid_request("; ".join(explain(error, {})), code="invalid_value") from None
    except NotFit as error:
        raise invalid_request(str(error), param="url", code="invalid_value") from None
    return replica


def _document(one: Registered) -> dict[str, object]:
    left_s = one.ends_s - asyncio.get_running_loop().time()
    replica = one.replica.model_dump(mode="json", exclude_unset=True, exclude={"api_key"})
    return {**replica, "expires_unix_s": datetime.now(UTC).timestamp() + left_s}


def _json(found: object) -> Response:
    return Response(msgspec.json.encode(found), media_type="application/json")
