"""Decision records as plain values for JSON, and back: the shape of `GET /admin/decisions` and of a decisions file's lines.

A file's rows are lists in the order that its first line names; what people read has names. Tenants and prompt hashes leave the
process only under pseudonyms of this process: equal stays equal, and what they stand for cannot be looked up.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields
from datetime import UTC, datetime
from hashlib import blake2b
from math import inf
from typing import Any, Final

from batching.audit import Forecast
from batching.decision_record import (
    NEED_FIELDS,
    OFFER_FIELDS,
    REQUEST_FIELDS,
    DecisionRecord,
    Ended,
    Values,
    offers_of,
    score_on,
)
from batching.offer import Offer
from batching.placement import Need, Placement, Score
from batching.request import Outcome, ReplicaId, Request, ServiceTier
from batching.window import Window
from config.schema import CostTier, ModelKind

VERSION: Final = 1
FIELDS: Final = {"request": REQUEST_FIELDS, "need": NEED_FIELDS, "offers": OFFER_FIELDS}
NOBODY: Final = "anonymous"
_DIGEST_BYTES: Final = 6  # a collision among a million is a matter of 1 in 500
_TENANT: Final = REQUEST_FIELDS.index("tenant")
_TIER: Final = REQUEST_FIELDS.index("service_tier")

Document = dict[str, Any]


class Pseudonyms:
    """Names that mean nothing outside: keyed by a secret that dies with the process."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(16) if key is None else key

    def tenant(self, name: str) -> str:
        return name if name == NOBODY else f"t-{self._digest(name.encode()).hex()}"

    def prefix(self, chunk: int) -> int:
        return int.from_bytes(self._digest(b"%d" % chunk), "big")

    def _digest(self, value: bytes) -> bytes:
        return blake2b(value, key=self._key, digest_size=_DIGEST_BYTES).digest()


def document(record: DecisionRecord, names: Pseudonyms, *, unix_at_zero: float | None, named: bool) -> Document:
    """`named`: for people, with a score beside each candidate; else compact. `unix_at_zero`: the wall's time at the clock's 0."""
    request = list(record.request)
    request[_TENANT] = names.tenant(request[_TENANT])
    request[_TIER] = ServiceTier(request[_TIER]).label
    found: Document = {
        "request_id": record.request_id,
        "model": record.asked("model"),
        "at": None if unix_at_zero is None else _iso(unix_at_zero + record.placed_s),
        "queued_s": record.queued_s,
        "placed_s": record.placed_s,
        "choice": _choice(record.placement),
        "forecast": _forecast(record.forecast, named=named),
        "ended": asdict(record.end()),
        "request": dict(zip(REQUEST_FIELDS, request, strict=True)) if named else request,
        "need": dict(zip(NEED_FIELDS, record.need, strict=True)) if named else record.need,
        "cached_tokens": record.cached_tokens,
        "survival": record.survival,
        "hold": record.hold,
        "by_cost": record.by_cost,
        "prefix": [names.prefix(chunk) for chunk in record.prefix],
        "left_out": record.left_out,
        "offers": _named_offers(record) if named else record.offers,
    }
    return found


def parsed(found: Mapping[str, Any], names: Mapping[str, Sequence[str]] = FIELDS) -> DecisionRecord:
    """The record that a document tells of; raises KeyError, ValueError or TypeError for what is none.

    `names`: of a row's values, as the file's first line has them. Fields that it lacks have their defaults, others are ignored.
    """
    request = _row(Request, REQUEST_FIELDS, found["request"], names["request"], _REQUEST)
    need = _row(Need, NEED_FIELDS, found["need"], names["need"], _NEED)
    offers = tuple(_row(Offer, OFFER_FIELDS, row, names["offers"], _OFFER) for row in found["offers"])
    survival = found["survival"]
    return DecisionRecord(
        queued_s=float(found["queued_s"]),
        placed_s=float(found["placed_s"]),
        asked_for=request,
        prefix=tuple(found["prefix"]),
        need=need,
        cached_tokens={ReplicaId(name): int(tokens) for name, tokens in found["cached_tokens"].items()},
        survival=None if survival is None else tuple(survival),
        offers=offers,
        left_out=int(found["left_out"]),
        hold=bool(found["hold"]),
        by_cost=bool(found["by_cost"]),
        placement=_placement(found["choice"]),
        forecast=None if (told := found.get("forecast")) is None else Forecast(*_values(told)),
        ended=_ended(found["ended"]),
    )


