"""Begins a request's trace and ends it: which trace it is part of, whether anybody is to see it, and where its spans go.

Nothing waits for it and nothing fails with it: an error of ours, or a collector that is away, costs traces, never requests.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random, SystemRandom
from typing import Final, Protocol
from urllib.parse import urlsplit

from config.schema import ReplicaConfig
from config.tracing import Tracing
from router.exchange import Exchange
from router.tracing.content import KeptText
from router.tracing.context import parent_of
from router.tracing.record import Trace
from router.tracing.spans import Place, Span, spans_of

log = logging.getLogger("penstock.tracing")

_LOW_64: Final = 2**64 - 1  # of a trace's id: what ratios are taken of, by OpenTelemetry's rule

_TURN_S: Final = 0.002  # more, and the wall's clock was set


@dataclass(frozen=True, slots=True)
class Finished:
    """One request's spans, and what makes their times wall times: nanoseconds at the clock's 0."""

    trace_id: int
    state: str  # the client's `tracestate`
    remote_parent: bool
    zero_ns: int
    spans: list[Span]  # root first


class SpanSink(Protocol):
    """Where finished traces go. `add` never waits and never raises for want of room."""

    def start(self) -> None: ...

    def add(self, finished: Finished) -> None: ...

    async def close(self) -> None: ...


def _wall_s() -> float:
    return datetime.now(UTC).timestamp()


class Tracer:
    """Of one gateway, where traces are on."""

    def __init__(
        self,
        settings: Tracing,
        replicas: Sequence[ReplicaConfig],
        sink: SpanSink,
        pseudonym: Callable[[str], str],
        *,
        random: Random | None = None,
        wall: Callable[[], float] = _wall_s,
    ) -> None:
        """`pseudonym`: of a tenant; `random`: of ids; `wall`: seconds since 1970."""
        self._settings = settings
        self._sink = sink
        self._pseudonym = pseudonym
        self._random = random or Random(SystemRandom().getrandbits(128))
        self._wall = wall
        self._zero_s = 0.0
        self._below = round(settings.sample_ratio * (_LOW_64 + 1))
        self.configure(replicas)

    def configure(self, replicas: Sequence[ReplicaConfig]) -> None:
        """Also on reload."""
        self._places = {replica.name: place_of(replica) for replica in replicas}

    def start(self) -> None:
        if self._settings.content:
            log.warning("tracing.content is on: prompts and answers go to %s", self._settings.url)
        self._sink.start()

    async def close(self) -> None:
        """What is finished is exported, within `flush_timeout_s`."""
        await self._sink.close()

    def begin(self, headers: Mapping[str, str]) -> Trace:
        """A request has come; `headers` has lower-case names."""
        parent = parent_of(headers)
        trace_id = self._id(128) if parent is None else parent.trace_id
        sampled = trace_id & _LOW_64 < self._below if parent is None else parent.sampled
        return Trace(
            trace_id=trace_id,
            root_id=self._id(64),
            parent_id=None if parent is None else parent.span_id,
            sampled=sampled,
            state="" if parent is None else parent.state,
            new_id=self._new_id,
            kept=KeptText(self._settings.content_bytes) if self._settings.content and sampled else None,
        )

    def ended(self, exchange: Exchange) -> None:
        """Its report is written; nobody will note anything more."""
        trace = exchange.trace
        if trace is None or not trace.sampled:
            return
        try:
            zero_s = self._zero()
            spans = spans_of(exchange, self._places, self._pseudonym)
            self._sink.add(
                Finished(trace.trace_id, trace.state, trace.parent_id is not None, round(zero_s * 1e9), spans)
            )
        except Exception:  # an error of ours costs a trace, not a request
            log.exception("request %s cannot be traced", exchange.inbound.request_id)

    def _zero(self) -> float:
        """The wall's time at the loop's 0. The loop's clock stands still within a turn, so that the least of late is the truest."""
        found = self._wall() - asyncio.get_running_loop().time()
        if not self._zero_s <= found <= self._zero_s + _TURN_S:
            self._zero_s = found
        return self._zero_s

    def _new_id(self) -> int:
        return self._id(64)

    def _id(self, bits: int) -> int:
        return self._random.getrandbits(bits) or self._id(bits)  # 0 is no id


def place_of(replica: ReplicaConfig) -> Place:
    """As spans name it; an engine in this process has no address."""
    if replica.url is None:
        return Place(replica.backend.value, None, None)
    parts = urlsplit(replica.url)
    if parts.scheme == "unix":
        return Place(replica.backend.value, parts.path, None)
    return Place(replica.backend.value, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme))
