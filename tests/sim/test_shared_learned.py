"""A gateway that is new begins from what others have learned, in virtual time: its first predictions are better, and wrong ones soon forgotten."""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from statistics import fmean
from typing import Any

import pytest

from backends.simulated.backend import SimulatedBackend
from backends.simulated.options import EngineOptions
from batching import lessons
from batching.audit import Judged, Signal, judge, named
from batching.learned import Figure, Learned, OfAnswers, OfModel, OfReplica, packed, unpacked
from tests.support.asgi import chat, post
from tests.support.fake_book import FakeBook, Store
from tests.support.gateways import Running, gateway_over
from tests.support.simulated_fleet import CHAT, fleet_config
from tests.support.virtual_time import run_virtual

SETTLED_S = 4.0  # a new book gives nothing for a lease
REQUESTS = 50
SPEEDS = {"slow": 0.2, "swift": 0.5}  # of what their GPUs promise


def engines() -> dict[str, SimulatedBackend]:
    return {
        name: SimulatedBackend(EngineOptions(model="m", gpu="A100-80G", max_num_seqs=16, speed=speed))
        for name, speed in SPEEDS.items()
    }


@asynccontextmanager
async def gateway(
    store: Store, name: str, fleet: Mapping[str, SimulatedBackend]
) -> AsyncIterator[tuple[Running, FakeBook]]:
    """Its replicas are A100s, as far as it is told."""
    capacity = {"max_num_seqs": 16}
    config = fleet_config(*fleet, capacity=capacity, redis={"url": "redis://book", "name": name})
    book = FakeBook(store)
    async with gateway_over(fleet, config, book=book) as running:
        yield running, book


async def ask(running: Running, requests: int, seed: int, every_s: float = 0.15) -> None:
    """One after the other at random times; answers are far shorter than what clients allow."""
    random_ = random.Random(seed)
    async with asyncio.TaskGroup() as tasks:
        for number in range(requests):
            prompt = f"{seed} {number} " + "lorem " * random_.randint(5, 400)
            body = chat(prompt, stream=True, max_tokens=4000)
            tasks.create_task(post(running.app, CHAT, body).run())
            await asyncio.sleep(random_.expovariate(1 / every_s))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Judged]:
    """Every prediction and what came of it, of whatever gateway answers."""
    found: list[Judged] = []

    def recorded(*args: Any, **values: Any) -> Any:
        samples = judge(*args, **values)
        found.extend(named(samples))
        return samples

    monkeypatch.setattr(lessons, "judge", recorded)
    return found


def errors(judged: list[Judged]) -> dict[Signal, float]:
    """Mean errors, 0 to 1."""
    found = defaultdict(list)
    for one in judged:
        found[one.signal].append(one.error_ratio)
    return {signal: fmean(each) for signal, each in found.items()}


async def first_requests(
    store: Store, judged: list[Judged], fleet: Mapping[str, SimulatedBackend]
) -> dict[Signal, float]:
    """Of a gateway that has just started."""
    async with gateway(store, "new", fleet) as (new, _):
        await asyncio.sleep(SETTLED_S)
        judged.clear()
        await ask(new, REQUESTS, seed=2)
        return errors(judged)


def test_a_new_gateway_predicts_as_one_that_has_learned(judged: list[Judged]) -> None:
    """Of its first fifty answers the time to the first token, per token and to the end, and the length, are foretold better than without."""

    async def main() -> tuple[dict[Signal, float], dict[Signal, float]]:
        store, fleet = Store(), engines()
        async with gateway(store, "old", fleet) as (old, _):
            await asyncio.sleep(SETTLED_S)
            await ask(old, 120, seed=1)
            await asyncio.sleep(31)
            taught = await first_requests(store, judged, fleet)
        return taught, await first_requests(Store(), judged, engines())

    taught, alone = run_virtual(main())
    for signal in (Signal.TTFT, Signal.TPOT, Signal.OUTPUT, Signal.FINISH):
        assert taught[signal] < alone[signal], signal
    assert taught[Signal.TPOT] < 0.5 * alone[Signal.TPOT]


async def first_four(store: Store) -> list[str | None]:
    """Where the first requests of a new gateway go, one after the other; each is new to all caches."""
    async with gateway(store, "new", engines()) as (new, _):
        await asyncio.sleep(SETTLED_S)
        calls = []
        for number in range(4):
            body = chat(f"{number} " + "lorem " * 300, stream=True, max_tokens=8)
            calls.append(await post(new.app, CHAT, body).run())
        return [call.header("x-penstock-replica") for call in calls]


@pytest.fixture(scope="module")
def learned() -> bytes:
    """What a gateway has put down that answered many, and left."""

    async def main() -> bytes:
        store = Store()
        async with gateway(store, "old", engines()) as (old, _):
            await asyncio.sleep(SETTLED_S)
            await ask(old, 120, seed=1)
        return store.learned.read(Store.now_ms())[0].body

    return run_virtual(main())


def taught(body: bytes, name: str = "old") -> Store:
    """A store in which it lies. Inside a loop."""
    store = Store()
    store.learned.put(Store.now_ms(), name, body)
    return store


