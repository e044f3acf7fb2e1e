"""Turns what happened to a request into metrics at its end, and has the log line written; decides nothing.

Label values are bounded: models by `router.model_labels`, the rest by enums.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from batching.request import Outcome, ReplicaId
from batching.scheduler import Scheduler
from metrics.catalog import Metrics
from metrics.handles import Children, HandleCache, StreamHandles, TokenKind, TokenSource
from metrics.labels import OTHER
from router.exchange import ENDPOINTS, Exchange
from router.model_labels import ModelLabels
from router.openai.errors import ApiError, Case
from router.openai.journal import Mode
from router.request_log import RequestLog

_QUEUE_OUTCOME: Final = {
    Case.OVERLOADED: "shed_capacity",
    Case.FLEX_SHED: "shed_capacity",
    Case.QUEUE_TIMEOUT: "expired",
    Case.DRAINING: "drained",
    Case.NO_CAPACITY: "no_replica",
    Case.UPSTREAM_TIMEOUT: "expired",  # server.total_timeout_s
}
# OpenAI's, and what engines add; whatever else one says is `other`.
_REASONS: Final = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter", "repetition"})
CLIENT_CLOSED: Final = 499  # a label, never sent: the client has gone


class Wait(NamedTuple):
    """For a first token, in seconds."""

    seconds: float
    predicted_s: float


class Report:
    """Called by the dispatcher at each turn of a request's life."""

    def __init__(
        self,
        metrics: Metrics,
        scheduler: Scheduler,
        models: ModelLabels,
        gpu_of: Callable[[ReplicaId], str],
        log: RequestLog,
        on_attempt: Callable[[Exchange], None] = lambda _exchange: None,
        on_outcome: Callable[[ReplicaId, str, Wait | None], None] = lambda _replica, _outcome, _wait: None,
        on_ended: Callable[[Exchange], None] = lambda _exchange: None,
    ) -> None:
        """Told, too, of each attempt's end: `on_attempt` of those that count for the client, `on_outcome` of all; `on_ended` of requests'."""
        self._on_attempt = on_attempt
        self._on_outcome = on_outcome
        self._on_ended = on_ended
        self._metrics = metrics
        self._scheduler = scheduler
        self._models = models
        self._gpu_of = gpu_of
        self._log = log
        self._handles = HandleCache(metrics)
        self._requests = Children(metrics.requests_total.labels)
        self._phases = Children(metrics.requests_in_flight.labels)
        self._waits = Children(metrics.queue_wait_seconds.labels)
        self._routed = Children(metrics.routing_decisions_total.labels)
        self._attempts = Children(metrics.upstream_attempts_total.labels)
        self._durations = Children(metrics.request_duration_seconds.labels)
        self._reasons = Children(metrics.finish_reasons_total.labels)

    def forget(self, replica: str) -> None:
        """Its series are no more: none of them is to be held on to."""
        self._handles.forget(replica)
        for children in (self._routed, self._attempts, self._durations):
            children.forget(replica)

    def refused(self, path: str, error: ApiError, request_id: str) -> None:
        """It ended before it was read."""
        self._log.refused(request_id, path, error)
        self._requests.get(ENDPOINTS[path], OTHER, "default", str(error.status), error.label).inc()

    def began(self, exchange: Exchange) -> None:
        """It was read: from now on it has a model and a tier."""
        spec = exchange.spec
        assert spec is not None
        model = self._models.of(spec.model)
        exchange.labels = (model, spec.service_tier.label)
        self._phases.get(*exchange.labels, exchange.phase).inc()
        again = exchange.inbound.headers.get("x-stainless-retry-count", "")  # OpenAI's SDKs count from 0
        if again.isdigit() and again.strip("0"):
            self._metrics.client_retries_total.labels(model).inc()

    def phase(self, exchange: Exchange, phase: str) -> None:
        labels = self._class(exchange)
        self._phases.get(*labels, exchange.phase).dec()
        exchange.phase = phase
        self._phases.get(*labels, phase).inc()

    def placed(self, exchange: Exchange, waited_s: float) -> None:
        model, tier = self._class(exchange)
        self._waits.get(model, tier, "dispatched").observe(waited_s)
        self.routed(exchange)

    def routed(self, exchange: Exchange) -> None:
        """It has a replica, or another one."""
        assert exchange.placed is not None
        placement = exchange.placed.placement
        self._routed.get(self._class(exchange)[0], placement.replica, placement.cost_tier, placement.reason).inc()
        exchange.meters = self._handles.get(*self._where(exchange))
        batch = self._scheduler.joined(placement.replica)
        self._metrics.batch_fill_ratio.labels(placement.replica).observe(batch.sequences / batch.most)
        self._metrics.batch_tokens.labels(placement.replica).observe(batch.step_tokens)

    def attempted(self, exchange: Exchange, outcome: str) -> None:
        if exchange.placed is not None:
            replica = exchange.placed.placement.replica
            self._attempts.get(replica, outcome).inc()
            self._on_attempt(exchange)
            self._on_outcome(replica, outcome, _wait(exchange))

    def second_ended(self, replica: ReplicaId, outcome: str) -> None:
        """An attempt beside the first one, of which the client has seen nothing."""
        self._attempts.get(replica, outcome).inc()
        self._on_outcome(replica, outcome, None)

    def hedged(self, exchange: Exchange, outcome: str) -> None:
        """A second replica was asked: won, lost, failed, cancelled."""
        self._metrics.hedges_total.labels(self._class(exchange)[0], outcome).inc()

    def interrupted(self, exchange: Exchange) -> None:
        """Its client had some of the answer, and gets an error for the rest."""
        self._metrics.stream_interruptions_total.labels(self._class(exchange)[0], "errored", Mode.NONE.value).inc()

    def not_repeated(self, exchange: Exchange) -> None:
        """An engine's error goes to its client although another might have done better: the retry budget is spent."""
        self._metrics.retries_refused_total.labels(self._class(exchange)[0]).inc()

    def resumed(self, exchange: Exchange, gap_s: float) -> None:
        """Another engine has said the next token; the client has waited so long for it."""
        model, mode = self._class(exchange)[0], exchange.move.mode.value
        self._metrics.stream_interruptions_total.labels(model, "resumed", mode).inc()
        self._metrics.stream_seam_seconds.labels(model, mode).observe(gap_s)

    def recomputed(self, exchange: Exchange, tokens: int) -> None:
        """Prompt and answer so far that another engine had to read again; below 0 where it says that more was cached than there was."""
        self._metrics.recomputed_tokens_total.labels(self._class(exchange)[0]).inc(max(0, tokens))

    def ended(self, exchange: Exchange, now: float) -> None:
        """Once per request, whatever became of it."""
        exchange.timeline.finished_s = now
        model, tier = self._class(exchange)
        if exchange.labels is not None:
            self._phases.get(model, tier, exchange.phase).dec()
        status = CLIENT_CLOSED if exchange.outcome is Outcome.CANCELLED else exchange.status
        code = exchange.error.label if exchange.error else "none"
        self._requests.get(exchange.endpoint, model, tier, str(status), code).inc()
        if exchange.outcome is Outcome.CANCELLED:
            self._metrics.client_disconnects_total.labels(model, exchange.phase).inc()
        if exchange.placed is None:
            self._left_queue(exchange, model, tier, now)
        else:
            self._served(exchange)
        self._on_ended(exchange)
        self._log.ended(exchange, model=model, tier=tier, status=status)

    def _left_queue(self, exchange: Exchange, model: str, tier: str, now: float) -> None:
        if exchange.request is None:
            return
        outcome = "cancelled" if exchange.error is None else _QUEUE_OUTCOME.get(exchange.error.case)
        if outcome is None:
            return  # no queue would have helped it: an unknown model, a prompt that is too long
        self._waits.get(model, tier, outcome).observe(now - exchange.request.arrived_s)

    def _served(self, exchange: Exchange) -> None:
        model, tier, *machine = self._where(exchange)
        spec, handles = exchange.spec, exchange.meters
        assert spec is not None
        assert handles is not None
        stream = "true" if spec.stream and not spec.collected else "false"
        self._durations.get(model, tier, stream, *machine).observe(exchange.timeline.e2e_s or 0.0)
        self._count_tokens(exchange, handles)
        if (tpot_s := exchange.timeline.tpot_s) is not None:
            handles.observe_tpot(tpot_s)
        self._measure(exchange, model, tier)

    def _measure(self, exchange: Exchange, model: str, tier: str) -> None:
        """How long prompt and answer were, and why each choice ended."""
        usage, heard = exchange.usage, exchange.timeline.output_tokens
        if usage is not None and usage.prompt_tokens is not None:
            self._metrics.prompt_length_tokens.labels(model, tier).observe(usage.prompt_tokens)
        if output := (usage.completion_tokens if usage is not None else None) or heard:
            self._metrics.output_length_tokens.labels(model, tier).observe(output)
        for reason in exchange.finish_reasons:
            self._reasons.get(model, reason if reason in _REASONS else OTHER).inc()

    def _count_tokens(self, exchange: Exchange, handles: StreamHandles) -> None:
        usage, request = exchange.usage, exchange.request
        assert request is not None
        if usage is not None and usage.prompt_tokens is not None:
            cached = usage.cached_tokens or 0
            reasoning = usage.reasoning_tokens or 0
            source = TokenSource.REPORTED
            handles.add_tokens(usage.prompt_tokens - cached, TokenKind.INPUT, source)
            handles.add_tokens(cached, TokenKind.CACHED_INPUT, source)
            handles.add_tokens((usage.completion_tokens or 0) - reasoning, TokenKind.OUTPUT, source)
            handles.add_tokens(reasoning, TokenKind.REASONING, source)
        else:
            handles.add_tokens(request.prompt_tokens, TokenKind.INPUT, TokenSource.ESTIMATED)
            handles.add_tokens(exchange.timeline.output_tokens, TokenKind.OUTPUT, TokenSource.ESTIMATED)

    def _class(self, exchange: Exchange) -> tuple[str, str]:
        """(model, service tier) as labels."""
        return exchange.labels or (OTHER, "default")

    def _where(self, exchange: Exchange) -> tuple[str, str, str, str, str]:
        """(model, service tier, replica, gpu, cost tier) as labels."""
        assert exchange.placed is not None
        placement = exchange.placed.placement
        return *self._class(exchange), placement.replica, self._gpu_of(placement.replica), placement.cost_tier


def _wait(exchange: Exchange) -> Wait | None:
    """Of a stream that was answered where it was sent first; of others nobody noted when their replica was asked."""
    placed, timeline = exchange.placed, exchange.timeline
    if placed is None or exchange.spec is None or not exchange.spec.stream or exchange.attempts != 1:
        return None
    if timeline.placed_s is None or timeline.first_token_s is None:
        return None
    return Wait(timeline.first_token_s - timeline.placed_s, placed.placement.score.ttft_s)
