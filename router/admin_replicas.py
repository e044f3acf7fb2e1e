"""`/admin/replicas`: what each replica is doing, and the three words about one - drain, notice, restore (docs/spot.md).

Reads and checks what is said, writes it to the log, and shows what came of it; `router.farewell` does it.
"""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from batching.request import ReplicaId
from router.admin_access import who
from router.admin_body import admin_body
from router.gateway import Gateway
from router.openai.body import parse_object
from router.openai.checks import out_of_range, wrong
from router.openai.errors import (
    invalid_request,
    no_such_replica,
    nothing_to_end,
)
from router.openai.models import near
from router.standing import Kind, Left, Standing, Word, is_repeat
from router.watched import Watched

log = logging.getLogger("penstock.admin")

_MAX_DEPTH: Final = 4
_PROVIDERS: Final = ("aws", "gcp", "azure", "kubernetes", "other")
_NOTICES: Final = tuple(kind.value for kind in Kind if kind is not Kind.DRAIN)
_RECLAIM_S: Final = 30.0  # the shortest notice any cloud gives: where none is told
_LONGEST_S: Final = 3600.0  # no cloud announces sooner; what is further away is another clock's, or another event
_LONGEST_DRAIN_S: Final = 86_400.0
_SKEW_S: Final = 5.0  # of clocks: more is worth a line in the log
_SECONDS_END: Final = 1e11  # a time beyond it is one in milliseconds
_MAX_ID_CHARS: Final = 128


def add_replicas(admin: APIRouter, gateway: Gateway) -> None:
    """The routes."""

    @admin.get("/replicas", response_model=None)
    async def replicas() -> Response:
        """Every replica: its lifecycle, what runs there, and whether it is to go."""
        left = await _left(gateway)
        return _json({"object": "list", "data": [_document(gateway, watched, left) for watched in gateway.watched()]})

    @admin.get("/replicas/{name}", response_model=None)
    async def replica(name: str) -> Response:
        """One of them; `released`: nothing of ours runs there and nothing will be sent, the machine may go."""
        watched = _named(gateway, name)
        return _json(_document(gateway, watched, await _left(gateway)))

    @admin.post("/replicas/{name}/drain", response_model=None)
    async def drain(name: str, request: Request) -> Response:
        """No new work; what runs ends, or is moved when the deadline comes: `{"deadline_s": 60}`, or `{}` for none."""
        fields = await _fields(gateway, request, ("deadline_s",))
        watched = _named(gateway, name)
        return await _say(gateway, watched, _drain(fields), request)

    @admin.post("/replicas/{name}/notice", response_model=None)
    async def notice(name: str, request: Request) -> Response:
        """Its machine will be taken away: `{"provider": "aws", "kind": "reclaim", "deadline_unix_s": 1766000000}`."""
        known = ("provider", "kind", "deadline_unix_s", "observed_unix_s", "id")
        fields = await _fields(gateway, request, known)
        watched = _named(gateway, name)
        return await _say(gateway, watched, _notice(name, fields), request)

    @admin.post("/replicas/{name}/restore", response_model=None)
    async def restore(name: str, request: Request) -> Response:
        """Ends a drain, or a notice that was withdrawn."""
        await _fields(gateway, request, ())
        watched = _named(gateway, name)
        if gateway.farewells.standing(watched.id) is None:
            raise nothing_to_end(name)
        log.info("restore of replica %s, asked by %s", name, who(gateway.config.server, request))
        return _json(_document(gateway, watched, await _tell(gateway, Word(replica=name, standing=None))))


async def _say(gateway: Gateway, watched: Watched, word: Standing, request: Request) -> Response:
    """`word.deadline_s` counts from now."""
    name, loop_s = watched.config.name, asyncio.get_running_loop().time()
    if not is_repeat(gateway.farewells.standing(watched.id), word.at(loop_s)):
        log.info(
            "%s of replica %s (%s%s), %s, asked by %s", word.kind, name, word.provider,
            f" {word.ids[0]!r}" if word.ids else "",
            "no deadline" if word.deadline_s is None else f"in {word.deadline_s:.1f} s",
            who(gateway.config.server, request),
        )  # fmt: skip
        if word.kind is not Kind.DRAIN:
            gateway.metrics.spot_notices_total.labels(name, word.provider, word.kind.value).inc()
    left = await _tell(gateway, Word(replica=name, standing=word))
    return _json(_document(gateway, watched, left))


async def _tell(gateway: Gateway, word: Word) -> Left:
    """All workers, where there are several; then all gateways, where they share the fleet."""
    replica = ReplicaId(word.replica)
    if gateway.crew is not None:
        left = await gateway.crew.tell(msgspec.structs.replace(word))
    else:
        if word.standing is None:
            gateway.farewells.told(replica, None, why=word.why)
        else:
            gateway.farewells.join(replica, word.standing.at(asyncio.get_running_loop().time()))
        left = gateway.farewells.left()
    if gateway.shared is None:
        return left
    gateway.shared.budgets.say(word)
    return gateway.shared.budgets.widened(left)


