"""A replica's last minutes, in virtual time: what is set and moved when, and when it may go."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from backends.backend import ConnectFailed, ProbeResult, ServedModel
from batching.replica import Lifecycle
from batching.request import ReplicaId
from batching.scheduler import Scheduler
from config.schema import Config, Probe, Queue, ReplicaConfig, Scheduling
from config.spot import Spot
from metrics.catalog import Metrics
from router.admission import Admission
from router.farewell import Farewells
from router.fleet_watch import FleetWatch
from router.standing import Kind, Standing
from tests.support.fake_engine import FakeEngine
from tests.support.virtual_time import run_virtual

A, B = ReplicaId("a"), ReplicaId("b")


@dataclass
class FakeStreams:
    """So many requests on each replica; whoever is cut loose is gone at once."""

    on: dict[ReplicaId, int] = field(default_factory=dict)
    moved: list[tuple[float, str, float | None]] = field(default_factory=list)
    stuck: bool = False

    def move_off(self, replica: ReplicaId, *, by_s: float | None) -> None:
        self.moved.append((asyncio.get_running_loop().time(), replica, by_s))
        if by_s is None and not self.stuck:
            self.on[replica] = 0

    def requests_on(self, replica: ReplicaId) -> int:
        return self.on.get(replica, 0)

    def last_bytes_s(self, replica: ReplicaId) -> float | None:
        return None


class Engine(FakeEngine):
    """One that can vanish."""

    alive = True

    async def probe(self) -> ProbeResult:
        if not self.alive:
            raise ConnectFailed("connection refused")
        return await super().probe()


@dataclass
class Scene:
    """A fleet of `a` and `b`, both ready at 0, and what says farewell to them."""

    farewells: Farewells
    watch: FleetWatch
    scheduler: Scheduler
    streams: FakeStreams
    metrics: Metrics
    registry: CollectorRegistry
    engines: dict[str, Engine]

    def lifecycle(self, replica: ReplicaId = A) -> Lifecycle:
        return self.watch.replicas[replica].lifecycle

    def released(self, replica: ReplicaId = A) -> bool:
        return replica in self.farewells.left().released

    def takes(self, replica: ReplicaId = A) -> bool:
        return self.scheduler._fleet[replica].offer.open

    def drains(self, **labels: str) -> float:
        return self.registry.get_sample_value("penstock_replica_drains_total", labels) or 0.0

    def say(self, kind: str, left_s: float | None = None, replica: ReplicaId = A) -> None:
        deadline_s = None if left_s is None else asyncio.get_running_loop().time() + left_s
        self.farewells.join(replica, Standing(kind=Kind(kind), deadline_s=deadline_s, provider="aws"))


@asynccontextmanager
async def scene(*, b: bool = True, margin_s: float = 2.0) -> AsyncIterator[Scene]:
    scheduler = Scheduler(Scheduling(), Queue())
    admission = Admission(scheduler)
    registry = CollectorRegistry()
    metrics, streams = Metrics.create(registry), FakeStreams()
    farewells = Farewells(Spot(margin_s=margin_s), admission, streams, metrics)
    engines = {name: Engine(models=(ServedModel(name="m"),)) for name in (("a", "b") if b else ("a",))}
    async with asyncio.TaskGroup() as tasks:
        settings = Config(probe=Probe(unhealthy_after=1))
        watch = FleetWatch(admission, settings, tasks, metrics=metrics, streams=streams)
        farewells.begin(watch)
        for number, (name, engine) in enumerate(engines.items()):
            url = f"http://127.0.0.1:{9000 + number}"
            watch.add(ReplicaConfig.model_validate({"name": name, "url": url}), engine)
            farewells.added(ReplicaId(name))
        await watch.first_look()
        running = tasks.create_task(farewells.run())
        yield Scene(farewells, watch, scheduler, streams, metrics, registry, engines)
        running.cancel()
        watch.close()
        admission.close()


def test_reclaim_from_notice_to_release(caplog: pytest.LogCaptureFixture):
    """What will not end moves at once, what still runs before the deadline is cut, then the machine may go."""
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with scene() as s:
            s.streams.on[A] = 3
            s.say("reclaim", 30.0)
            assert (s.lifecycle(), s.takes(), s.released()) == (Lifecycle.RECLAIMING, True, False)
            assert s.streams.moved == [(0.0, "a", 28.0)]
            await asyncio.sleep(27.9)
            assert (s.takes(), s.released(), len(s.streams.moved)) == (True, False, 1)
            await asyncio.sleep(0.2)
            assert s.streams.moved[1:] == [(28.0, "a", None)]
            assert (s.takes(), s.released()) == (False, True)
            assert s.drains(replica="a", reason="reclaim", outcome="cut") == 1

    run_virtual(main())
    assert "replica a is released (reclaim) after 28.0 s" in caplog.text


def test_released_early_and_nothing_is_sent_afterwards():
    """The last stream ends long before the deadline: it may go, and takes no more although it had time left."""

    async def main() -> None:
        async with scene() as s:
            s.streams.on[A] = 1
            s.say("reclaim", 120.0)
            await asyncio.sleep(10)
            s.streams.on[A] = 0
            await asyncio.sleep(0.2)
            assert (s.released(), s.takes(), s.lifecycle()) == (True, False, Lifecycle.RECLAIMING)
            await asyncio.sleep(130)
            assert [by_s for _, _, by_s in s.streams.moved] == [118.0]
            assert not s.takes()
            assert s.drains(replica="a", reason="reclaim", outcome="released") == 1
            assert s.registry.get_sample_value(
                "penstock_spot_drain_seconds_sum", {"provider": "aws", "kind": "reclaim"}
            ) == pytest.approx(10, abs=0.2)

    run_virtual(main())


def test_idle_replica_is_released_at_once():
    """In the very answer to the notice."""

    async def main() -> None:
        async with scene() as s:
            s.say("reclaim", 30.0)
            assert (s.released(), s.takes()) == (True, False)

    run_virtual(main())


def test_last_replica_of_a_model_serves_until_it_must_be_empty():
    """Nobody else could: an early release would send requests away."""

    async def main() -> None:
        async with scene(b=False) as s:
            s.say("reclaim", 30.0)
            assert (s.released(), s.takes()) == (False, True)
            await asyncio.sleep(28.05)
            assert (s.released(), s.takes()) == (True, False)

    run_virtual(main())


def test_drain_waits_for_its_streams_as_long_as_they_take():
    """No new work, nothing is moved, and it is released when the last has ended."""

    async def main() -> None:
        async with scene() as s:
            s.streams.on[A] = 1
            s.say("drain")
            assert (s.lifecycle(), s.takes()) == (Lifecycle.DRAINING, False)
            await asyncio.sleep(5000)
            assert (s.streams.moved, s.released()) == ([], False)
            s.streams.on[A] = 0
            await asyncio.sleep(0.2)
            assert s.released()

    run_virtual(main())


@pytest.mark.parametrize("kind", ["drain", "maintenance"])
def test_drain_with_a_deadline_moves_what_is_left(kind: str):
    """At the margin before it, and not sooner."""

    async def main() -> None:
        async with scene() as s:
            s.streams.on[A] = 2
            s.say(kind, 60.0)
            await asyncio.sleep(59)
            assert s.streams.moved == [(58.0, "a", None)]
            assert s.released()

    run_virtual(main())


def test_sooner_deadline_wins_while_it_runs():
    """The streams are asked again, by the new time; a later one changes nothing."""

    async def main() -> None:
        async with scene() as s:
            s.streams.on[A] = 2
            s.say("reclaim", 120.0)
            await asyncio.sleep(10)
            s.say("reclaim", 20.0)
            s.say("reclaim", 300.0)
            assert (s.lifecycle(), s.takes()) == (Lifecycle.RECLAIMING, True)
            assert s.streams.moved == [(0.0, "a", 118.0), (pytest.approx(10.0), "a", pytest.approx(28.0))]
            await asyncio.sleep(18.1)
            assert s.streams.moved[2:] == [(pytest.approx(28.0), "a", None)]

    run_virtual(main())


def test_past_deadline_means_now():
    """Cut at once, without asking who could have finished."""

    async def main() -> None:
        async with scene() as s:
            s.streams.on[A] = 2
            s.say("reclaim", 0.0)
            assert s.streams.moved == [(0.0, "a", None)]
            assert (s.released(), s.takes()) == (True, False)

    run_virtual(main())


def test_what_cannot_be_cut_is_cut_again_at_the_deadline():
    """And the replica is not said to be free before it is."""

    async def main() -> None:
        async with scene() as s:
            s.streams.on[A], s.streams.stuck = 2, True
            s.say("reclaim", 10.0)
            await asyncio.sleep(20)
            assert s.streams.moved == [(0.0, "a", 8.0), (8.0, "a", None), (10.0, "a", None)]
            assert not s.released()
            s.streams.on[A] = 0
            await asyncio.sleep(0.2)
            assert s.released()
            assert s.drains(replica="a", reason="reclaim", outcome="overdue") == 1

    run_virtual(main())


def test_restore_brings_it_back_through_a_look():
    """It takes everything again, and the deadline is forgotten."""

    async def main() -> None:
        async with scene() as s:
            s.streams.on[A] = 2
            s.say("reclaim", 30.0)
            await asyncio.sleep(5)
            s.farewells.told(A, None)
            assert s.farewells.standing(A) is None
            await asyncio.sleep(0.01)
            assert (s.lifecycle(), s.takes()) == (Lifecycle.READY, True)
            assert s.scheduler._fleet[A].offer.window is None
            await asyncio.sleep(60)
            assert [by_s for _, _, by_s in s.streams.moved] == [28.0]
            assert s.drains(replica="a", reason="reclaim", outcome="restored") == 1

    run_virtual(main())


def test_restore_of_an_engine_that_does_not_answer_waits_for_it():
    """Nothing is sent where nobody has looked."""

    async def main() -> None:
        async with scene() as s:
            s.say("drain")
            s.engines["a"].alive = False
            s.farewells.told(A, None)
            await asyncio.sleep(0.01)
            assert s.lifecycle() is Lifecycle.DOWN
            assert not s.takes()

    run_virtual(main())


def test_notice_is_over_when_the_machine_is_gone_and_something_is_back():
    """Whoever answers there then owes nothing."""

    async def main() -> None:
        over: list[tuple[str, str]] = []
        async with scene() as s:
            s.farewells.on_over = lambda replica, why: over.append((replica, why))
            s.say("reclaim", 30.0)
            s.engines["a"].alive = False
            await asyncio.sleep(40)
            assert (s.lifecycle(), s.released()) == (Lifecycle.DOWN, True)
            s.engines["a"].alive = True
            await asyncio.sleep(1.1)
            assert (s.lifecycle(), s.takes(), s.farewells.standing(A)) == (Lifecycle.READY, True, None)
            assert over == [("a", "vanished")]

    run_virtual(main())


def test_drain_outlives_its_engine():
    """A restart for which it was drained does not end the drain: who drained it says when."""

    async def main() -> None:
        async with scene() as s:
            s.say("drain")
            s.engines["a"].alive = False
            await asyncio.sleep(5)
            assert s.lifecycle() is Lifecycle.DOWN
            s.engines["a"].alive = True
            await asyncio.sleep(5)
            assert (s.lifecycle(), s.takes(), s.released()) == (Lifecycle.DRAINING, False, True)
            s.farewells.told(A, None)
            await asyncio.sleep(0.01)
            assert s.lifecycle() is Lifecycle.READY

    run_virtual(main())


def test_hint_bounds_new_work_and_ends_with_the_machine():
    """Ready all the while, never released, nothing moved."""

    async def main() -> None:
        async with scene() as s:
            s.streams.on[A] = 1
            s.say("rebalance")
            window = s.scheduler._fleet[A].offer.window
            assert window is not None
            assert (window.longest_s, window.closes) == (30.0, False)
            assert (s.lifecycle(), s.streams.moved, s.released()) == (Lifecycle.READY, [], False)
            s.say("reclaim", 30.0)
            assert (s.lifecycle(), s.streams.moved) == (Lifecycle.RECLAIMING, [(0.0, "a", 28.0)])

    run_virtual(main())


def test_words_before_the_replica_is_known_hold_once_it_is():
    """A worker that starts anew hears of a drain before it has looked at anything."""

    async def main() -> None:
        async with scene() as s:
            s.farewells.told(ReplicaId("c"), Standing(kind=Kind.DRAIN))
            s.farewells.look()
            s.watch.add(ReplicaConfig.model_validate({"name": "c", "url": "http://127.0.0.1:9009"}), Engine())
            s.farewells.added(ReplicaId("c"))
            await asyncio.sleep(3)
            assert s.lifecycle(ReplicaId("c")) is Lifecycle.DRAINING
            assert s.released(ReplicaId("c"))

    run_virtual(main())


def test_removed_replica_is_still_emptied_in_time():
    """A reload forgets the name; its streams are moved by the deadline, and a new machine of that name owes nothing."""

    async def main() -> None:
        async with scene() as s:
            s.streams.on[A] = 1
            s.say("reclaim", 30.0)
            s.watch.remove(A)
            s.farewells.removed(A)
            await asyncio.sleep(28.2)
            assert s.streams.moved[-1] == (28.0, "a", None)
            assert s.farewells.standing(A) is None
            s.streams.on[B] = 1
            s.say("drain", replica=B)
            s.watch.remove(B)
            s.farewells.removed(B)
            s.watch.add(ReplicaConfig.model_validate({"name": "b", "url": "http://127.0.0.1:9009"}), Engine())
            s.farewells.added(B)
            await asyncio.sleep(2)
            assert (s.lifecycle(B), s.farewells.standing(B)) == (Lifecycle.READY, None)

    run_virtual(main())


def test_deadlines_are_a_gauge():
    """Seconds left, never below zero, and nothing where none stands."""

    async def main() -> None:
        async with scene() as s:
            s.streams.on = {A: 1, B: 1}
            s.streams.stuck = True
            s.say("reclaim", 30.0)
            s.say("drain", replica=B)

            def left(replica: str) -> float | None:
                s.farewells.refresh_gauges(asyncio.get_running_loop().time())
                return s.registry.get_sample_value("penstock_replica_deadline_seconds", {"replica": replica})

            assert (left("a"), left("b")) == (30.0, None)
            await asyncio.sleep(45)
            assert left("a") == 0.0
            s.farewells.told(A, None)
            assert left("a") is None

    run_virtual(main())


def test_trouble_with_one_replica_does_not_keep_others_from_their_deadlines(caplog: pytest.LogCaptureFixture):
    """An error of ours is logged, and the next one is emptied."""

    async def main() -> None:
        async with scene() as s:
            s.streams.on = {A: 1, B: 1}
            s.say("drain", 10.0)
            s.say("drain", 10.0, replica=B)
            moving: Any = s.streams.move_off

            def failing(replica: ReplicaId, *, by_s: float | None) -> None:
                if replica == A:
                    raise RuntimeError("a bug")
                moving(replica, by_s=by_s)

            s.streams.move_off = failing  # type: ignore[method-assign]
            await asyncio.sleep(11)
            assert (s.released(A), s.released(B)) == (False, True)

    run_virtual(main())
    assert "replica a cannot be emptied" in caplog.text


def test_a_notice_of_a_machine_that_is_only_coming_is_kept():
    """Told while it was down: the machine that comes is the one that goes, and takes nothing; what comes after it works."""

    async def main() -> None:
        async with scene() as s:
            s.engines["a"].alive = False
            await asyncio.sleep(3)
            assert s.lifecycle() is Lifecycle.DOWN
            s.say("reclaim", 20.0)
            s.engines["a"].alive = True
            await asyncio.sleep(10)
            assert (s.lifecycle(), s.takes(), s.released()) == (Lifecycle.DRAINING, False, True)
            s.engines["a"].alive = False
            await asyncio.sleep(10)
            s.engines["a"].alive = True
            await asyncio.sleep(10)
            assert (s.lifecycle(), s.takes(), s.released()) == (Lifecycle.READY, True, False)
            s.say("reclaim", 5.0)
            await asyncio.sleep(5)
            s.engines["a"].alive = False
            await asyncio.sleep(10)
            s.say("reclaim", 30.0)  # after the last one's deadline: of yet another machine
            s.engines["a"].alive = True
            await asyncio.sleep(10)
            assert not s.takes()

    run_virtual(main())
