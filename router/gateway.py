"""The whole gateway as one object graph: built here, top to bottom, started and stopped here.

Reads like a table of contents; decides only the order in which things begin and end.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import httpx
from prometheus_client import CollectorRegistry

from backends.backend import Backend
from backends.breaker import BreakerState
from batching.policies import BASELINES
from batching.replica import ReplicaProfile
from batching.request import ReplicaId
from batching.scheduler import Scheduler
from config.checks import OWN_POLICY
from config.gpus import gpu_table
from config.schema import Config, ReplicaConfig
from metrics.catalog import Metrics
from metrics.overhead import Overhead
from metrics.pages import forget
from router.admission import Admission
from router.board.board import Board, Sources
from router.body_budget import BodyBudget
from router.crew import Crew
from router.decision_documents import Pseudonyms
from router.decision_log import DecisionLog
from router.departed import Departed
from router.discovery import Discovered, Warnings
from router.dispatch import Dispatcher
from router.engines import build_backend
from router.exchange import Exchange
from router.farewell import Farewells
from router.figures import Figures
from router.fleet_watch import FleetWatch
from router.kv_watch import KvWatch
from router.model_labels import ModelLabels
from router.openai.errors import draining
from router.report import Report, Wait
from router.request_log import RequestLog
from router.shared.book_in_redis import BookInRedis
from router.shared.build import BookFactory, Shared, build_shared
from router.streams import Streams
from router.tenants.gate import build_gate
from router.tenants.key_store import KeyStore
from router.tenants.tenancy import build_tenancy
from router.tracing.extra import exporter
from router.tracing.tracer import SpanSink, Tracer
from router.usage import UsageLog
from router.watched import Watched

log = logging.getLogger("penstock")

_HOUSEKEEPING_S = 0.5
_POLICY_SEED = 0  # of what some baselines draw at random; any will do
BackendFactory = Callable[[ReplicaConfig, Config, httpx.AsyncClient], Backend]


class Gateway:
    """One gateway: `async with gateway.running()` while it serves."""

    def __init__(
        self,
        config: Config,
        *,
        version: str,
        backend_factory: BackendFactory = build_backend,
        names: Pseudonyms | None = None,
        span_sink: SpanSink | None = None,
        book_factory: BookFactory = BookInRedis,
    ) -> None:
        """`names`: those of all workers. `span_sink`: of traces, else the configured collector; ImportError where its extra is missing."""
        names = Pseudonyms() if names is None else names
        self.config = config
        self.draining = False
        self.crew: Crew | None = None  # the other workers, where there are any; set before `running`
        self.admin_at: tuple[str, int] | None = None  # the admin's own listener, where there is one; set as `crew` is
        self.started_unix_s = int(datetime.now(UTC).timestamp())  # `created` of the models: when they became known here
        self.registry = CollectorRegistry()
        self.metrics = _metrics(self.registry, version, self.started_unix_s)
        # The pure core, and the shell that gives it the loop's clock.
        name = config.scheduling.policy
        self._policy = None if name == OWN_POLICY else BASELINES[name](_POLICY_SEED)
        self.decisions = DecisionLog(config, self.metrics, names)
        self.scheduler = Scheduler(
            config.scheduling, config.queue, stale_after_s=config.probe.stale_after_s,
            policy=self._policy, decisions=self.decisions.ledger,
        )  # fmt: skip
        self.models = ModelLabels(self.scheduler.models)
        self.overhead = Overhead(self.metrics)
        self.admission = Admission(
            self.scheduler, on_pass=self.metrics.routing_duration_seconds.labels(name).observe,
            on_route=self.overhead.route.observe, clock=self.overhead.clock,
        )  # fmt: skip
        # Engines by replica; the watch keeps the scheduler's picture of them true.
        self.backends: dict[ReplicaId, Backend] = {}
        self.watch: FleetWatch | None = None
        self.kv_watch: KvWatch | None = None
        self.usage = UsageLog(config.usage, self.started_unix_s)
        # Who may ask, and for what; None: everybody, for anything.
        self.keys = KeyStore(config.auth, self.metrics) if config.auth.on else None
        self.gate = None if self.keys is None else build_gate(self.keys, config, self.metrics)
        self.tenancy = None if self.gate is None else build_tenancy(config, self.gate, self.metrics)
        # One request's life, and what is told of it.
        self.tracer = _tracer(config, version, span_sink, names)
        self._report = Report(
            self.metrics, self.scheduler, self.models, self._gpu_of, RequestLog(self._gpu_of, names.tenant),
            self._attempted, self._judge, on_ended=self.usage.ended,
        )  # fmt: skip
        self._departed = Departed(self._forget, lambda replica: self.scheduler.leases_on(replica) > 0)
        self.dispatcher = Dispatcher(
            config=config, admission=self.admission, backends=self.backends, report=self._report,
            overhead=self.overhead, on_suspect=self._suspect, tracer=self.tracer, tenancy=self.tenancy,
        )  # fmt: skip
        self.streams: Streams = self.dispatcher.moves
        # Replicas that are drained or taken away.
        self.farewells = Farewells(config.spot, self.admission, self.streams, self.metrics)
        words = Warnings(self.farewells)
        self.discovered = Discovered(config.discovery, self, words, self.metrics) if config.discovery.is_on else None
        self.farewells.on_over = self._over
        # The same fleet's other gateways, where there may be some.
        self.identity = f"{socket.gethostname()}:{os.getpid()}"  # unlike any other's; the server knows a better one
        self.shared: Shared | None = None
        self.bodies = BodyBudget(config.server.max_held_body_bytes)
        self._figures = Figures(self.metrics, self.scheduler, self.models, self.bodies)
        # What people see of it.
        self.board = Board(self._sources(version, names))
        self._backend_factory = backend_factory
        self._book_factory = book_factory
        self._retired: list[Backend] = []  # removed or replaced by a reload; closed after their last stream
        self._http: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Probe the fleet once, then serve until the block ends; engines are released last."""
        async with httpx.AsyncClient(follow_redirects=False, trust_env=False) as http:
            self._http = http
            if self.tracer is not None:
                self.tracer.start()
            try:
                async with asyncio.TaskGroup() as tasks:
                    scrape_s = self._policy.scrape_interval_s if self._policy is not None else None
                    self.watch = FleetWatch(
                        self.admission,
                        self.config,
                        tasks,
                        metrics=self.metrics,
                        streams=self.streams,
                        scrape_interval_s=scrape_s,
                    )
                    self.farewells.begin(self.watch)
                    self.shared = build_shared(
                        self.config, self._book_factory, self.admission, self.farewells, self.watch.suspicion, self.metrics,
                        identity=self.identity, workers=1 if self.crew is None else self.config.server.workers,
                        tenancy=self.tenancy,
                    )  # fmt: skip
                    self.kv_watch = KvWatch(self.scheduler, self.metrics, http, tasks, self._is_adapter)
                    for replica in self.config.replicas:
                        self._add(replica)
                    if self.discovered is not None:
                        await self.discovered.begin(self.config.replicas, tasks)
                    begun = [] if self.shared is None else [self.shared.begin()]
                    await asyncio.gather(self.watch.first_look(), *begun)
                    if self.keys is not None:
                        await self.keys.begin()
                    standing = [tasks.create_task(work, name=name) for name, work in self._standing_work().items()]
                    yield
                    for task in standing:
                        task.cancel()
                    if self.discovered is not None:
                        self.discovered.close()
                    self.dispatcher.moves.close()
                    self.watch.close()
                    self.kv_watch.close()
            finally:
                if self.kv_watch is not None:
                    self.kv_watch.release()
                await self.decisions.close(self._fleet)
                self.admission.close()
                for backend in [*self.backends.values(), *self._retired]:
                    await backend.aclose()
                if self.shared is not None:
                    await self.shared.leave()
                if self.tracer is not None:
                    await self.tracer.close()

    def _standing_work(self) -> dict[str, Coroutine[None, None, None]]:
        """By name, what goes on as long as the gateway serves."""
        work = {
            "housekeeping": self._housekeep(),
            "lag": self._figures.watch(),
            "decisions": self.decisions.run(self._fleet),
            "farewells": self.farewells.run(),
            "board": self.board.run(),
        }
        if self.keys is not None:
            work["keys"] = self.keys.watch()
        if self.shared is not None:
            work |= self.shared.work()
        return work

    def begin_drain(self) -> None:
        """Not ready any more; queued requests are sent away with Retry-After, running ones go on."""
        if not self.draining:
            self.draining = True
            log.info(
                "draining: %d requests in flight have %g s", self.dispatcher.active, self.config.server.drain_timeout_s
            )
            self.admission.drain()

    def end_drain(self) -> None:
        """The deadline: what still runs gets an error event instead of a bare close."""
        self.dispatcher.abort_all(draining())

    def reload(self, config: Config) -> None:
        """Swap in a valid new configuration: replicas come, go and change price, tenants' settings change; running streams are not touched."""
        assert self.watch is not None, "reload before start"
        for section in Config.model_fields.keys() - {"replicas", "tenants"}:
            if getattr(self.config, section) != getattr(config, section):
                log.warning("reload: a change under `%s` takes effect at the next start", section)
        if self.keys is not None and self.gate is not None:
            self.keys.read_again()
            self.gate.configure(config.tenants)
        self.config = self.config.model_copy(update={"tenants": config.tenants})
        if self.discovered is None:
            self.set_replicas(config.replicas)
        else:
            self.discovered.set_own(config.replicas)

    def set_replicas(self, replicas: Sequence[ReplicaConfig]) -> None:
        """These, and no others: as they are configured, or were discovered."""
        old = {replica.name: replica for replica in self.config.replicas}
        new = {replica.name: replica for replica in replicas}
        for name in old.keys() - new.keys():
            self._retire(name)
        for name, replica in new.items():
            if name not in old:
                self._add(replica)
            elif replica != old[name]:
                self._change(old[name], replica)
        self.config = self.config.model_copy(update={"replicas": tuple(replicas)})
        self.dispatcher.configure(self.config)
        if self.tracer is not None:
            self.tracer.configure(replicas)
        self.admission.soon()

    def refresh_gauges(self) -> None:
        """Before a scrape."""
        now = asyncio.get_running_loop().time()
        self._figures.refresh(now, self.config, alone=self.crew is None)
        self.farewells.refresh_gauges(now)
        if self.shared is not None:
            self.shared.refresh_gauges()
        if self.watch is not None:
            self.watch.suspicion.show()

    def watched(self) -> list[Watched]:
        return list(self.watch.replicas.values()) if self.watch is not None else []

    def _sources(self, version: str, names: Pseudonyms) -> Sources:
        return Sources(
            version=version,
            started_unix_s=self.started_unix_s,
            scheduler=self.scheduler,
            metrics=self.metrics,
            decisions=self.decisions,
            farewells=self.farewells,
            names=names,
            watched=self.watched,
            circuit=self._circuit,
            draining=lambda: self.draining,
            crew=lambda: self.crew,
        )

    def _circuit(self, replica: ReplicaId) -> str:
        return BreakerState.CLOSED if self.watch is None else self.watch.suspicion.circuit(replica)

    def _add(self, replica: ReplicaConfig) -> None:
        if replica.gpu.type != "unknown" and replica.gpu.type not in gpu_table():
            known = ", ".join(sorted(gpu_table()))
            log.warning(
                "replica %s: no priors for gpu type %r, assuming an A100; known: %s",
                replica.name,
                replica.gpu.type,
                known,
            )
        assert self._http is not None
        assert self.watch is not None
        assert self.kv_watch is not None
        backend = self._backend_factory(replica, self.config, self._http)
        self.backends[ReplicaId(replica.name)] = backend
        self.watch.add(replica, backend)
        if self.crew is not None or self.shared is not None:
            self.scheduler.stake.allot(ReplicaId(replica.name), 0)  # until the book of shares says more
            self.scheduler.stake.pay(ReplicaId(replica.name), 0, asyncio.get_running_loop().time())
        self.kv_watch.add(replica)
        self.farewells.added(ReplicaId(replica.name))
        self._departed.came(ReplicaId(replica.name))

    def _retire(self, name: str) -> None:
        """Its streams run on."""
        assert self.watch is not None
        assert self.kv_watch is not None
        watched = self.watch.remove(ReplicaId(name))
        self.kv_watch.remove(watched.id)
        self._retired.append(self.backends.pop(watched.id))
        self.farewells.removed(watched.id)
        self._departed.left(watched.id, asyncio.get_running_loop().time())
        self.metrics.replica_kv_believed_blocks.remove_by_labels({"replica": watched.id})

    def _change(self, before: ReplicaConfig, after: ReplicaConfig) -> None:
        assert self.watch is not None
        assert self.kv_watch is not None
        watched = self.watch.replicas[ReplicaId(after.name)]
        # Price, queueing and events are ours; everything else is what a backend was built from (models: templates and kinds, too).
        ours = {"cost", "priority_scheduling", "kv_events"}
        if before.model_dump(exclude=ours) != after.model_dump(exclude=ours):
            assert self._http is not None
            self._retired.append(watched.backend)
            watched.backend = self.backends[watched.id] = self._backend_factory(after, self.config, self._http)
        watched.config = after
        self.kv_watch.change(before, after)
        watched.wake.set()

    def _over(self, replica: ReplicaId, why: str) -> None:
        """A notice ended by itself: the other workers and gateways hear of it."""
        if self.crew is not None:
            self.crew.over(replica, why)
        if self.shared is not None:
            self.shared.budgets.over(replica, why)

    def _fleet(self) -> list[ReplicaProfile]:
        return [state.profile for state in self.scheduler.states(0.0)]

    def _forget(self, replica: str) -> None:
        forget(self.metrics, replica)
        self._figures.forget(replica)
        self._report.forget(replica)

    def _gpu_of(self, replica: ReplicaId) -> str:
        """For labels; a replica that was retired while it answered is `unknown`."""
        watched = self.watch.replicas.get(replica) if self.watch is not None else None
        return watched.config.gpu.type if watched is not None else "unknown"

    def _is_adapter(self, replica: ReplicaId, model: str) -> bool:
        watched = self.watch.replicas.get(replica) if self.watch is not None else None
        known = watched.known if watched is not None else None
        return known is not None and any(served.name == model and served.parent for served in known.models)

    def _attempted(self, exchange: Exchange) -> None:
        if self.kv_watch is not None:
            self.kv_watch.attempted(exchange)

    def _judge(self, replica: ReplicaId, outcome: str, wait: Wait | None) -> None:
        """An attempt on it ended."""
        if self.watch is not None:
            self.watch.suspicion.attempted(replica, outcome, wait)

    def _suspect(self, replica: ReplicaId) -> None:
        if self.watch is not None:
            self.watch.suspect(replica)

    async def _housekeep(self) -> None:
        """Twice a second: which retired backends have served their last stream, and which replicas are long gone."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            if self.crew is None:
                self.usage.settle()
            self._departed.look(asyncio.get_running_loop().time())
            for backend in [b for b in self._retired if not self.dispatcher.in_use[id(b)]]:
                self._retired.remove(backend)
                del self.dispatcher.in_use[id(backend)]
                await backend.aclose()


def _metrics(registry: CollectorRegistry, version: str, started_unix_s: float) -> Metrics:
    """All of them, and what is known from the start."""
    metrics = Metrics.create(registry)
    metrics.build_info.labels(version).set(1)
    metrics.config_last_reload_success_timestamp_seconds.set(started_unix_s)
    return metrics


def _tracer(config: Config, version: str, sink: SpanSink | None, names: Pseudonyms) -> Tracer | None:
    """None: traces are off. Raises ImportError where their extra is missing."""
    if not config.tracing.enabled:
        return None
    return Tracer(config.tracing, config.replicas, sink or exporter(config, version), names.tenant)
