"""One request's life: read, queue, place, send, relay, give back - and again on another replica while nothing was forwarded.

Decides when an attempt may be repeated. Ownership: between `place` and `finish` this module owns the lease; `_attempt` gives it
back on every path, cancellation included.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from backends.backend import Backend, ConnectFailed, EngineCall, EngineReply, UpstreamError
from batching.request import Outcome, Rejected, ReplicaId, Request, RequestId, ServiceTier
from batching.ticket import Lease
from config.schema import Config, ModelKind
from router.admission import Admission, EvictedError
from router.client import Client, ClientGone
from router.exchange import Exchange
from router.ingress import Inbound
from router.openai.body import Body, parse_object
from router.openai.chunks import ChunkFilter
from router.openai.errors import (
    ApiError,
    from_eviction,
    from_rejection,
    stream_error_event,
    upstream_failed,
    upstream_timeout,
)
from router.openai.models import near
from router.openai.request import CallSpec, read_call, upstream_body, upstream_fields
from router.openai.usage import Usage
from router.relay import KeepAlive, RelayFailed, drain_tail, read_document, read_error, relay_stream
from router.report import Report

# Engine refusals that another replica may not share; the rest (400, 404, ...) are the request's own.
_REPEATABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# Forwarded to engines: tracing context only. Everything else of a client's head stays here (docs/api.md, "Headers").
_PASSED_HEADERS = ("traceparent", "tracestate")
_MIN_QUEUE_WAIT_S = 1.0
ANONYMOUS = (
    "anonymous"  # everybody, while keys are off: who a call belongs to is read where its body is, in CallSpec.tenant
)


class AttemptFailed(Exception):
    """One replica did not deliver; nothing reached the client. `repeatable`: another may."""

    def __init__(self, error: ApiError, *, repeatable: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.repeatable = repeatable


class Dispatcher:
    """Serves the hot paths; the object the ingress calls."""

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
        self._active: set[Exchange] = set()
        self.in_use: Counter[int] = (
            Counter()
        )  # attempts under way, by id() of the backend: a retired one closes after its last

    def configure(self, config: Config) -> None:
        """Also on reload; requests under way keep what they have read."""
        self.config = config
        self._orders_by_priority = frozenset(ReplicaId(r.name) for r in config.replicas if r.priority_scheduling)

    @property
    def active(self) -> int:
        return len(self._active)

    def refused(self, path: str, error: ApiError) -> None:
        self._report.refused(path, error)

    def abort_all(self, error: ApiError) -> None:
        """The drain deadline: whatever still runs is told so and ends."""
        for exchange in tuple(self._active):
            exchange.aborted = error
            if exchange.task is not None:
                exchange.task.cancel()

    async def __call__(self, inbound: Inbound, client: Client) -> None:
        exchange = Exchange(inbound=inbound, client=client, task=asyncio.current_task())
        self._active.add(exchange)
        try:
            await self._serve(exchange)
        except ApiError as error:
            await self._refuse(exchange, error)
        except ClientGone:
            exchange.outcome = Outcome.CANCELLED
            raise
        except asyncio.CancelledError:
            if exchange.aborted is None or exchange.task is None:
                exchange.outcome = Outcome.CANCELLED
                raise
            exchange.task.uncancel()
            await self._refuse(exchange, exchange.aborted)
        finally:
            self._active.discard(exchange)
            self._report.ended(exchange, asyncio.get_running_loop().time())

    async def _serve(self, exchange: Exchange) -> None:
        limits = self.config.server
        body = parse_object(exchange.inbound.body, max_depth=limits.max_json_depth)
        spec = exchange.spec = read_call(exchange.inbound.path, body, exchange.inbound.headers)
        exchange.request = self._request(exchange, spec)
        self._report.began(exchange)
        if not spec.stream:
            await self._attempts(exchange, body, None)
            return
        silence = KeepAlive(
            exchange.client, limits.keepalive_comment_s, exchange.inbound.spawn, exchange.stream_headers
        )
        try:
            await self._attempts(exchange, body, silence)
        finally:
            silence.close()

    async def _attempts(self, exchange: Exchange, body: Body, silence: KeepAlive | None) -> None:
        request = exchange.request
        assert request is not None
        before: ApiError | None = None  # why the last attempt failed
        while True:
            try:
                lease = await self._place(exchange, request)
            except ApiError:
                if before is None:
                    raise
                # No room in time for another try: the engine's failure is the story, not the queue.
                exchange.outcome = Outcome.FAILED
                raise before from None
            exchange.attempts += 1
            if silence is not None:
                silence.begin()
            try:
                await self._attempt(exchange, lease, body, silence)
            except AttemptFailed as failed:
                tried = request.avoid | {lease.replica}
                left = self._admission.scheduler.replica_ids(request.model) - tried
                if not failed.repeatable or not left or exchange.attempts >= self.config.upstream.attempts:
                    raise failed.error from failed
                before = failed.error
                request = _again(request, tried)
                self._report.phase(exchange, "queued")
                if silence is not None:
                    silence.pause()
            else:
                return

    async def _place(self, exchange: Exchange, request: Request) -> Lease:
        loop = asyncio.get_running_loop()
        queued_s = loop.time()
        try:
            placed = await self._admission.place(request)
        except Rejected as rejected:
            exchange.outcome = Outcome.REJECTED
            known = self._admission.scheduler.models()
            raise from_rejection(
                rejected,
                model=request.model,
                near=near(request.model, known),
                flex=request.service_tier is ServiceTier.FLEX,
                prompt_tokens=request.prompt_tokens,
            ) from None
        except EvictedError as evicted:
            exchange.outcome = Outcome.EVICTED
            raise from_eviction(
                evicted.reason, evicted.retry_after_s, flex=request.service_tier is ServiceTier.FLEX
            ) from None
        exchange.placed = placed
        exchange.timeline.placed_s = loop.time()
        waited_s = exchange.timeline.placed_s - queued_s
        exchange.queue_s += waited_s
        self._report.placed(exchange, waited_s)
        return placed.lease

    async def _attempt(self, exchange: Exchange, lease: Lease, body: Body, silence: KeepAlive | None) -> None:
        """One send; the lease goes back whatever happens."""
        outcome, attempt = Outcome.FAILED, "ok"
        reply: EngineReply | None = None
        backend = self._backends.get(lease.replica)
        self.in_use[id(backend)] += 1
        try:
            if backend is None:
                raise ConnectFailed("the replica was removed as the request was placed")
            reply = await self._send(exchange, backend, lease, body)
            if silence is None:
                await self._document(exchange, lease, reply)
            else:
                await self._stream(exchange, lease, reply, silence)
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
            attempt = "rejected" if failed.error.status < 500 or failed.error.status == 503 else "5xx"
            raise
        except (asyncio.CancelledError, ClientGone):
            outcome, attempt = Outcome.CANCELLED, "cancelled"
            raise
        finally:
            self._give_back(exchange, lease, outcome)
            self._report.attempted(exchange, attempt)
            if reply is not None:
                await reply.aclose()
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

    async def _send(self, exchange: Exchange, backend: Backend, lease: Lease, body: Body) -> EngineReply:
        spec = exchange.spec
        assert spec is not None
        self._report.phase(exchange, "dispatched")
        priority_ok = lease.replica in self._orders_by_priority
        trusted = self.config.server.trusted
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

    async def _document(self, exchange: Exchange, lease: Lease, reply: EngineReply) -> None:
        document = await read_document(reply, chat=exchange.endpoint == "chat")
        loop = asyncio.get_running_loop()
        exchange.usage = document.usage
        exchange.timeline.first_token_s = loop.time()
        # Engine and ledger are free now; the client may take its time to read.
        self._give_back(exchange, lease, Outcome.COMPLETED)
        exchange.status = 200
        await exchange.client.respond(200, document.body, exchange.document_headers(loop.time()))

    async def _stream(self, exchange: Exchange, lease: Lease, reply: EngineReply, silence: KeepAlive) -> None:
        spec = exchange.spec
        assert spec is not None
        chunks = ChunkFilter(strip_usage=spec.strip_usage, expected_choices=spec.n, chat=exchange.endpoint == "chat")
        loop = asyncio.get_running_loop()
        timeline = exchange.timeline

        def progress(tokens: int) -> None:
            if timeline.output_tokens == 0:
                self._report.phase(exchange, "streaming")
                self._admission.first_token(lease)
            self._report.tokens(exchange, tokens, loop.time())
            self._admission.tokens(lease, timeline.output_tokens)

        timeline.output_tokens = 0
        try:
            tail = await relay_stream(
                reply, exchange.client, chunks, headers=exchange.stream_headers, progress=progress, silence=silence
            )
        finally:
            exchange.usage = chunks.usage
        self._give_back(exchange, lease, Outcome.COMPLETED)
        exchange.status = 200
        await exchange.client.end(tail)
        await drain_tail(reply)

    async def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        """Say what went wrong, in the only form that this point of the response still allows."""
        exchange.error = error
        if exchange.outcome is Outcome.COMPLETED:
            exchange.outcome = Outcome.FAILED
        client = exchange.client
        if client.ended:
            return
        if client.started:
            exchange.status = 200
            await client.end(stream_error_event(error, client.request_id))
            return
        exchange.status = error.status
        raise error

    def _request(self, exchange: Exchange, spec: CallSpec) -> Request:
        estimate = self._admission.scheduler.prompt_tokens
        now = exchange.timeline.queued_s = asyncio.get_running_loop().time()
        exact = spec.prompt_token_count
        chunk = spec.prefix_chunk_tokens
        return Request(
            id=RequestId(exchange.inbound.request_id),
            model=spec.model,
            arrived_s=now,
            prompt_tokens=exact if exact is not None else estimate(spec.model, spec.prompt_chars),
            prompt_chars=spec.prompt_chars if exact is None else None,
            streaming=spec.stream,
            max_output_tokens=0 if spec.kind is ModelKind.EMBEDDING else spec.max_output_tokens,
            kind=spec.kind,
            tenant=spec.tenant or ANONYMOUS,
            service_tier=spec.service_tier,
            sequences=spec.n,
            deadline_s=now + _queue_wait_s(exchange.inbound.headers, self.config.queue.max_wait_s),
            body_bytes=len(exchange.inbound.body),
            prefix_hashes=spec.prefix_chunks,
            prefix_chunk_tokens=chunk if chunk is not None else estimate(spec.model, spec.prefix_chunk_chars),
        )


def _queue_wait_s(headers: Mapping[str, str], limit_s: float) -> float:
    """No longer than the client itself will wait: OpenAI's SDKs tell their read timeout."""
    told = headers.get("x-stainless-read-timeout", "")
    try:
        return max(_MIN_QUEUE_WAIT_S, min(limit_s, float(told)))
    except ValueError:
        return limit_s


def _again(request: Request, tried: frozenset[ReplicaId]) -> Request:
    """The same request, back in the queue with its first deadline, for another replica."""
    return replace(request, avoid=tried)
