"""Sets the gauges of queue and replicas from the scheduler's frozen states, at scrape time only."""

from collections import Counter
from collections.abc import Iterable

from batching.hedging import Refusal
from batching.overload import Refused
from batching.replica import Lifecycle, ReplicaState
from batching.request import ServiceTier
from batching.scheduler import Scheduler
from batching.shares import WHOLE
from metrics.catalog import Metrics
from metrics.pages import whole
from router.body_budget import BodyBudget
from router.model_labels import ModelLabels


class Gauges:
    """Refreshed by `/metrics`; nothing on the request path pays for it."""

    def __init__(
        self, metrics: Metrics, scheduler: Scheduler, models: ModelLabels, bodies: BodyBudget | None = None
    ) -> None:
        self._metrics = metrics
        self._scheduler = scheduler
        self._models = models
        self._bodies = bodies
        self._bodies_refused = 0
        self._dropped: Counter[Refused] = Counter()  # as `_told`
        self._told: Counter[tuple[str, Refusal]] = Counter()  # refusals that the counter has already
        self._served: set[tuple[str, str]] = set()  # (model, cost tier), ever: told at none, too

    def refresh(self, now: float, queue_limit: int, *, alone: bool = True) -> None:
        """`alone`: no other worker has a part of what is to be said."""
        self._metrics.workers.set(1)
        self._queue(now, queue_limit)
        self._hedges()
        self._overload(now)
        self._clear_replicas()
        self._desired(now, alone=alone)
        states = self._scheduler.states(now)
        for state in states:
            self._replica(state)
        self._ready(states)

    def _queue(self, now: float, limit: int) -> None:
        m = self._metrics
        for gauge in (m.queue_depth, m.queue_tokens, m.queue_bytes, m.oldest_queued_seconds, m.queue_utilization_ratio):
            gauge.clear()
        oldest_s: dict[tuple[str, str], float] = dict.fromkeys(
            ((model, ServiceTier.DEFAULT.label) for model in self._models.told()), 0.0
        )  # of a model that nobody waits for, too: an autoscaler looks before anybody has come
        for row in self._scheduler.queue_statistics(now):
            labels = (self._models.of(row.model), row.service_tier.label)
            oldest_s[labels] = max(row.oldest_age_s, oldest_s.get(labels, 0.0))
            m.queue_depth.labels(*labels).inc(row.depth)
            m.queue_tokens.labels(*labels).inc(row.tokens)
            m.queue_bytes.labels(*labels).inc(row.bytes)
            m.queue_utilization_ratio.labels(*labels).inc(row.depth / limit)
        for labels, age_s in oldest_s.items():
            m.oldest_queued_seconds.labels(*labels).set(age_s)
            for gauge in (m.queue_depth, m.queue_tokens, m.queue_bytes, m.queue_utilization_ratio):
                gauge.labels(*labels)

    def _hedges(self) -> None:
        """Refusals are the scheduler's own; what became of the seconds that were sent is reported where it happens."""
        self._metrics.retry_budget_requests.set(self._scheduler.retry_budget.left)
        for (model, why), count in self._scheduler.hedges_refused().items():
            self._metrics.hedges_total.labels(self._models.of(model), why.value).inc(count - self._told[model, why])
            self._told[model, why] = count

    def _overload(self, now: float) -> None:
        m, scheduler = self._metrics, self._scheduler
        m.overloaded.clear()
        for model in self._models.told():
            m.overloaded.labels(model).set(scheduler.flooded(model, now))
        for dropped, count in scheduler.refusals().items():
            labels = (self._models.of(dropped.model), dropped.service_tier.label, dropped.reason.value)
            m.requests_dropped_total.labels(*labels).inc(count - self._dropped[dropped])
            self._dropped[dropped] = count
        if self._bodies is not None:
            m.bodies_bytes.set(self._bodies.held)
            m.bodies_refused_total.inc(self._bodies.refused - self._bodies_refused)
            self._bodies_refused = self._bodies.refused

    def _desired(self, now: float, *, alone: bool) -> None:
        for (model, cost_tier), parts in self._scheduler.desired.replicas(now).items():
            if (label := self._models.of(model)) == model:  # of many models together it would say nothing
                self._metrics.desired_replicas.labels(label, cost_tier.value).set(whole(parts) if alone else parts)

    def _clear_replicas(self) -> None:
        """Figures that an engine no longer tells must vanish, not freeze."""
        m = self._metrics
        for gauge in (m.replica_up, m.replica_state, m.replica_kv_headroom_tokens, m.replica_kv_usage_ratio,
                      m.replica_kv_reserved_ratio, m.replica_kv_held_ratio, m.replica_kv_error_ratio, m.replica_running,
                      m.replica_waiting, m.replica_metrics_age_seconds, m.replica_batch_occupancy_ratio,
                      m.signal_error_ratio, m.signal_weight_ratio, m.replica_kv_margin_deviations, m.replica_ledger_only,
                      m.replica_share_ratio, m.replica_price_usd_per_hour, m.replica_gpus, m.desired_replicas):  # fmt: skip
            gauge.clear()

    def _replica(self, state: ReplicaState) -> None:
        m, profile = self._metrics, state.profile
        labels = (profile.id, profile.gpu, profile.cost_tier.value)
        m.replica_up.labels(*labels).set(state.lifecycle is Lifecycle.READY)
        for lifecycle in Lifecycle:
            m.replica_state.labels(profile.id, lifecycle.value).set(lifecycle is state.lifecycle)
        m.replica_running.labels(*labels).set(state.running)
        m.replica_kv_margin_deviations.labels(*labels).set(state.extras["kv_margin"])
        m.replica_ledger_only.labels(profile.id).set(state.ledger_only)
        m.replica_share_ratio.labels(profile.id).set(state.share.parts / WHOLE)
        if state.max_num_seqs:
            m.replica_batch_occupancy_ratio.labels(*labels).set(state.running / state.max_num_seqs)
        blocks, headroom = profile.kv_blocks, state.headroom_blocks
        if blocks and headroom is not None:
            m.replica_kv_headroom_tokens.labels(*labels).set(headroom * (profile.block_size or 1))
            m.replica_kv_held_ratio.labels(*labels).set(state.held_blocks / blocks)
            m.replica_kv_reserved_ratio.labels(*labels).set(state.reserved_blocks / blocks)
        m.replica_price_usd_per_hour.labels(*labels).set(profile.usd_per_hour)
        m.replica_gpus.labels(*labels).set(profile.gpu_count)
        self._engine(state, labels)
        self._audit(state)

    def _ready(self, states: Iterable[ReplicaState]) -> None:
        """A model whose replicas are all gone has none ready: an alert cannot see what is not told."""
        ready: Counter[tuple[str, str]] = Counter()
        for state in states:
            for model in state.profile.models:
                self._served.add(served := (model, state.profile.cost_tier.value))
                ready[served] += state.lifecycle is Lifecycle.READY
        for served in self._served:
            if self._models.of(served[0]) == served[0]:
                self._metrics.ready_replicas.labels(*served).set(ready[served])

    def _audit(self, state: ReplicaState) -> None:
        """How far each learned signal is believed, and why."""
        m, replica = self._metrics, state.profile.id
        for signal, errors in state.audit.items():
            m.signal_error_ratio.labels(replica, signal.value, "learned").set(errors.learned)
            m.signal_error_ratio.labels(replica, signal.value, "baseline").set(errors.baseline)
            m.signal_weight_ratio.labels(replica, signal.value).set(errors.weight)

    def _engine(self, state: ReplicaState, labels: tuple[str, str, str]) -> None:
        """What the engine itself says, and how far our ledger is from it."""
        m, load = self._metrics, state.load
        if load is None:
            return
        if state.load_age_s is not None:
            m.replica_metrics_age_seconds.labels(labels[0]).set(state.load_age_s)
        if load.waiting is not None:
            m.replica_waiting.labels(*labels).set(load.waiting)
        if load.kv_usage_ratio is not None:
            m.replica_kv_usage_ratio.labels(*labels).set(load.kv_usage_ratio)
            if state.profile.kv_blocks:
                m.replica_kv_error_ratio.labels(*labels).set(
                    state.held_blocks / state.profile.kv_blocks - load.kv_usage_ratio
                )
