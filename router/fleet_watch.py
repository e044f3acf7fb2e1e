"""Looks at every replica about once a second and tells the scheduler what it saw.

Decides how often to look and what a failed look means; the engine's words are read in `backends`, their effect is the scheduler's.
"""

import asyncio
import logging
from collections.abc import Callable

from backends.backend import Backend, ProbeResult, UpstreamError
from batching.replica import TRANSITIONS, Lifecycle
from batching.request import ReplicaId
from config.schema import Config, ReplicaConfig
from metrics.catalog import Metrics
from router.admission import Admission
from router.profiles import lifecycle_after, load_of, missing_models, profile_of, remembered
from router.streams import Streams
from router.suspicion import Suspicion
from router.watched import Watched

log = logging.getLogger("penstock.fleet")

_BACKSTOP_TIMEOUTS = 3.0  # a look asks at most two questions in turn (Triton: alive, then figures)


class FleetWatch:
    """Owns one task per replica, inside the task group it is given."""

    def __init__(
        self,
        admission: Admission,
        config: Config,
        tasks: asyncio.TaskGroup,
        *,
        metrics: Metrics,
        streams: Streams,
        scrape_interval_s: float | None = None,
    ) -> None:
        """`scrape_interval_s`: another router's rule is told the engines' load so often, no more and no less; None: at each look."""
        probe = config.probe
        self._scrape_interval_s = scrape_interval_s
        # A rule that reads seldom sees old figures; whether a replica lives is known as soon as under any other.
        self._look_interval_s = min(probe.interval_s, scrape_interval_s or probe.interval_s)
        self.replicas: dict[ReplicaId, Watched] = {}
        self._admission = admission
        self._probe = probe
        self._tasks = tasks
        self._streams = streams
        self.suspicion = Suspicion(
            config.health,
            admission.scheduler,
            self.replicas,
            self.move,
            metrics=metrics,
            streams=streams,
            tasks=tasks,
        )
        self.on_return: Callable[[ReplicaId], None] | None = None  # it was down, and is not any more

    def add(self, config: ReplicaConfig, backend: Backend) -> Watched:
        """Begin to watch; the replica takes work after its first good look."""
        watched = Watched(config=config, backend=backend)
        self.replicas[watched.id] = watched
        now = asyncio.get_running_loop().time()
        self._admission.scheduler.add_replica(profile_of(config, None), Lifecycle.STARTING, now)
        self.suspicion.added(watched, now)
        watched.task = self._tasks.create_task(self._watch(watched), name=f"watch-{config.name}")
        return watched

    def remove(self, replica: ReplicaId) -> Watched:
        """Stop watching; its running streams go on and the scheduler gives it no more."""
        watched = self.replicas.pop(replica)
        if watched.task is not None:
            watched.task.cancel()
        self.suspicion.removed(watched)
        self._admission.scheduler.remove_replica(replica, asyncio.get_running_loop().time())
        self._admission.soon()
        return watched

    def suspect(self, replica: ReplicaId) -> None:
        """A connection failed: look at once, and believe one bad look."""
        watched = self.replicas.get(replica)
        if watched is not None:
            watched.suspected = True
            watched.wake.set()

    async def first_look(self) -> None:
        """Look at all at once, so that the first request finds a known fleet; bounded by the probe's timeout."""
        await asyncio.gather(*(self._look(watched) for watched in self.replicas.values()))

    def close(self) -> None:
        for watched in self.replicas.values():
            if watched.task is not None:
                watched.task.cancel()
        self.suspicion.close()

    async def _watch(self, watched: Watched) -> None:
        while True:
            try:
                async with asyncio.timeout(self._look_interval_s):
                    await watched.wake.wait()
            except TimeoutError:
                pass
            watched.wake.clear()
            await self._look(watched)

    async def _look(self, watched: Watched) -> None:
        found: ProbeResult | None = None
        try:
            # A backstop: backends bound each of their questions by the timeout, and one that hangs must not fail the others.
            async with asyncio.timeout(_BACKSTOP_TIMEOUTS * self._probe.timeout_s):
                found = await watched.backend.probe()
            watched.detail = found.detail
        except TimeoutError:
            watched.detail = "no answer to a probe"
        except UpstreamError as error:
            watched.detail = str(error) or error.outcome
        except Exception:  # a probe reads what an engine sends: whatever it sends must not end the watch
            log.exception("probe of %s failed", watched.config.name)
            watched.detail = "the probe failed; see the log"
        if self.replicas.get(watched.id) is watched:
            self._tell(watched, found)

    def _tell(self, watched: Watched, found: ProbeResult | None) -> None:
        now = asyncio.get_running_loop().time()
        scheduler = self._admission.scheduler
        if found is not None and found.ready and (missing := missing_models(watched.config, found)):
            watched.detail = f"does not serve {', '.join(missing)}, which the config declares"
        ready = found is not None and found.ready
        watched.failures = 0 if ready else watched.failures + 1
        limit = 1 if watched.suspected else self._probe.unhealthy_after
        watched.suspected = False
        if found is not None and ready:
            watched.known = remembered(watched.known, found)
            scheduler.update_profile(profile := profile_of(watched.config, watched.known), now)
            watched.models_seen.update(profile.models)
            load = load_of(found, now)
            if load is not None and self._may_tell_load(watched, now):
                watched.load_told_s = now
                scheduler.observe(watched.id, load, now)
        target = lifecycle_after(watched.lifecycle, found, watched.failures, limit)
        if not ready:
            watched.doubt = ""  # the look itself says why
        if target is not Lifecycle.WARMING:
            self.move(watched, target, now, watched.detail)
        elif watched.lifecycle is Lifecycle.DOWN and self.suspicion.may_return(watched, now):
            self.move(watched, target, now, "its looks are fine; it is asked for one token")
        self.suspicion.looked(watched, found, now)
        self._say_what_is_known(watched, now)
        self._admission.soon()

    def _say_what_is_known(self, watched: Watched, now: float) -> None:
        """Once at each change: whether the engine's figures are gone by. Of one that takes no work it is no matter."""
        ledger_only = self._admission.scheduler.ledger_only(watched.id, now)
        if watched.lifecycle is not Lifecycle.READY or ledger_only == watched.ledger_only:
            return
        if ledger_only:
            level, why = logging.WARNING, f"no KV figures of its engine for {self._probe.stale_after_s:g} s"
            if watched.ledger_only is None:
                level, why = logging.INFO, "its engine tells no usage of a KV cache whose size is known"
            log.log(level, "replica %s: %s; its room is reckoned from our own ledger alone", watched.config.name, why)
        elif watched.ledger_only:
            log.info("replica %s: its engine tells its KV usage again", watched.config.name)
        watched.ledger_only = ledger_only

    def _may_tell_load(self, watched: Watched, now: float) -> bool:
        if self._scrape_interval_s is None:
            return True
        # Looks fall a little late: the one nearest to the time that is due counts.
        return now - watched.load_told_s > self._scrape_interval_s - self._look_interval_s / 2

    def move(self, watched: Watched, target: Lifecycle, now: float, why: str) -> None:
        """The one place where lifecycles change; what TRANSITIONS does not know is left undone."""
        before, target = watched.lifecycle, self._held(watched, target)
        if target is before or target not in TRANSITIONS[before]:
            return
        log.info("replica %s: %s -> %s%s", watched.config.name, before, target, f" ({why})" if why else "")
        watched.lifecycle = target
        self._admission.scheduler.set_lifecycle(watched.id, target, now)
        self.suspicion.moved(watched, now)
        if target is Lifecycle.DOWN:
            self._streams.move_off(watched.id, by_s=None)
        self._admission.soon()

    # -- drains and notices (router.farewell) ------------------------------------------------------------------------

    def leave(self, replica: ReplicaId, how: Lifecycle) -> None:
        """DRAINING or RECLAIMING from now on, whatever looks say, until `stay`. One that is down is once it is there again."""
        watched = self.replicas[replica]
        watched.leaving = how
        if watched.lifecycle not in {Lifecycle.DOWN, how}:
            target = how if how in TRANSITIONS[watched.lifecycle] else Lifecycle.DRAINING
            self.move(watched, target, asyncio.get_running_loop().time(), "it is to go")

    def stay(self, replica: ReplicaId) -> None:
        """It may work again; it does after a good look, which is due at once."""
        watched = self.replicas[replica]
        watched.leaving = None
        watched.wake.set()

    def _held(self, watched: Watched, target: Lifecycle) -> Lifecycle:
        """What becomes of a move of one that leaves: it goes down, or nowhere."""
        if watched.lifecycle is Lifecycle.DOWN and target is not Lifecycle.DOWN and self.on_return is not None:
            self.on_return(watched.id)
        leaves = target in {Lifecycle.DRAINING, Lifecycle.RECLAIMING}
        if watched.leaving is None:
            return Lifecycle.READY if leaves and watched.failures == 0 else target
        if leaves or target in {Lifecycle.DOWN, Lifecycle.ASLEEP}:
            return target
        if watched.lifecycle is Lifecycle.DOWN:
            return Lifecycle.STARTING  # one look later it drains
        return Lifecycle.DRAINING if Lifecycle.DRAINING in TRANSITIONS[watched.lifecycle] else watched.lifecycle
