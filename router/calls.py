"""What an engine is sent for a request, and what its stream is read with - for a whole answer, or for the rest of one.

Decides which engines are asked for token ids, and by which way one goes on where another stopped.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from backends.backend import EngineCall
from batching.request import ReplicaId
from batching.ticket import Lease
from config.migration import MigrationMode
from config.schema import BackendKind, Config, ModelKind
from router.exchange import Exchange
from router.openai.body import Body
from router.openai.call_spec import CallSpec
from router.openai.chunks import ChunkFilter
from router.openai.continuation import COMPLETIONS, asks_ids, continued, guard_of, ids_asked, way_on, why_not
from router.openai.journal import Journal, Mode
from router.openai.request import upstream_body
from router.tracing.content import KeepingJournal

# Engines whose token ids are those of every replica of the model, and that take them for a prompt; and that know `cache_salt`.
_TAKES_IDS: Final = frozenset({BackendKind.VLLM, BackendKind.SIMULATED})
# What is told in a document otherwise than in a stream.
_AS_DOCUMENT: Final = frozenset({"tools", "functions", "return_token_ids", "stream_options", "modalities"})
# Forwarded to engines as they come where there are no traces of our own: tracing context only. Everything else of a client's head stays here (docs/api.md, "Headers").
_PASSED_HEADERS: Final = ("traceparent", "tracestate")


class CannotGoOn(Exception):
    """The engine has no way to continue what others have said."""


class Calls:
    """Of one gateway; knows its replicas by the configuration alone."""

    def __init__(self, config: Config) -> None:
        self._known: set[bytes] = set()  # tokens' texts, of all streams (`router.openai.plain`)
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Also on reload; requests under way keep what they have read."""
        self._trusted = config.server.trusted
        self._migration = config.migration
        self._all_stream = all(r.backend in _TAKES_IDS for r in config.replicas)
        self._takes_ids = frozenset(ReplicaId(r.name) for r in config.replicas if r.backend in _TAKES_IDS)
        self._orders_by_priority = frozenset(ReplicaId(r.name) for r in config.replicas if r.priority_scheduling)

    def journal(self, body: Body, exchange: Exchange) -> Journal:
        """For a stream."""
        spec, mode = exchange.spec, self._migration.mode
        assert spec is not None
        reason = "migration.mode is off" if mode is MigrationMode.OFF else why_not(body.fields, spec)
        exact = mode is MigrationMode.EXACT and reason is None and asks_ids(body.fields)
        room = self._migration.journal_bytes
        if exchange.trace is not None and exchange.trace.kept is not None:
            return KeepingJournal(exchange.trace.kept, room_bytes=room, exact=exact, why_not=reason)
        return Journal(room_bytes=room, exact=exact, why_not=reason)

    def collected(self, spec: CallSpec, body: Body) -> CallSpec:
        """The same, streamed by the engine, where the answer is long and its client wants it whole."""
        fields, most, migration = body.fields, spec.max_output_tokens, self._migration
        if (
            spec.kind is ModelKind.EMBEDDING
            or migration.mode is MigrationMode.OFF
            or (most is not None and most < migration.documents_from_tokens)
            or not self._all_stream
            or not _AS_DOCUMENT.isdisjoint(fields)
            or why_not(fields, spec) is not None
        ):
            return spec
        return msgspec.structs.replace(spec, stream=True, collected=True)

    def call(self, exchange: Exchange, lease: Lease, body: Body, may_go: Callable[[], None]) -> EngineCall:
        """The client's request for this engine; or, where others have said some of the answer, one to go on: raises CannotGoOn."""
        spec, journal, path = exchange.spec, exchange.journal, exchange.inbound.path
        assert spec is not None
        trusted, priority_ok = self._trusted or spec.trusted, lease.replica in self._orders_by_priority
        asked = ids_asked(body.fields) if self._wants_ids(exchange, lease.replica) else ()
        salt = spec.cache_salt if lease.replica in self._takes_ids else None  # others know no such member
        sent = upstream_body(body, spec, trusted=trusted, priority_ok=priority_ok, asked=asked, salt=salt)
        if journal is None or journal.empty:
            exchange.move.mode = Mode.NONE
        else:
            mode = exchange.move.mode = way_on(journal, body, takes_ids=bool(asked))
            if mode is Mode.NONE:
                raise CannotGoOn
            said = exchange.move.tokens_before = _said_tokens(exchange, mode)
            sent = continued(sent, spec, journal, mode, chat=exchange.endpoint == "chat", said_tokens=said)
            path = COMPLETIONS if mode is Mode.EXACT else path
        return EngineCall(
            request_id=exchange.inbound.request_id,
            path=path,
            body=sent,
            stream=spec.stream,
            headers=_headers(exchange, lease),
            may_go=may_go,
        )

    def _wants_ids(self, exchange: Exchange, replica: ReplicaId) -> bool:
        journal = exchange.journal
        return journal is not None and journal.wants_ids and replica in self._takes_ids

    def new_filter(self, exchange: Exchange, journal: Journal | None = None) -> ChunkFilter:
        spec = exchange.spec
        assert spec is not None
        return ChunkFilter(
            strip_usage=spec.strip_usage,
            expected_choices=spec.n,
            chat=exchange.endpoint == "chat",
            journal=journal,
            known=self._known,
        )

    def filter(self, exchange: Exchange, replica: ReplicaId, body: Body) -> ChunkFilter:
        """Of a stream; the one that the client's began with, made ready for another engine."""
        chunks, journal, mode = exchange.chunks, exchange.journal, exchange.move.mode
        assert journal is not None
        if chunks is None:
            chunks = self.new_filter(exchange, journal)
            chunks.hide_ids = body.fields.get("return_token_ids") is not True
        else:
            chunks.go_on(
                tokens_before=exchange.move.tokens_before,
                reshape=mode is Mode.EXACT and exchange.endpoint == "chat",
            )
        if mode is Mode.NONE:
            chunks.guard = guard_of(body.fields) if self._wants_ids(exchange, replica) else None
        elif mode is Mode.TEXT:
            journal.no_ids()
            chunks.guard = chunks.guard or guard_of(body.fields, said=journal.plain_text)
        journal.seam()
        body.put_away()  # until the answer has to go on elsewhere
        return chunks


def _headers(exchange: Exchange, lease: Lease) -> dict[str, str]:
    trace = exchange.trace
    if trace is None:
        return {name: value for name in _PASSED_HEADERS if (value := exchange.inbound.headers.get(name))}
    return trace.begun(lease, asyncio.get_running_loop().time(), exchange.move.mode)


def _said_tokens(exchange: Exchange, mode: Mode) -> int:
    """Of the answer so far: as the ids are, else as many as were counted."""
    journal = exchange.journal
    assert journal is not None
    return journal.id_count if mode is Mode.EXACT else exchange.timeline.output_tokens