def test_the_first_placement_goes_by_it(learned: bytes) -> None:
    """Nothing was answered here yet, and the very first requests go to the machine that another gateway, gone by now, found to be faster."""

    async def main() -> list[str | None]:
        return await first_four(taught(learned))

    assert run_virtual(main()) == ["swift"] * 4
    assert "slow" in run_virtual(first_four(Store()))


def test_what_was_inherited_is_handed_on(learned: bytes) -> None:
    """A gateway that starts, answers nobody and ends leaves no less for the next of its name."""

    async def main() -> tuple[Learned, list[str | None]]:
        store = taught(learned)
        for _ in range(2):
            async with gateway(store, "old", engines()):
                await asyncio.sleep(SETTLED_S)
        after = unpacked(store.learned.read(Store.now_ms())[0].body)
        return after, await first_four(store)

    before, (after, where) = unpacked(learned), run_virtual(main())
    assert {one.replica for one in after.replicas} == {one.replica for one in before.replicas}
    assert {kind.octave for kind in after.answers} == {kind.octave for kind in before.answers}
    assert where == ["swift"] * 4


def wrong(replicas: tuple[str, ...]) -> bytes:
    """All of it: ten times too slow, answers a hundred times too long, and much evidence."""
    machine = "1 A100-80G in 1, 8b, 1"
    sure = Figure(10.0, 500)
    return packed(
        Learned(
            [OfModel("m", Figure(0.5, 500))],
            [OfAnswers("m", 12, {48: 500.0}, 4000.0)],
            [
                OfReplica(name, machine, ["m"], sure, sure, Figure(0.1, 500), Figure(6.0, 500), Figure(0, 0))
                for name in replicas
            ],  # type: ignore[arg-type]
        )
    )


def test_what_is_wrong_is_soon_forgotten(judged: list[Judged]) -> None:
    """It was said with much evidence; after 150 answers predictions are as good as of a gateway that began alone."""

    async def main(store: Store) -> dict[Signal, float]:
        async with gateway(store, "new", engines()) as (new, _):
            await asyncio.sleep(SETTLED_S)
            await ask(new, 150, seed=1)
            judged.clear()
            await ask(new, REQUESTS, seed=2)
            return errors(judged)

    async def told_wrong() -> dict[Signal, float]:
        return await main(taught(wrong(tuple(SPEEDS)), "liar"))

    misled_errors, own = run_virtual(told_wrong()), run_virtual(main(Store()))
    for signal in (Signal.TPOT, Signal.OUTPUT, Signal.FINISH):
        assert misled_errors[signal] < own[signal] + 0.05, signal


@pytest.mark.parametrize(
    "body", [b"", b"penstock-learned/99\nx", b"penstock-learned/1\n\xc1", b"penstock-learned/1\n" + b"x" * 300_000]
)
def test_what_cannot_be_used_is_ignored(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Garbled, of another version, or far too much: one line of the log, and the gateway serves."""

    async def main() -> int | None:
        store = Store()
        store.learned.put(Store.now_ms(), "odd", body)
        store.learned.put(Store.now_ms(), "odder", body)
        async with gateway(store, "new", engines()) as (new, _):
            await asyncio.sleep(SETTLED_S)
            return (await post(new.app, CHAT, chat(stream=True, max_tokens=5)).run()).status

    with caplog.at_level(logging.INFO, "penstock.shared"):
        assert run_virtual(main()) == 200
    assert len([record for record in caplog.records if "is ignored" in record.getMessage()]) == 1


def test_without_redis_the_start_waits_for_one_call_at_most(learned: bytes) -> None:
    """It does not answer: the gateway has begun after one time-out, goes by its priors, and takes what there is when Redis is back."""

    async def main() -> tuple[float, float, float]:
        store = taught(learned)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        config = fleet_config(*SPEEDS, capacity={"max_num_seqs": 16}, redis={"url": "redis://book", "name": "new"})
        book = FakeBook(store)
        book.reachable = False
        async with gateway_over(engines(), config, book=book) as running:
            took_s = loop.time() - began_s
            await asyncio.sleep(35)
            before = factor(running)
            book.reachable = True
            await asyncio.sleep(35)
            return took_s, before, factor(running)

    took_s, before, after = run_virtual(main())
    assert took_s <= 0.5
    assert before == 1.0
    assert after > 2


def factor(running: Running) -> float:
    """By which a step of the slow machine is thought to be longer than promised."""
    (state,) = [s for s in running.gateway.scheduler.states(0.0) if s.profile.id == "slow"]
    return state.extras["tpot_factor"]


def test_a_replica_that_comes_later_begins_from_machines_like_it(learned: bytes) -> None:
    """Its name is new, as a pod's is after each restart; the machine and the model are not."""

    async def main() -> float:
        store = taught(learned)
        fleet = {"pod-7f": engines()["slow"]}
        async with gateway(store, "new", fleet) as (new, _):
            await asyncio.sleep(SETTLED_S)
            (state,) = new.gateway.scheduler.states(0.0)
            return state.extras["tpot_factor"]

    assert run_virtual(main()) > 1.5