def _named_offers(record: DecisionRecord) -> list[Document]:
    rows: list[Document] = []
    for values, offer in zip(record.offers, offers_of(record), strict=True):
        score = None if record.by_policy else score_on(record, offer)
        figures = None if score is None else asdict(score)
        rows.append({**dict(zip(OFFER_FIELDS, values, strict=True)), "score": figures})
    return rows


def _choice(placement: Placement) -> Document:
    return {
        "replica": placement.replica,
        "cost_tier": placement.cost_tier,
        "reason": placement.reason,
        "considered": placement.considered,
        "held_for": placement.held_for,
        "score": asdict(placement.score),
        "runner_up": asdict(placement.candidates[1]) if len(placement.candidates) > 1 else None,
    }


def _placement(choice: Mapping[str, Any]) -> Placement:
    score = Score(**choice["score"])
    runner_up = choice["runner_up"]
    return Placement(
        replica=ReplicaId(choice["replica"]),
        cost_tier=CostTier(choice["cost_tier"]),
        reason=str(choice["reason"]),
        score=score,
        candidates=(score,) if runner_up is None else (score, Score(**runner_up)),
        considered=int(choice["considered"]),
        held_for=None if (held_for := choice.get("held_for")) is None else ReplicaId(held_for),
    )


def _forecast(forecast: Forecast | None, *, named: bool) -> Document | Forecast | None:
    return forecast._asdict() if forecast is not None and named else forecast


def _values(told: Any) -> Any:
    return (told[name] for name in Forecast._fields) if isinstance(told, Mapping) else told


def _ended(found: Mapping[str, Any]) -> Ended:
    outcome = found["outcome"]
    return Ended(**{**found, "outcome": None if outcome is None else Outcome(outcome)})


_Reader = Callable[[Any], Any]


def _unbounded(value: Any) -> Any:
    """JSON has no infinity."""
    return inf if value is None else value


def _tuple(value: Any) -> Any:
    return None if value is None else tuple(value)


def _window(value: Any) -> Any:
    return None if value is None else Window(*map(_unbounded, value))


def _tier(value: str) -> ServiceTier:
    return ServiceTier[value.upper()]


def _tiers(value: Sequence[str] | None) -> frozenset[CostTier] | None:
    return None if value is None else frozenset(map(CostTier, value))


_REQUEST: Final[Mapping[str, _Reader]] = {
    "service_tier": _tier,
    "kind": ModelKind,
    "cost_tiers": _tiers,
    "avoid": frozenset,
}
_NEED: Final[Mapping[str, _Reader]] = {"ttft_objective_s": _unbounded, "tpot_objective_s": _unbounded}
_OFFER: Final[Mapping[str, _Reader]] = {
    "window": _window,
    "cost_tier": CostTier,
    "due_s": _unbounded,
    "coming_due_s": _unbounded,
    "free_tokens": _tuple,
    "known_free_tokens": _tuple,
}


def _row(
    kind: type[Any], wanted: Sequence[str], row: Any, names: Sequence[str], readers: Mapping[str, _Reader]
) -> Values:
    """A row, in the order that this version has."""
    told = row if isinstance(row, Mapping) else dict(zip(names, row, strict=True))
    known = {field.name: field for field in fields(kind)}
    return tuple(
        readers.get(name, _same)(told[name]) if name in told else _default(kind, known[name]) for name in wanted
    )


def _same(value: Any) -> Any:
    return value


def _default(kind: type[Any], field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    raise ValueError(f"{kind.__name__.lower()} lacks {field.name}")


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
