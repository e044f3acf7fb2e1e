"""One request's life: read, queue, place, send, relay, give back - and again on another replica while nothing was forwarded.

Decides when an attempt may be repeated. Ownership: from `place` on this module owns the lease, and hands it to `router.attempt`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from backends.backend import Backend
from batching.request import Outcome, Rejected, ReplicaId, Request, RequestId, ServiceTier
from batching.ticket import Placed
from config.schema import Config, ModelKind
from router.admission import Admission, EvictedError
from router.attempt import AttemptFailed, Attempts
from router.client import Client, ClientGone
from router.exchange import Exchange
from router.inbound import Inbound
from router.openai.body import Body, parse_object
from router.openai.errors import (
    ApiError,
    from_eviction,
    from_rejection,
    stream_error_event,
    total_timeout,
)
from router.openai.models import near
from router.openai.request import CallSpec, read_call
from router.relay import KeepAlive
from router.report import Report

_MIN_QUEUE_WAIT_S = 1.0
ANONYMOUS = (
    "anonymous"  # everybody, while keys are off: who a call belongs to is read where its body is, in CallSpec.tenant
)


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
        self._tries = Attempts(
            config=config, admission=admission, backends=backends, report=report, on_suspect=on_suspect
        )
        self.configure(config)
        self._admission = admission
        self._report = report
        self._active: set[Exchange] = set()

    def configure(self, config: Config) -> None:
        """Also on reload; requests under way keep what they have read."""
        self.config = config
        self._tries.configure(config)

    @property
    def in_use(self) -> Counter[int]:
        """Attempts under way, by id() of the backend."""
        return self._tries.in_use

    @property
    def active(self) -> int:
        return len(self._active)

    def refused(self, path: str, error: ApiError) -> None:
        self._report.refused(path, error)

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
        finally:
            if timer is not None:
                timer.cancel()
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
        silence = KeepAlive(exchange.client, limits.keepalive_comment_s, exchange.stream_headers)
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
                placed = await self._place(exchange, request)
            except ApiError:
                if before is None:
                    raise
                # No room in time for another try: the engine's failure is the story, not the queue.
                exchange.outcome = Outcome.FAILED
                raise before from None
            exchange.attempts += 1
            if silence is not None:
                silence.begin()
            race = self._tries.race(exchange, body)
            try:
                await self._tries.run(exchange, placed, body, silence, race)
            except AttemptFailed as failed:
                tried = request.avoid | {placed.lease.replica} | race.tried
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

    async def _place(self, exchange: Exchange, request: Request) -> Placed:
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
        return placed

    def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        """Say what went wrong, in the only form that this point of the response still allows."""
        exchange.error = error
        if exchange.outcome is Outcome.COMPLETED:
            exchange.outcome = Outcome.FAILED
        client = exchange.client
        if client.ended:
            return
        if client.started:
            exchange.status = 200
            client.end(stream_error_event(error, client.request_id))
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
            may_hedge=spec.service_tier is not ServiceTier.BATCH,  # nobody watches those
            max_output_tokens=0 if spec.kind is ModelKind.EMBEDDING else spec.max_output_tokens,
            kind=spec.kind,
            tenant=spec.tenant or ANONYMOUS,
            service_tier=spec.service_tier,
            sequences=spec.n,
            deadline_s=now + _queue_wait_s(exchange.inbound.headers, self.config.queue.max_wait_s),
            body_bytes=len(exchange.inbound.body),
            fingerprint=hash(exchange.inbound.body),
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
