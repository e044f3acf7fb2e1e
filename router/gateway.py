"""The whole gateway as one object graph: built here, top to bottom, started and stopped here.

Reads like a table of contents; decides only the order in which things begin and end.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import httpx
from prometheus_client import CollectorRegistry

from backends.backend import Backend
from batching.policies import BASELINES
from batching.replica import ReplicaProfile
from batching.request import ReplicaId
from batching.scheduler import Scheduler
from batching.shares import NOTHING
from config.checks import OWN_POLICY
from config.gpus import gpu_table
from config.schema import Config, ReplicaConfig
from config.shared import SharedRedis
from metrics.catalog import Metrics
from router.admission import Admission
from router.body_budget import BodyBudget
from router.crew import Crew
from router.decision_log import DecisionLog
from router.dispatch import Dispatcher
from router.engines import build_backend
from router.exchange import Exchange
from router.farewell import Farewells
from router.fleet_watch import FleetWatch
from router.gauges import Gauges
from router.kv_watch import KvWatch
from router.openai.errors import draining
from router.report import Report, Wait
from router.shared.book_in_redis import Book, BookInRedis
from router.shared.budgets import SharedBudgets, terms_of
from router.streams import Streams
from router.watched import Watched

log = logging.getLogger("penstock")

_HOUSEKEEPING_S = 0.5
_POLICY_SEED = 0  # of what some baselines draw at random; any will do
BackendFactory = Callable[[ReplicaConfig, Config, httpx.AsyncClient], Backend]
BookFactory = Callable[[SharedRedis], Book]


class Gateway:
    """One gateway: `async with gateway.running()` while it serves."""

    def __init__(
        self,
        config: Config,
        *,
        version: str,
        backend_factory: BackendFactory = build_backend,
        book_factory: BookFactory = BookInRedis,
    ) -> None:
        self.config = config
        self.draining = False
        self.crew: Crew | None = None  # the other workers, where there are any; set before `running`
        self.started_unix_s = int(datetime.now(UTC).timestamp())  # `created` of the models: when they became known here
        self.registry = CollectorRegistry()
        self.metrics = Metrics.create(self.registry)
        self.metrics.build_info.labels(version).set(1)
        self.metrics.config_last_reload_success_timestamp_seconds.set(self.started_unix_s)
        # The pure core, and the shell that gives it the loop's clock.
        name = config.scheduling.policy
        self._policy = None if name == OWN_POLICY else BASELINES[name](_POLICY_SEED)
        self.decisions = DecisionLog(config, self.metrics)
        self.scheduler = Scheduler(
            config.scheduling,
            config.queue,
            stale_after_s=config.probe.stale_after_s,
            policy=self._policy,
            decisions=self.decisions.ledger,
        )
        self.admission = Admission(self.scheduler, on_pass=self.metrics.routing_duration_seconds.observe)
        # Engines by replica; the watch keeps the scheduler's picture of them true.
        self.backends: dict[ReplicaId, Backend] = {}
        self.watch: FleetWatch | None = None
        self.kv_watch: KvWatch | None = None
        # One request's life.
        self.dispatcher = Dispatcher(
            config=config,
            admission=self.admission,
            backends=self.backends,
            report=Report(self.metrics, self.scheduler, self._gpu_of, self._attempted, self._judge),
            on_suspect=self._suspect,
        )
        self.streams: Streams = self.dispatcher.moves
        # Replicas that are drained or taken away.
        self.farewells = Farewells(config.spot, self.admission, self.streams, self.metrics)
        self.farewells.on_over = self._over
        # The same fleet's other gateways, where there may be some.
        self.identity = f"{socket.gethostname()}:{os.getpid()}"  # unlike any other's; the server knows a better one
        self.shared: SharedBudgets | None = None
        self.bodies = BodyBudget(config.server.max_held_body_bytes)
        self.gauges = Gauges(self.metrics, self.scheduler, self.bodies)
        self._backend_factory = backend_factory
        self._book_factory = book_factory
        self._retired: list[Backend] = []  # removed or replaced by a reload; closed after their last stream
        self._http: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Probe the fleet once, then serve until the block ends; engines are released last."""
        async with httpx.AsyncClient(follow_redirects=False, trust_env=False) as http:
            self._http = http
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
                    self.shared = self._shared_budgets()
                    self.kv_watch = KvWatch(self.scheduler, self.metrics, http, tasks, self._is_adapter)
                    for replica in self.config.replicas:
                        self._add(replica)
                    shared = [] if self.shared is None else [self.shared.run(), self.shared.listen()]
                    sharing = [tasks.create_task(each, name="shared") for each in shared]
                    await self.watch.first_look()
                    housekeeping = tasks.create_task(self._housekeep(), name="housekeeping")
                    ledger = tasks.create_task(self.decisions.run(self._fleet), name="decisions")
                    farewells = tasks.create_task(self.farewells.run(), name="farewells")
                    yield
                    housekeeping.cancel()
                    ledger.cancel()
                    farewells.cancel()
                    for task in sharing:
                        task.cancel()
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
        """Swap in a valid new configuration: replicas come, go and change price; running streams are not touched."""
        assert self.watch is not None, "reload before start"
        old = {replica.name: replica for replica in self.config.replicas}
        new = {replica.name: replica for replica in config.replicas}
        for section in Config.model_fields.keys() - {"replicas"}:
            if getattr(self.config, section) != getattr(config, section):
                log.warning("reload: a change under `%s` takes effect at the next start", section)
        for name in old.keys() - new.keys():
            self._retire(name)
        for name, replica in new.items():
            if name not in old:
                self._add(replica)
            elif replica != old[name]:
                self._change(old[name], replica)
        self.config = self.config.model_copy(update={"replicas": config.replicas})
        self.dispatcher.configure(self.config)
        self.admission.soon()

    def refresh_gauges(self) -> None:
        """Before a scrape."""
        now = asyncio.get_running_loop().time()
        self.gauges.refresh(now, self.config.queue.max_requests)
        self.farewells.refresh_gauges(now)
        if self.shared is not None:
            self.shared.refresh_gauges()
        if self.watch is not None:
            self.watch.suspicion.show()

    def watched(self) -> list[Watched]:
        return list(self.watch.replicas.values()) if self.watch is not None else []

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
            self.scheduler.allot(ReplicaId(replica.name), NOTHING)  # until the book of shares says more
        self.kv_watch.add(replica)
        self.farewells.added(ReplicaId(replica.name))

    def _retire(self, name: str) -> None:
        """Its streams run on."""
        assert self.watch is not None
        assert self.kv_watch is not None
        watched = self.watch.remove(ReplicaId(name))
        self.kv_watch.remove(watched.id)
        self._retired.append(self.backends.pop(watched.id))
        self.farewells.removed(watched.id)

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

    def _shared_budgets(self) -> SharedBudgets | None:
        config = self.config.redis
        if not config.enabled:
            return None
        identity = self.identity
        if config.name is not None:
            identity = "/".join([config.name, *identity.split("/")[1:]])  # a worker's seat stays
        return SharedBudgets(
            self._book_factory(config),
            self.admission,
            self.farewells,
            self.metrics,
            name=identity,
            instance=uuid4().hex,
            terms=terms_of(config, self.config.server.workers if self.crew is not None else 1),
        )

    def _fleet(self) -> list[ReplicaProfile]:
        return [state.profile for state in self.scheduler.states(0.0)]

    def _gpu_of(self, replica: ReplicaId) -> str:
        """For labels; a replica that was retired while it answered is `unknown`."""
        watched = self.watch.replicas.get(replica) if self.watch is not None else None
        return watched.config.gpu.type if watched is not None else "unknown"

    def _is_adapter(self, replica: ReplicaId, model: str) -> bool:
        watched = self.watch.replicas.get(replica) if self.watch is not None else None
        known = watched.known if watched is not None else None
        return known is not None and any(served.name == model and served.parent for served in known.models)

    def _over(self, replica: ReplicaId, why: str) -> None:
        """A notice ended by itself: the other workers and gateways hear of it."""
        if self.crew is not None:
            self.crew.over(replica, why)
        if self.shared is not None:
            self.shared.over(replica, why)

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
        """Twice a second: how late the loop wakes us, and which retired backends have served their last stream."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _HOUSEKEEPING_S
            await asyncio.sleep(_HOUSEKEEPING_S)
            self.metrics.event_loop_lag_seconds.set(max(0.0, loop.time() - due_s))
            for backend in [b for b in self._retired if not self.dispatcher.in_use[id(b)]]:
                self._retired.remove(backend)
                del self.dispatcher.in_use[id(backend)]
                await backend.aclose()
