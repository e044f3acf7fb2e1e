"""The page of metrics does not grow with what clients make up, nor with fleets that come and go."""

import asyncio
from collections import Counter

from backends.backend import ServedModel
from config.schema import Config
from metrics.exposition import render
from metrics.pages import read
from tests.support.asgi import chat, post
from tests.support.fake_engine import FakeEngine, Script, document
from tests.support.gateways import Running, fake_config, gateway_over
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"
GENERATION = 50
GENERATIONS = 30


class AnyEngine(dict[str, FakeEngine]):
    """An engine for whoever is configured."""

    def __missing__(self, name: str) -> FakeEngine:
        self[name] = engine()
        return self[name]

    def __contains__(self, _: object) -> bool:
        return True


def engine(models: range = range(0)) -> FakeEngine:
    names = ["m", *(f"adapter-{number}" for number in models)]
    answer = Script([document()], content_type="application/json")
    served = tuple(ServedModel(name=name) for name in names)
    return FakeEngine(default=lambda: Script(list(answer.pieces), content_type=answer.content_type), models=served)


def series(running: Running) -> Counter[str]:
    """Combinations of labels by instrument; without making a page, which is what takes long."""
    running.gateway.refresh_gauges()
    page = read(running.gateway.metrics)
    parts = (page.counters, page.gauges, page.histograms)
    return Counter({name: len(found) for part in parts for name, found in part.items()})


def of(names: list[str], running: Running) -> Config:
    config = fake_config({name: engine() for name in names})
    return running.gateway.config.model_copy(update={"replicas": config.replicas})


async def ask(running: Running, model: str = "m") -> int | None:
    return (await post(running.app, CHAT, chat(model=model, max_tokens=4)).run()).status


def test_names_that_clients_make_up_are_other():
    """5,000 of them are one series."""

    async def main() -> None:
        async with gateway_over({"a": engine()}) as running:
            await ask(running)
            before = series(running)
            for number in range(5000):
                assert await ask(running, f"made-up-{number}") == 404
            more = series(running) - before
            assert more == {"requests_total": 1, "requests_in_flight": 1}
            assert running.metric("penstock_requests_total", model="other", error_code="model_not_found") == 5000

    run_virtual(main())


def test_models_beyond_a_thousand_are_other():
    """5,000 adapters that engines really serve: a thousand have series of their own, and nothing that was asked is lost."""

    async def main() -> None:
        engines = {f"r-{first}": engine(range(first, first + 100)) for first in range(0, 5000, 100)}
        async with gateway_over(engines) as running:
            for number in range(1, 5000, 4):
                assert await ask(running, f"adapter-{number}") == 200
            told = series(running)
            assert told["requests_total"] <= 1001
            assert told["tokens_total"] <= 2 * (1001 + 50)
            assert told["queue_depth"] <= 1001
            assert told["desired_replicas"] <= 1000
            assert running.metric("penstock_requests_total", model="other") > 0
            assert running.metric("penstock_requests_total") == running.metric("penstock_tokens_total") / 7 == 1250

    run_virtual(main())


def test_replicas_that_come_and_go():
    """1,500 of them, 50 at a time, each with an answer: no more series than 178 have, and an hour later none but those that are there."""

    async def main() -> None:
        engines = AnyEngine()
        async with gateway_over(
            engines, fake_config({"first": engine()}, scheduling={"policy": "round_robin"}, probe={"interval_s": 2})
        ) as running:
            await ask(running)
            running.gateway.reload(of([], running))
            most = 0
            for generation in range(GENERATIONS):
                names = [f"r-{generation}-{number}" for number in range(GENERATION)]
                running.gateway.reload(of(names, running))
                await asyncio.sleep(3.0)
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(GENERATION):
                        tasks.create_task(ask(running))
                told = series(running)
                assert told["replica_up"] == GENERATION
                assert told["replica_state"] == 9 * GENERATION
                most = max(most, told["upstream_attempts_total"])
            assert running.metric("penstock_upstream_attempts_total", replica="r-0-0") == 0, "long gone"
            assert GENERATION < most <= 128 + GENERATION + 1
            running.gateway.reload(of(names[:3], running))
            await asyncio.sleep(3700.0)
            left = series(running)
            assert left["upstream_attempts_total"] == left["batch_fill_ratio"] == 3
            running.gateway.reload(of([], running))
            running.gateway._departed.look(asyncio.get_running_loop().time() + 3700.0)
            assert "replica=" not in render(running.gateway.registry)[0].decode()

    run_virtual(main())


def test_a_replica_that_returns_counts_again():
    """Hours later, under the same name: what it does is seen, not counted on a series that nobody scrapes."""

    async def main() -> None:
        async with gateway_over({"a": engine()}) as running:
            await ask(running)
            there, gone = of(["a"], running), of([], running)
            running.gateway.reload(gone)
            await asyncio.sleep(4000.0)
            assert running.metric("penstock_tokens_total", replica="a") == 0
            running.gateway.reload(there)
            await asyncio.sleep(2.0)
            assert await ask(running) == 200
            for name in (
                "tokens_total",
                "upstream_attempts_total",
                "request_duration_seconds_count",
                "routing_decisions_total",
            ):
                assert running.metric(f"penstock_{name}", replica="a") > 0, name

    run_virtual(main())
