"""One request's life: read, queue, place, send, relay, give back - and again on another replica where one does not deliver.

Decides when an attempt may be repeated, and when an answer that has begun goes on elsewhere. Ownership: from `place` on this module owns
the lease, and hands it to `router.attempt`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from backends.alarms import Alarms
from backends.backend import Backend
from batching.bill import Account, Bill
from batching.request import NOWHERE, Outcome, Rejected, ReplicaId, Request, RequestId, ServiceTier
from batching.ticket import Placed
from config.schema import Config, ModelKind
from metrics.overhead import Overhead
from router.admission import Admission, EvictedError
from router.attempt import Attempts
from router.calls import Calls
from router.client import Client, ClientGone
from router.collected import DocumentClient
from router.exchange import Exchange
from router.failed import AttemptFailed
from router.inbound import Inbound
from router.money import ANONYMOUS
from router.moves import Moves
from router.openai.body import Body, parse_object
from router.openai.call_spec import CallSpec
from router.openai.errors import (
    ApiError,
    from_eviction,
    from_rejection,
    internal_error,
    stream_error_event,
    total_timeout,
)
from router.openai.models import near
from router.openai.request import read_call
from router.relay import KeepAlive
from router.report import Report
from router.tenants.tenancy import Tenancy
from router.tracing.tracer import Tracer

_MIN_QUEUE_WAIT_S: Final = 1.0


class Dispatcher:
    """Serves the hot paths; the object the ingress calls."""

    def __init__(
        self,
        *,
        config: Config,
        admission: Admission,
        backends: Mapping[ReplicaId, Backend],
        report: Report,
        overhead: Overhead,
        on_suspect: Callable[[ReplicaId], None],
        tracer: Tracer | None = None,
        tenancy: Tenancy | None = None,
    ) -> None:
        """`tenancy`: what callers may; None: nobody is asked who he is."""
        self._tracer = tracer
        self._tenancy = tenancy
        self._calls = Calls(config)
        self._tries = Attempts(
            calls=self._calls,
            admission=admission,
            backends=backends,
            report=report,
            overhead=overhead,
            on_suspect=on_suspect,
        )
        self._moves = Moves(admission, self._tries.running)
        self.configure(config)
        self._admission = admission
        self._report = report
        self._overhead = overhead
        self._alarms = Alarms()
        self._active: set[Exchange] = set()

    def configure(self, config: Config) -> None:
        """Also on reload; requests under way keep what they have read."""
        self.config = config
        self._calls.configure(config)
        self._moves.configure(config.migration, config.upstream.attempts)

    @property
    def in_use(self) -> Counter[int]:
        """Attempts under way, by id() of the backend."""
        return self._tries.in_use

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def moves(self) -> Moves:
        return self._moves

    def refused(self, path: str, error: ApiError, request_id: str) -> None:
        self._report.refused(path, error, request_id)

    def abort_all(self, error: ApiError) -> None:
        """The drain deadline: whatever still runs is told so and ends."""
        for exchange in tuple(self._active):
            self._abort(exchange, error)

    def _abort(self, exchange: Exchange, error: ApiError) -> None:
        # One whose client has ended has its whole answer: only the engine's tail is still read.
        if exchange.task is not None and not exchange.client.ended:
            exchange.aborted = error
            exchange.task.cancel()

    async def __call__(self, inbound: Inbound, client: Client) -> None:
        exchange = Exchange(inbound=inbound, client=client, task=asyncio.current_task())
        self._active.add(exchange)
        if self._tracer is not None:
            exchange.trace = self._tracer.begin(inbound.headers)
        limit_s = self.config.server.total_timeout_s
        timer = None
        if limit_s is not None:
            timer = asyncio.get_running_loop().call_later(limit_s, self._abort, exchange, total_timeout(limit_s))
        try:
            await self._serve(exchange)
        except ApiError as error:
            self._refuse(exchange, error)
        except ClientGone:
            exchange.outcome = Outcome.CANCELLED
            raise
        except asyncio.CancelledError:
            if exchange.aborted is None or exchange.task is None:
                exchange.outcome = Outcome.CANCELLED
                raise
            exchange.task.uncancel()
            self._refuse(exchange, exchange.aborted)
        except Exception:  # a bug of ours: whoever serves the connection says so to the client
            exchange.outcome, exchange.error = Outcome.FAILED, internal_error()
            exchange.status = exchange.error.status
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._moves.over(exchange)
            self._active.discard(exchange)
            if self._tenancy is not None:
                self._tenancy.leave(exchange)
            self._report.ended(exchange, asyncio.get_running_loop().time())
            if self._tracer is not None:
                self._tracer.ended(exchange)

    async def _serve(self, exchange: Exchange) -> None:
        limits, inbound = self.config.server, exchange.inbound
        whole_s = self._overhead.clock() if inbound.whole_s is None else inbound.whole_s
        body = parse_object(exchange.inbound.body, max_depth=limits.max_json_depth)
        spec = read_call(exchange.inbound.path, body, exchange.inbound.headers)
        caller = exchange.inbound.caller
        if self._tenancy is not None and caller is not None:
            spec = self._tenancy.spec(caller, spec, body.fields)
        if not spec.stream:
            spec = self._calls.collected(spec, body)
        exchange.spec = spec
        self._report.began(exchange)
        assert exchange.labels is not None
        exchange.bill = Bill(Account(*exchange.labels, spec.tenant_class or ANONYMOUS))
        request = self._request(exchange, spec)
        if exchange.trace is not None:
            exchange.trace.fields, exchange.trace.depth = body.fields, self._admission.scheduler.queued
        self._overhead.ingress.observe(self._overhead.clock() - whole_s)
        if self._tenancy is not None and caller is not None:
            exchange.outcome = Outcome.REJECTED  # if it is
            entered = await self._tenancy.enter(caller, request, self._answer_tokens(spec))
            exchange.outcome = Outcome.COMPLETED
            if entered is not None:
                exchange.hold, exchange.limit_headers = entered
        exchange.request = request
        if not spec.stream:
            await self._attempts(exchange, body, None)
            return
        if spec.collected:
            exchange.client = DocumentClient(
                exchange.client, lambda: exchange.document_headers(asyncio.get_running_loop().time())
            )
        exchange.journal = self._calls.journal(body, exchange)
        silence = KeepAlive(exchange.client, limits.keepalive_comment_s, exchange.stream_headers, self._alarms)
        try:
            await self._attempts(exchange, body, silence)
        finally:
            silence.close()
            exchange.move.silence = None  # each knows the other: an ended stream would stay until a full collection

    async def _attempts(self, exchange: Exchange, body: Body, silence: KeepAlive | None) -> None:
        request = exchange.request
        assert request is not None
        before: ApiError | None = None  # why the last attempt failed
        while True:
            try:
                placed = self._moves.prepared(exchange) or await self._place(exchange, request)
            except ApiError:
                if before is None:
                    raise
                # No room in time for another try: the engine's failure is the story, not the queue.
                exchange.outcome = Outcome.FAILED
                raise before from None
            self._placed(exchange, placed)
            if silence is not None:
                silence.begin()
            race = self._tries.race(exchange, body)
            try:
                await self._tries.run(exchange, placed, body, silence, race)
            except AttemptFailed as failed:
                if _is_whole(exchange):
                    return
                request = self._again(exchange, request, failed, frozenset({placed.lease.replica}) | race.tried)
                if not failed.lapsed:
                    before = failed.error
                self._report.phase(exchange, "queued")
                if silence is not None:
                    silence.pause()
            else:
                return

    def _again(
        self, exchange: Exchange, request: Request, failed: AttemptFailed, here: frozenset[ReplicaId]
    ) -> Request:
        """What is placed next; raises the failure where that was the last try. `here`: where it was."""
        if failed.begun:
            return self._moves.go_on(exchange, failed, here)
        if failed.lapsed:
            return request
        tried = request.avoid | here
        left = self._admission.scheduler.replica_ids(request.model) - tried
        if failed.moved:
            return replace(request, avoid=tried if left else NOWHERE)
        exchange.failures += 1
        if not failed.repeatable or not left or exchange.failures >= self.config.upstream.attempts:
            raise failed.error from failed
        # An engine that died does no work twice; one that answered an error has, and a fleet in trouble is not to do all of it twice.
        if failed.spent and not self._admission.scheduler.retry_budget.take():
            self._report.not_repeated(exchange)
            raise failed.error from failed
        return replace(request, avoid=tried)

    async def _place(self, exchange: Exchange, request: Request) -> Placed:
        while True:
            try:
                return await self._admission.place(request)
            except Rejected as rejected:
                if self._moves.may_wait(request, rejected.reason):
                    request = await self._moves.wait(request)
                    continue
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
                if self._moves.may_wait(request, evicted.reason):
                    request = await self._moves.wait(request)
                    continue
                exchange.outcome = Outcome.EVICTED
                raise from_eviction(
                    evicted.reason, evicted.retry_after_s, flex=request.service_tier is ServiceTier.FLEX
                ) from None

    def _placed(self, exchange: Exchange, placed: Placed) -> None:
        exchange.attempts += 1
        exchange.placed = placed
        now = exchange.timeline.placed_s = asyncio.get_running_loop().time()
        waited_s = max(0.0, now - placed.ticket.queued_s)
        exchange.queue_s += waited_s
        self._report.placed(exchange, waited_s)
        if exchange.trace is not None:
            exchange.trace.placed(placed, now)

    def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        """Say what went wrong, in the only form that this point of the response still allows."""
        exchange.error = error
        if exchange.outcome is Outcome.COMPLETED:
            exchange.outcome = Outcome.FAILED
        client = exchange.client
        if client.ended:
            return
        if client.started:
            if exchange.chunks is not None and exchange.aborted is None:
                self._report.interrupted(exchange)
            exchange.status = 200
            client.end(stream_error_event(error, client.request_id))
            return
        exchange.status = error.status
        raise error

    def _answer_tokens(self, spec: CallSpec) -> int:
        """What one choice may take at most, as far as anybody can say; of a model that nobody serves: nothing."""
        if spec.kind is ModelKind.EMBEDDING or spec.model not in self._admission.scheduler.models():
            return 0
        return spec.max_output_tokens or self._admission.scheduler.output_tokens(spec.model, None)

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
            may_hedge=spec.service_tier is not ServiceTier.BATCH,  # nobody watches those
            max_output_tokens=0 if spec.kind is ModelKind.EMBEDDING else spec.max_output_tokens,
            kind=spec.kind,
            tenant=spec.tenant or ANONYMOUS,
            weight=spec.weight,
            service_tier=spec.service_tier,
            sequences=spec.n,
            deadline_s=now + _queue_wait_s(exchange.inbound.headers, self.config.queue.max_wait_s),
            body_bytes=len(exchange.inbound.body),
            fingerprint=hash(exchange.inbound.body),
            bill=exchange.bill,
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


def _is_whole(exchange: Exchange) -> bool:
    """Whether all that an attempt's end left out was the tail: then the answer ends here, and nobody goes on with it."""
    chunks = exchange.chunks
    if chunks is None or not chunks.complete:
        return False
    exchange.status = 200
    exchange.client.end(chunks.end().tail)
    return True
