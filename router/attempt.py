"""One send of a request to one replica, from the call to the last byte; and, where the scheduler says so, a second beside it.

Ownership: from `run` on this module owns the lease of the placement it is given, and of a second one that a race takes; they go
back on every path, cancellation included.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

from backends.backend import Backend, ConnectFailed, EngineCall, EngineReply, PulledReply, UpstreamError
from batching.request import Outcome, ReplicaId
from batching.ticket import Lease, Placed
from config.schema import Config
from router.admission import Admission
from router.client import ClientGone
from router.exchange import Exchange
from router.openai.body import Body
from router.openai.chunks import ChunkFilter, Document
from router.openai.errors import ApiError, upstream_failed, upstream_timeout
from router.openai.request import upstream_body, upstream_fields
from router.openai.usage import Usage
from router.race import Opened, Race, Superseded
from router.relay import (
    KeepAlive,
    Relay,
    RelayFailed,
    drain_tail,
    read_beginning,
    read_document,
    read_error,
    relay_stream,
)
from router.report import Report

# Engine refusals that another replica may not share; the rest (400, 404, ...) are the request's own.
_REPEATABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# Forwarded to engines: tracing context only. Everything else of a client's head stays here (docs/api.md, "Headers").
_PASSED_HEADERS = ("traceparent", "tracestate")


class AttemptFailed(Exception):
    """One replica did not deliver; nothing reached the client. `repeatable`: another may."""

    def __init__(self, error: ApiError, *, repeatable: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.repeatable = repeatable


class Attempts:
    """`in_use`: attempts under way, by id() of the backend: a retired one closes after its last."""

    def __init__(
        self,
        *,
        config: Config,
        admission: Admission,
        backends: Mapping[ReplicaId, Backend],
        report: Report,
        on_suspect: Callable[[ReplicaId], None],
    ) -> None:
        self.configure(config)
        self._admission = admission
        self._backends = backends
        self._report = report
        self._on_suspect = on_suspect
        self.in_use: Counter[int] = Counter()

    def configure(self, config: Config) -> None:
        """Also on reload; requests under way keep what they have read."""
        self._trusted = config.server.trusted
        self._orders_by_priority = frozenset(ReplicaId(r.name) for r in config.replicas if r.priority_scheduling)

    def race(self, exchange: Exchange, body: Body) -> Race:
        """For one placement of a request."""

        async def open_second(placed: Placed) -> Opened | None:
            return await self._open_second(exchange, placed, body)

        return Race(
            open_second=open_second,
            discard=self._discard,
            give_back=lambda placed: self._admission.finish(placed.lease, outcome=Outcome.CANCELLED),
            count=lambda outcome: self._report.hedged(exchange, outcome),
        )

    async def run(self, exchange: Exchange, placed: Placed, body: Body, silence: KeepAlive | None, race: Race) -> None:
        """To the answer's end, by whichever replica; raises `AttemptFailed` where none had anything."""
        if placed.lease.request.may_hedge:
            self._admission.offer_second(placed.lease, race.offer)
        try:
            try:
                async with race:
                    await self._attempt(exchange, placed.lease, body, silence, race)
            except Superseded:
                pass
            except AttemptFailed:
                if not await race.rescued():
                    raise
            else:
                return
            second = race.take()
            exchange.placed = second.placed
            exchange.attempts += 1
            self._report.routed(exchange)
            await self._attempt(exchange, second.placed.lease, body, silence, race, second)
        finally:
            await race.close()

    async def _attempt(
        self,
        exchange: Exchange,
        lease: Lease,
        body: Body,
        silence: KeepAlive | None,
        race: Race,
        opened: Opened | None = None,
    ) -> None:
        """One send, or what is left of one that is `opened`; the lease goes back whatever happens."""
        outcome, attempt = Outcome.FAILED, "ok"
        reply = None if opened is None else opened.reply
        backend = self._backends.get(lease.replica) if opened is None else opened.backend
        self.in_use[id(backend)] += opened is None
        claim = race.claim if opened is None else _nothing
        try:
            if reply is None:
                reply = await self._send(exchange, backend, lease, body)
            if silence is None:
                document = opened.document if opened is not None else None
                await self._document(exchange, lease, reply, document, claim)
            else:
                await self._stream(exchange, lease, reply, silence, claim)
            outcome = Outcome.COMPLETED
        except UpstreamError as error:
            attempt = error.outcome
            self._on_suspect(lease.replica)
            timed_out = attempt == "timeout"
            raise AttemptFailed(
                upstream_timeout() if timed_out else upstream_failed(), repeatable=not timed_out
            ) from error
        except RelayFailed as failed:
            attempt = failed.outcome
            if failed.forwarded:
                self._report.interrupted(exchange)
                raise failed.error from failed
            if attempt == "timeout":  # the head had come, and then nothing
                self._on_suspect(lease.replica)
                raise AttemptFailed(upstream_timeout(), repeatable=False) from failed
            raise AttemptFailed(failed.error, repeatable=failed.repeatable) from failed
        except AttemptFailed as failed:
            attempt = _refusal(failed)
            raise
        except (asyncio.CancelledError, ClientGone, Superseded):
            outcome, attempt = Outcome.CANCELLED, "hedged" if race.superseded and opened is None else "cancelled"
            raise
        finally:
            self._give_back(exchange, lease, outcome)
            self._report.attempted(exchange, attempt)
            await self._let_go(backend, reply)

    async def _open_second(self, exchange: Exchange, placed: Placed, body: Body) -> Opened | None:
        """As far as its first token, or the whole document; None: it failed, and nothing is left of it."""
        lease, chat = placed.lease, exchange.endpoint == "chat"
        outcome, attempt = Outcome.FAILED, "error"
        reply: EngineReply | None = None
        opened: Opened | None = None
        backend = self._backends.get(lease.replica)
        self.in_use[id(backend)] += 1
        try:
            reply = await self._send(exchange, backend, lease, body)
            assert backend is not None
            if lease.request.streaming:
                beginning = await read_beginning(reply, _chunks(exchange))
                opened = Opened(placed, backend, _Resumed(reply, *beginning), None)
            else:
                opened = Opened(placed, backend, reply, await read_document(reply, chat=chat))
        except UpstreamError as error:
            attempt = error.outcome
            self._on_suspect(lease.replica)
        except RelayFailed as failed:
            attempt = failed.outcome
        except AttemptFailed as failed:
            attempt = _refusal(failed)
        except asyncio.CancelledError:
            outcome, attempt = Outcome.CANCELLED, "hedged"
            raise
        finally:
            if opened is None:
                self._admission.finish(lease, outcome=outcome)
                self._report.second_ended(lease.replica, attempt)
                await self._let_go(backend, reply)
        return opened

    async def _discard(self, opened: Opened) -> None:
        """It had something, and nobody wants it any more."""
        self._admission.finish(opened.placed.lease, outcome=Outcome.CANCELLED)
        self._report.second_ended(opened.placed.lease.replica, "cancelled")
        await self._let_go(opened.backend, opened.reply)

    async def _let_go(self, backend: Backend | None, reply: EngineReply | None) -> None:
        try:
            if reply is not None:
                await reply.aclose()
        finally:
            self.in_use[id(backend)] -= 1

    def _give_back(self, exchange: Exchange, lease: Lease, outcome: Outcome) -> None:
        usage = exchange.usage or Usage()
        self._admission.finish(
            lease,
            outcome=outcome,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.completion_tokens
            if usage.completion_tokens is not None
            else exchange.timeline.output_tokens,
        )

    async def _send(self, exchange: Exchange, backend: Backend | None, lease: Lease, body: Body) -> EngineReply:
        if backend is None:
            raise ConnectFailed("the replica was removed as the request was placed")
        spec = exchange.spec
        assert spec is not None
        self._report.phase(exchange, "dispatched")
        priority_ok = lease.replica in self._orders_by_priority
        trusted = self._trusted
        call = EngineCall(
            request_id=exchange.inbound.request_id,
            path=exchange.inbound.path,
            body=upstream_body(body, spec, trusted=trusted, priority_ok=priority_ok),
            fields=upstream_fields(body, spec, trusted=trusted, priority_ok=priority_ok),
            stream=spec.stream,
            headers={name: value for name in _PASSED_HEADERS if (value := exchange.inbound.headers.get(name))},
        )
        reply = await backend.send(call)
        if reply.status >= 400:
            try:
                error = await read_error(reply)
            finally:
                await reply.aclose()
            raise AttemptFailed(error, repeatable=reply.status in _REPEATABLE_STATUS)
        return reply

    async def _document(
        self, exchange: Exchange, lease: Lease, reply: EngineReply, read: Document | None, claim: Callable[[], None]
    ) -> None:
        document = read or await read_document(reply, chat=exchange.endpoint == "chat")
        claim()
        loop = asyncio.get_running_loop()
        exchange.usage = document.usage
        exchange.timeline.first_token_s = loop.time()
        # Engine and ledger are free now; the client may take its time to read.
        self._give_back(exchange, lease, Outcome.COMPLETED)
        exchange.status = 200
        exchange.client.respond(200, document.body, exchange.document_headers(loop.time()))

    async def _stream(
        self, exchange: Exchange, lease: Lease, reply: EngineReply, silence: KeepAlive, claim: Callable[[], None]
    ) -> None:
        chunks = _chunks(exchange)
        timeline = exchange.timeline
        meters = exchange.meters
        assert meters is not None, "placed before it is sent"

        def on_first(now: float) -> None:
            self._report.phase(exchange, "streaming")
            meters.observe_ttft(now - exchange.inbound.received_s)
            self._admission.first_token(lease)

        timeline.first_token_s = timeline.last_token_s = None  # of an attempt before
        timeline.output_tokens = 0
        relay = Relay(
            exchange.client,
            chunks,
            timeline,
            gaps=meters.gaps,
            headers=exchange.stream_headers,
            begins=claim,
            on_first=on_first,
            on_step=lambda total: self._admission.tokens(lease, total),
            silence=silence,
        )
        try:
            tail = await relay_stream(reply, relay, chunks)
        finally:
            exchange.usage = chunks.usage
        self._give_back(exchange, lease, Outcome.COMPLETED)
        exchange.status = 200
        exchange.client.end(tail)
        await drain_tail(reply)


class _Resumed(PulledReply):
    """A reply whose beginning was read already: it is given once more, then the rest."""

    def __init__(self, reply: EngineReply, beginning: list[bytes], rest: AsyncIterator[bytes]) -> None:
        self.status = reply.status
        self.content_type = reply.content_type
        self.headers = reply.headers
        self._reply = reply
        self._beginning = beginning
        self._rest = rest

    async def body(self) -> AsyncIterator[bytes]:
        while self._beginning:
            yield self._beginning.pop(0)
        async for data in self._rest:
            yield data

    async def aclose(self) -> None:
        await self._reply.aclose()


def _chunks(exchange: Exchange) -> ChunkFilter:
    spec = exchange.spec
    assert spec is not None
    return ChunkFilter(strip_usage=spec.strip_usage, expected_choices=spec.n, chat=exchange.endpoint == "chat")


def _refusal(failed: AttemptFailed) -> str:
    """As a label."""
    return "rejected" if failed.error.status < 500 or failed.error.status == 503 else "5xx"


def _nothing() -> None:
    """There is nobody to claim anything from."""
