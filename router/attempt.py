"""One send of a request to one replica, from the call to the last byte; and, where the scheduler says so, a second beside it.

Ownership: from `run` on this module owns the lease of the placement it is given, and of a second one that a race takes; they go
back on every path, cancellation included.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from backends.backend import Backend, ConnectFailed, EngineReply, UpstreamError
from batching.request import Outcome, ReplicaId
from batching.ticket import Lease, Placed
from metrics.overhead import Overhead
from router.admission import Admission, LapsedError
from router.calls import Calls, CannotGoOn
from router.client import ClientGone
from router.exchange import Exchange
from router.failed import AttemptFailed, moved
from router.heard import Heard
from router.openai.body import Body
from router.openai.chunks import Document
from router.openai.errors import ApiError, upstream_failed, upstream_lost, upstream_timeout
from router.openai.journal import Mode
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
from router.resumed import Resumed

log = logging.getLogger("penstock.move")

_JSON: Final = "application/json"
# Engine refusals that another replica may not share; the rest (400, 404, ...) are the request's own.
_REPEATABLE_STATUS: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class Attempts:
    """`in_use`: attempts under way, by id() of the backend: a retired one closes after its last. `running`: who may be cut, and where."""

    def __init__(
        self,
        *,
        calls: Calls,
        admission: Admission,
        backends: Mapping[ReplicaId, Backend],
        report: Report,
        overhead: Overhead,
        on_suspect: Callable[[ReplicaId], None],
    ) -> None:
        self._calls = calls
        self._admission = admission
        self._backends = backends
        self._report = report
        self._overhead = overhead
        self._on_suspect = on_suspect
        self.in_use: Counter[int] = Counter()
        self.running: defaultdict[ReplicaId, set[Exchange]] = defaultdict(set)

    def race(self, exchange: Exchange, body: Body) -> Race:
        """For one placement of a request."""
        return Race(_Second(self, exchange, body, self._report))

    async def run(self, exchange: Exchange, placed: Placed, body: Body, silence: KeepAlive | None, race: Race) -> None:
        """To the answer's end, by whichever replica; raises `AttemptFailed` where none had anything."""
        if placed.lease.request.may_hedge:
            self._admission.offer_second(placed.lease, race.offer)
        try:
            try:
                async with race:
                    await self._attempt(exchange, placed, body, silence, race)
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
            await self._attempt(exchange, second.placed, body, silence, race, second)
        finally:
            await race.close()

    async def _attempt(
        self,
        exchange: Exchange,
        placed: Placed,
        body: Body,
        silence: KeepAlive | None,
        race: Race,
        opened: Opened | None = None,
    ) -> None:
        """One send, or what is left of one that is `opened`; the lease goes back whatever happens."""
        lease, outcome, attempt = placed.lease, Outcome.FAILED, "ok"
        reply = None if opened is None else opened.reply
        backend = self._backends.get(lease.replica) if opened is None else opened.backend
        self.in_use[id(backend)] += opened is None
        claim = race.claim if opened is None else lambda: None
        exchange.engine_usage, exchange.move.heard_before = None, exchange.timeline.output_tokens
        cut = asyncio.timeout(None)
        try:
            async with cut:
                exchange.move.cut = cut
                self.running[lease.replica].add(exchange)
                if reply is None:
                    reply = await self._send(exchange, backend, placed, body)
                if silence is None or (reply.content_type.startswith(_JSON) and exchange.collected):
                    document = opened.document if opened is not None else None
                    await self._document(exchange, lease, reply, document, claim)
                else:
                    await self._stream(exchange, lease, reply, body, silence, claim)
            outcome = Outcome.COMPLETED
        except TimeoutError:
            if not cut.expired():
                raise
            attempt = "moved"
            raise moved(exchange) from None
        except UpstreamError as error:
            attempt = error.outcome
            raise self._unanswered(exchange, lease, error) from error
        except RelayFailed as failed:
            attempt = failed.outcome
            raise self._broken(exchange, lease, failed) from failed
        except AttemptFailed as refused:
            attempt = refused.label
            raise
        except (asyncio.CancelledError, ClientGone, Superseded):
            outcome, attempt = Outcome.CANCELLED, "hedged" if race.superseded and opened is None else "cancelled"
            raise
        finally:
            self._stays(exchange, lease)
            self._give_back(exchange, lease, outcome)
            self._report.attempted(exchange, attempt)
            if exchange.trace is not None:
                exchange.trace.ended(lease, asyncio.get_running_loop().time(), attempt)
            self._recomputed(exchange)
            await self._let_go(backend, reply)

    def _recomputed(self, exchange: Exchange) -> None:
        usage = exchange.engine_usage
        if exchange.move.count and usage is not None and usage.prompt_tokens is not None:
            self._report.recomputed(exchange, usage.prompt_tokens - (usage.cached_tokens or 0))

    def _stays(self, exchange: Exchange, lease: Lease) -> None:
        """Nothing is left to be moved from there."""
        exchange.move.cut = None
        self.running[lease.replica].discard(exchange)

    def _unanswered(self, exchange: Exchange, lease: Lease, error: UpstreamError) -> AttemptFailed:
        """The upstream gave no answer."""
        self._on_suspect(lease.replica)
        timed_out, begun = error.outcome == "timeout", exchange.chunks is not None
        return AttemptFailed(
            upstream_timeout() if timed_out else upstream_failed(),
            repeatable=not timed_out or begun,
            begun=begun,
            spent=False,
            reached=not isinstance(error, ConnectFailed),
        )

    def _broken(self, exchange: Exchange, lease: Lease, failed: RelayFailed) -> AttemptFailed:
        """The upstream's answer was no whole one."""
        if failed.lost:
            self._on_suspect(lease.replica)
        if exchange.chunks is not None:
            again = failed.error.status in _REPEATABLE_STATUS
            return AttemptFailed(failed.error, repeatable=again, begun=True, spent=not failed.lost)
        if failed.outcome == "timeout":  # the head had come, and then nothing
            return AttemptFailed(upstream_timeout(), repeatable=False)
        return AttemptFailed(failed.error, repeatable=failed.repeatable, spent=not failed.lost)

    async def open_second(self, exchange: Exchange, placed: Placed, body: Body) -> Opened | None:
        """As far as its first token, or the whole document; None: it failed, and nothing is left of it."""
        lease, chat = placed.lease, exchange.endpoint == "chat"
        outcome, attempt = Outcome.FAILED, "error"
        reply: EngineReply | None = None
        opened: Opened | None = None
        backend = self._backends.get(lease.replica)
        self.in_use[id(backend)] += 1
        if exchange.trace is not None:
            exchange.trace.placed(placed, asyncio.get_running_loop().time())
        try:
            reply = await self._send(exchange, backend, placed, body)
            assert backend is not None
            if lease.request.streaming:
                beginning = await read_beginning(reply, self._calls.new_filter(exchange))
                opened = Opened(placed, backend, Resumed(reply, *beginning), None)
            else:
                opened = Opened(placed, backend, reply, await read_document(reply, chat=chat))
        except UpstreamError as error:
            attempt = error.outcome
            self._on_suspect(lease.replica)
        except RelayFailed as failed:
            attempt = failed.outcome
        except AttemptFailed as refused:
            attempt = refused.label
        except asyncio.CancelledError:
            outcome, attempt = Outcome.CANCELLED, "hedged"
            raise
        finally:
            if opened is None:
                self._admission.finish(lease, outcome=outcome)
                self._report.second_ended(lease.replica, attempt)
                if exchange.trace is not None:
                    exchange.trace.ended(lease, asyncio.get_running_loop().time(), attempt)
                await self._let_go(backend, reply)
        return opened

    async def discard(self, opened: Opened) -> None:
        """It had something, and nobody wants it any more."""
        self.called_off(opened.placed)
        self._report.second_ended(opened.placed.lease.replica, "cancelled")
        await self._let_go(opened.backend, opened.reply)

    def called_off(self, placed: Placed) -> None:
        """Nothing came of it, or nothing that is wanted."""
        self._admission.finish(placed.lease, outcome=Outcome.CANCELLED)

    async def _let_go(self, backend: Backend | None, reply: EngineReply | None) -> None:
        try:
            if reply is not None:
                await reply.aclose()
        finally:
            self.in_use[id(backend)] -= 1

    def _give_back(self, exchange: Exchange, lease: Lease, outcome: Outcome) -> None:
        usage = exchange.engine_usage or Usage()
        said = exchange.timeline.output_tokens - exchange.move.heard_before
        self._admission.finish(
            lease,
            outcome=outcome,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=said if usage.completion_tokens is None else usage.completion_tokens,
        )

    async def _send(self, exchange: Exchange, backend: Backend | None, placed: Placed, body: Body) -> EngineReply:
        if backend is None:
            raise ConnectFailed("the replica was removed as the request was placed")
        spec = exchange.spec
        assert spec is not None
        self._report.phase(exchange, "dispatched")
        try:
            call = self._calls.call(exchange, placed.lease, body, partial(self._admission.must_hold, placed))
        except CannotGoOn:
            raise AttemptFailed(upstream_lost(), repeatable=False, begun=True, spent=False) from None
        try:
            reply = await backend.send(call)
        except LapsedError:
            raise moved(exchange, reached=False) from None
        if reply.status >= 400:
            try:
                error = await read_error(reply)
            finally:
                await reply.aclose()
            raise self._refused(exchange, error)
        return reply

    def _refused(self, exchange: Exchange, error: ApiError) -> AttemptFailed:
        """An engine's own words, unless it is to go on with what others have begun: then they are about our request."""
        repeatable = error.status in _REPEATABLE_STATUS
        if exchange.chunks is None:
            return AttemptFailed(error, repeatable=repeatable)
        if exchange.move.mode is Mode.EXACT and not repeatable and exchange.journal is not None:
            exchange.journal.no_ids()  # it will not have them
            repeatable = True
        log.warning("a request to go on (%s) was refused: %s %s", exchange.move.mode, error.message, error.detail)
        return AttemptFailed(upstream_lost(), repeatable=repeatable, begun=True)

    async def _document(
        self, exchange: Exchange, lease: Lease, reply: EngineReply, read: Document | None, claim: Callable[[], None]
    ) -> None:
        document = read or await read_document(reply, chat=exchange.endpoint == "chat")
        claim()
        loop = asyncio.get_running_loop()
        exchange.document, exchange.usage, exchange.engine_usage = document, document.usage, document.usage
        exchange.timeline.first_token_s = loop.time()
        # Engine and ledger are free now; the client may take its time to read.
        self._stays(exchange, lease)
        self._give_back(exchange, lease, Outcome.COMPLETED)
        exchange.status = 200
        exchange.client.respond(200, document.body, exchange.document_headers(loop.time()))

    async def _stream(
        self,
        exchange: Exchange,
        lease: Lease,
        reply: EngineReply,
        body: Body,
        silence: KeepAlive,
        claim: Callable[[], None],
    ) -> None:
        move, timeline, meters = exchange.move, exchange.timeline, exchange.meters
        assert meters is not None, "placed before it is sent"
        chunks = self._calls.filter(exchange, lease.replica, body)
        if exchange.chunks is None:
            timeline.first_token_s = timeline.last_token_s = None  # of an attempt before
            timeline.output_tokens = move.heard_before = 0

        relay = Relay(
            exchange.client,
            chunks,
            timeline,
            gaps=meters.gaps,
            overhead=self._overhead,
            begins=claim,
            heard=Heard(exchange, lease, meters, self._report, self._admission),
            silence=silence,
            before=timeline.output_tokens,
            forwarded=exchange.chunks is not None,
        )
        move.silence = silence
        try:
            tail = await relay_stream(reply, relay, chunks)
        finally:
            if relay.forwarded:
                exchange.chunks = chunks
            exchange.usage, exchange.engine_usage = chunks.usage, chunks.engine_usage
        self._stays(exchange, lease)
        self._give_back(exchange, lease, Outcome.COMPLETED)
        exchange.status = 200
        exchange.client.end(tail)
        await drain_tail(reply, relay)


class _Second:
    """What a race wants of a second attempt, for one request."""

    __slots__ = ("_attempts", "_body", "_exchange", "_report")

    def __init__(self, attempts: Attempts, exchange: Exchange, body: Body, report: Report) -> None:
        self._report = report
        self._attempts = attempts
        self._exchange = exchange
        self._body = body

    async def open(self, placed: Placed) -> Opened | None:
        return await self._attempts.open_second(self._exchange, placed, self._body)

    async def discard(self, opened: Opened) -> None:
        await self._attempts.discard(opened)

    def give_back(self, placed: Placed) -> None:
        self._attempts.called_off(placed)

    def count(self, outcome: str) -> None:
        self._report.hedged(self._exchange, outcome)
