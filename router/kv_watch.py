"""Where replicas have `kv_events`: keeps the scheduler's belief in their prefix caches true, by what their engines tell.

Owns the subscriptions and one belief for all of them. Replicas without `kv_events` cost nothing here, not even an import of ZeroMQ.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import httpx

from backends.kv_events.messages import Batch, Cleared, Event, Removed, Stored
from batching.kv_belief import NOTHING, Change, KvBelief
from batching.request import ReplicaId
from batching.scheduler import Scheduler
from config.schema import KvEvents, ReplicaConfig
from metrics.catalog import Metrics
from router.exchange import Exchange
from router.kv_prompts import KvPrompts

if TYPE_CHECKING:
    import zmq.asyncio

log = logging.getLogger("penstock.kv_events")

_TYPES = {Stored: "stored", Removed: "removed", Cleared: "cleared"}
_AGAIN_S = 30.0  # after an error of ours: an engine whose events cannot be taken in is not worth a full log


class KvWatch:
    """Owns its tasks, inside the task group it is given; `close` ends them."""

    def __init__(
        self,
        scheduler: Scheduler,
        metrics: Metrics,
        http: httpx.AsyncClient,
        tasks: asyncio.TaskGroup,
        is_adapter: Callable[[ReplicaId, str], bool],
    ) -> None:
        """`is_adapter`: whether a replica serves this model as a LoRA adapter, whose blocks are its own."""
        self._scheduler = scheduler
        self._metrics = metrics
        self._tasks = tasks
        self._running: dict[ReplicaId, list[asyncio.Task[None]]] = {}
        self._context: zmq.asyncio.Context | None = None
        self.belief = KvBelief()
        self._prompts = KvPrompts(self.belief, self._apply, metrics, http, is_adapter)

    def add(self, config: ReplicaConfig) -> None:
        """Begin to listen, if the replica tells anything."""
        if config.kv_events is None:
            return
        replica = ReplicaId(config.name)
        engine = _Engine(replica, self.belief, self._scheduler, self._metrics, self._apply)
        self._running[replica] = [
            self._spawn(f"kv-events-{replica}", lambda: self._subscribe(engine, config.kv_events)),
            self._spawn(f"kv-prompts-{replica}", self._prompts.add(config)),
        ]

    def remove(self, replica: ReplicaId) -> None:
        """Stop listening; what is believed stays until it is forgotten with the replica or by age."""
        for task in self._running.pop(replica, ()):
            task.cancel()
        self._metrics.replica_kv_believed_blocks.remove(replica)
        self._prompts.remove(replica)
        self.belief.forget(replica)

    def change(self, before: ReplicaConfig, after: ReplicaConfig) -> None:
        """On reload."""
        if (before.kv_events, before.url, before.api_key) != (after.kv_events, after.url, after.api_key):
            self.remove(ReplicaId(before.name))
            self.add(after)

    def attempted(self, exchange: Exchange) -> None:
        """A request was at a replica, whatever became of it. O(chunks), on the request's path."""
        if self._running:
            self._prompts.attempted(exchange)

    def close(self) -> None:
        for replica in list(self._running):
            self.remove(replica)

    def release(self) -> None:
        """After the tasks have ended."""
        if self._context is not None:
            self._context.term()

    def _apply(self, replica: ReplicaId, change: Change) -> None:
        if change.held or change.lost:
            self._scheduler.prefixes.correct(replica, held=change.held, lost=change.lost)

    async def _subscribe(self, engine: "_Engine", where: KvEvents | None) -> None:
        from backends.kv_events.subscriber import Subscriber, open_context  # noqa: PLC0415 - loads ZeroMQ

        assert where is not None
        if self._context is None:
            self._context = open_context()
        if self.belief.blocks(engine.replica):
            engine.on_reset("lost")  # this is not the first subscription
        self.belief.forget(engine.replica)
        await Subscriber(
            engine.replica, engine, self._context,
            endpoint=where.endpoint, replay_endpoint=where.replay_endpoint, topic=where.topic,
        ).run()  # fmt: skip

    def _spawn(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        async def kept() -> None:
            while True:
                try:
                    await work()
                except Exception:  # belief is a help: whatever an engine sends must not end the gateway
                    log.exception("%s failed; again in %g s", name, _AGAIN_S)
                await asyncio.sleep(_AGAIN_S)

        return self._tasks.create_task(kept(), name=name)


class _Engine:
    """One replica's events, as they change belief; the subscriber's listener."""

    def __init__(
        self,
        replica: ReplicaId,
        belief: KvBelief,
        scheduler: Scheduler,
        metrics: Metrics,
        apply: Callable[[ReplicaId, Change], None],
    ) -> None:
        self.replica = replica
        self._belief = belief
        self._scheduler = scheduler
        self._metrics = metrics
        self._apply = apply

    def on_batch(self, batch: Batch, *, complete: bool) -> None:
        self._belief.begin(self.replica, complete=complete)
        for event in batch.events:
            self._metrics.kv_events_total.labels(self.replica, _TYPES.get(type(event), "ignored")).inc()
            self._apply(self.replica, self._change(event))
        self._metrics.replica_kv_believed_blocks.labels(self.replica).set(self._belief.blocks(self.replica))

    def on_gap(self, outcome: str) -> None:
        self._metrics.kv_event_gaps_total.labels(self.replica, outcome).inc()

    def on_reset(self, reason: str) -> None:
        self._metrics.kv_event_resyncs_total.labels(self.replica, reason).inc()
        self._belief.forget(self.replica)
        self._scheduler.prefixes.forget(self.replica)
        self._metrics.replica_kv_believed_blocks.labels(self.replica).set(0)

    def _change(self, event: Event) -> Change:
        if isinstance(event, Stored):
            return self._belief.stored(
                self.replica, event.hashes, event.parent, event.tokens, event.block_size,
                seeds=event.seeds, group=event.group,
            )  # fmt: skip
        if isinstance(event, Removed):
            return self._belief.removed(self.replica, event.hashes, event.group)
        if isinstance(event, Cleared):
            self._belief.cleared(self.replica)
            self._scheduler.prefixes.forget(self.replica)
        return NOTHING
