"""One line for each request at its end: the fields that say what it was, where it went, how long it took and what it cost.

Decides the names and units of the fields; what a line looks like is `router.logs`'. No word of a prompt or an answer, and no key.
"""

import logging
from collections.abc import Callable
from typing import Final

from batching.request import ReplicaId
from router.exchange import ENDPOINTS, Exchange
from router.logs import FIELDS
from router.money import ANONYMOUS
from router.openai.errors import ApiError

log = logging.getLogger("penstock.request")

_MAX_WORD_CHARS: Final = 64  # of what an engine calls its reasons
_MAX_RETRIES: Final = 10_000  # as a client tells them


class RequestLog:
    """Told by the report."""

    def __init__(self, gpu_of: Callable[[ReplicaId], str], pseudonym: Callable[[str], str]) -> None:
        """`pseudonym`: of a tenant."""
        self._gpu_of = gpu_of
        self._pseudonym = pseudonym

    def ended(self, exchange: Exchange, *, model: str, tier: str, status: int) -> None:
        """`model` and `tier` as metrics know them; a client's own words are in no line."""
        if log.isEnabledFor(logging.INFO):
            log.info("request", extra={FIELDS: self._fields(exchange, model, tier, status)})

    def refused(self, request_id: str, path: str, error: ApiError) -> None:
        """It ended before it was read."""
        if log.isEnabledFor(logging.INFO):
            fields = {"id": request_id, "endpoint": ENDPOINTS[path], "status": error.status, "error": error.label}
            log.info("request", extra={FIELDS: {**fields, "outcome": "rejected"}})

    def _fields(self, exchange: Exchange, model: str, tier: str, status: int) -> dict[str, object]:
        spec, trace, timeline, usage = exchange.spec, exchange.trace, exchange.timeline, exchange.usage
        placement = None if exchange.placed is None else exchange.placed.placement
        reasons = exchange.finish_reasons
        tenant = None if exchange.spec is None else self._pseudonym(exchange.spec.tenant or ANONYMOUS)
        fields: dict[str, object] = {
            "id": exchange.inbound.request_id,
            "endpoint": exchange.endpoint,
            "model": model,
            "tier": tier,
            "tenant": tenant,
            "stream": None if spec is None else spec.stream and not spec.collected,
            "status": status,
            "outcome": exchange.outcome.value,
            "error": None if exchange.error is None else exchange.error.label,
            "finish_reason": ",".join(reasons)[:_MAX_WORD_CHARS] if reasons else None,
            "replica": None if placement is None else placement.replica,
            "gpu": None if placement is None else self._gpu_of(placement.replica),
            "cost_tier": None if placement is None else placement.cost_tier.value,
            "attempts": exchange.attempts,
            "moves": exchange.move.count,
            "client_retries": _retries(exchange.inbound.headers.get("x-stainless-retry-count")),
            "queue_ms": _ms(exchange.queue_s),
            "ttft_ms": _ms(timeline.ttft_s),
            "tpot_ms": None if timeline.tpot_s is None else round(timeline.tpot_s * 1e3, 2),
            "total_ms": _ms(timeline.e2e_s),
            "prompt_tokens": None if usage is None else usage.prompt_tokens,
            "cached_tokens": None if usage is None else usage.cached_tokens,
            "output_tokens": (usage.completion_tokens if usage is not None else None) or timeline.output_tokens,
            "usd": None if exchange.usd is None else round(exchange.usd, 9),
        }
        if trace is not None:
            fields["trace_id"], fields["span_id"] = trace.trace_hex, trace.root_hex
        return fields


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e3)


def _retries(told: str | None) -> int | None:
    """How often the client has asked before, as OpenAI's SDKs tell; None: it does not."""
    return min(int(told), _MAX_RETRIES) if told is not None and told.isdecimal() and len(told) < 9 else None
