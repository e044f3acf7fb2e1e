"""`GET /admin/usage`: who used what - tokens and dollars by tenant, model and more, as JSON or CSV, of all workers together (docs/cost.md).

Reads the question; `router.usage_query` answers it. Tenants are called by their names here: whoever may see /admin runs the gateway.
"""

from typing import Final

import msgspec
from fastapi import APIRouter, Request, Response

from router.gateway import Gateway
from router.openai.checks import out_of_range
from router.openai.errors import ApiError, Case, invalid_request
from router.usage_query import KEYS, Asked, Found, document, table, unix_s

DEFAULT: Final = "tenant,model"
_PARAMETERS: Final = ("from", "to", "group_by", "format")


def add_usage(admin: APIRouter, gateway: Gateway) -> None:
    """The route."""

    @admin.get("/usage", response_model=None)
    async def usage(request: Request) -> Response:
        """Tokens and dollars; `?group_by=tenant,model,day&from=2026-01-01&to=2026-02-01&format=csv`."""
        said = request.query_params
        unknown = sorted(set(said) - set(_PARAMETERS))
        if unknown:
            raise invalid_request(
                f"`{unknown[0][:64]}` is no parameter of /admin/usage; there are {', '.join(_PARAMETERS)}.",
                param=unknown[0][:64],
            )
        as_csv = _as_csv(said.get("format"), request.headers.get("accept", ""))
        found = await _found(gateway, _asked(said.get("group_by"), said.get("from"), said.get("to")))
        if as_csv:
            return Response(
                table(found),
                media_type="text/csv; charset=utf-8",
                headers={"content-disposition": 'attachment; filename="penstock-usage.csv"'},
            )
        return Response(msgspec.json.encode(document(found)), media_type="application/json")


async def _found(gateway: Gateway, asked: Asked) -> Found:
    found = gateway.usage.answer(asked) if gateway.crew is None else await gateway.crew.usage(asked)
    if found is None:
        raise ApiError(Case.INTERNAL, "The supervisor, who keeps the book of all workers, does not answer; try again.")
    return found


def _asked(group_by: str | None, since: str | None, until: str | None) -> Asked:
    keys = tuple(key for key in (DEFAULT if group_by is None else group_by).split(",") if key)
    for key in keys:
        if key not in KEYS:
            raise out_of_range("group_by", f"a list of {', '.join(KEYS)}")
    if "day" in keys and "hour" in keys:
        raise out_of_range("group_by", "by day or by hour, not both")
    asked = Asked(group_by=keys, since=_time("from", since), until=_time("to", until))
    if asked.since is not None and asked.until is not None and asked.since >= asked.until:
        raise out_of_range("to", "later than `from`")
    return asked


def _time(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return unix_s(text)
    except (ValueError, OverflowError):
        raise out_of_range(
            name, "a time such as 2026-01-31, 2026-01-31T08:00:00Z (+ is written %2B) or Unix seconds"
        ) from None


def _as_csv(said: str | None, accept: str) -> bool:
    if said is None:
        return "text/csv" in accept
    if said not in ("json", "csv"):
        raise out_of_range("format", "json or csv")
    return said == "csv"