async def _left(gateway: Gateway) -> Left:
    left = gateway.farewells.left() if gateway.crew is None else await gateway.crew.left()
    return left if gateway.shared is None else gateway.shared.budgets.widened(left)


def _document(gateway: Gateway, watched: Watched, left: Left) -> dict[str, object]:
    config, standing = watched.config, gateway.farewells.standing(watched.id)
    models = {spec.name for spec in config.models} | watched.models_seen
    return {
        "name": config.name,
        "lifecycle": watched.lifecycle.value,
        "detail": watched.why,
        "requests": left.requests.get(config.name, 0),
        "deadline_unix_s": None if standing is None else standing.deadline_unix_s,
        "reason": None if standing is None else standing.kind.value,
        "released": config.name in left.released,
        "models": sorted(models),
        "gpu": config.gpu.type,
        "cost_tier": config.cost.tier.value,
    }


# -- what is said --------------------------------------------------------------------------------------------------------


def _drain(fields: Mapping[str, Any]) -> Standing:
    left_s = _number(fields, "deadline_s", _LONGEST_DRAIN_S)
    unix_s = None if left_s is None else _unix_now() + left_s
    return Standing(kind=Kind.DRAIN, deadline_s=left_s, deadline_unix_s=unix_s)


def _notice(name: str, fields: Mapping[str, Any]) -> Standing:
    """Its deadline on no clock but ours: told in seconds from now, a wall clock that jumps later does not move it."""
    provider, kind = _choice(fields, "provider", _PROVIDERS), Kind(_choice(fields, "kind", _NOTICES))
    deadline_s = _number(fields, "deadline_unix_s", _SECONDS_END)
    observed_s, now = _number(fields, "observed_unix_s", _SECONDS_END), _unix_now()
    if observed_s is not None and abs(observed_s - now) > _SKEW_S:
        log.info("notice for replica %s: seen %.1f s ago by the clock of whoever tells it", name, now - observed_s)
    # A hint names no end, whatever time came with it.
    left_s = None if deadline_s is None or kind is Kind.REBALANCE else deadline_s - now
    if left_s is None and kind is Kind.RECLAIM:
        left_s = _RECLAIM_S
    if left_s is not None and not 0 <= left_s <= _LONGEST_S:
        kept_s = min(max(left_s, 0.0), _LONGEST_S)
        log.warning(
            "notice for replica %s: its deadline is %.0f s from now by our clock; %.0f s is taken", name, left_s, kept_s
        )
        left_s = kept_s
    unix_s = None if left_s is None else now + left_s
    ids = () if (told := _id(fields)) is None else (told,)
    return Standing(kind=kind, provider=provider, ids=ids, deadline_s=left_s, deadline_unix_s=unix_s)


def _choice(fields: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    value = fields.get(name)
    choices = ", ".join(f"`{one}`" for one in allowed)
    if value is None:
        raise invalid_request(f"`{name}` is missing; give one of {choices}.", param=name, code="missing")
    if type(value) is not str:
        raise wrong(name, f"one of {choices}", value)
    if value not in allowed:
        raise out_of_range(name, f"one of {choices}")
    return value


def _number(fields: Mapping[str, Any], name: str, most: float) -> float | None:
    """Seconds; from zero on, and finite."""
    value = fields.get(name)
    if value is None:
        return None
    if type(value) not in (int, float):
        raise wrong(name, "a number of seconds, or null", value)
    if name.endswith("unix_s") and value > most:
        raise out_of_range(name, "in seconds since 1970; this one looks like milliseconds")
    if not 0 <= value <= most:
        raise out_of_range(name, f"from 0 to {most:.0f} seconds")
    return float(value)


def _id(fields: Mapping[str, Any]) -> str | None:
    value = fields.get("id")
    if value is None:
        return None
    if type(value) is not str:
        raise wrong("id", "a string, or null", value)
    if not 0 < len(value) <= _MAX_ID_CHARS or not value.isprintable():
        raise out_of_range("id", f"1 to {_MAX_ID_CHARS} printable characters long")
    return value


async def _fields(gateway: Gateway, request: Request, known: tuple[str, ...]) -> Mapping[str, Any]:
    """The body's; an empty body has none. Raises ApiError for a field that means nothing here: a misspelt deadline is no deadline."""
    raw = await admin_body(request, gateway.config.server.body_timeout_s)
    fields: Mapping[str, Any] = parse_object(raw, max_depth=_MAX_DEPTH).fields if raw.strip() else {}
    for name in fields:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known) or 'none'}."
            raise invalid_request(f"`{name[:64]}` is no field of this call; {hint}", param=name, code="unknown_field")
    return fields


def _named(gateway: Gateway, name: str) -> Watched:
    """Raises ApiError (404) with the names that are near."""
    known = {watched.config.name: watched for watched in gateway.watched()}
    found = known.get(name)
    if found is None:
        raise no_such_replica(name, near(name, sorted(known)), sorted(known))
    return found


def _unix_now() -> float:
    return datetime.now(UTC).timestamp()


def _json(found: object) -> Response:
    return Response(msgspec.json.encode(found), media_type="application/json")
