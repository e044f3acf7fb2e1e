"""Dollars of a whole gateway in virtual time: what its requests are charged is price x time, whatever becomes of them."""

import asyncio
import random
from typing import Any

import pytest

from config.schema import Config
from tests.support.asgi import Call, chat, post
from tests.support.breaking_engine import breaking_simulated
from tests.support.conditions import at_rest
from tests.support.fake_engine import FakeEngine, Script, whole_stream
from tests.support.gateways import Running, fake_config, gateway_over
from tests.support.simulated_fleet import CHAT, fleet, fleet_config
from tests.support.virtual_time import run_virtual

CHARGED, MACHINES = "penstock_cost_units_total", "penstock_replica_cost_units_total"
USD_PER_HOUR = {"a": 3.6, "b": 7.2, "r": 1.8}
CAPACITY = {"max_num_seqs": 256, "kv_blocks": 20_000, "max_num_batched_tokens": 8192, "max_model_len": 8192}


def priced(*names: str, **sections: Any) -> Config:
    """Simulated replicas with prices; one called `r` is reserved."""
    told = fleet_config(*names, capacity=CAPACITY, **sections).model_dump()
    for replica in told["replicas"]:
        name = replica["name"]
        replica["cost"] = {"tier": "reserved" if name == "r" else "on_demand", "usd_per_hour": USD_PER_HOUR[name]}
    return Config.model_validate(told)


async def usage(running: Running, query: str = "") -> dict[str, Any]:
    call = Call(running.app, f"/admin/usage{query}", method="GET", headers=[("host", "127.0.0.1")])
    told: dict[str, Any] = (await call.run()).json()
    return told


def body(tokens: int, words: int = 1, **more: Any) -> dict[str, Any]:
    return chat("word " * words, stream=True, max_tokens=tokens, ignore_eos=True, **more)


def test_five_hundred_streams_are_charged_for_what_their_machines_cost():
    """Of all replicas together: charged is busy, busy and idle is price x time; and usage knows the same dollars."""

    async def main() -> None:
        rng = random.Random(1)
        async with fleet(priced("a", "b", "r")) as all_of_it:
            running, loop = all_of_it.running, asyncio.get_running_loop()
            began_s = loop.time()
            async with asyncio.TaskGroup() as tasks:
                for number in range(500):
                    tier = rng.choice(("default", "flex", "priority"))
                    wanted = body(rng.randrange(1, 120), rng.randrange(1, 400), service_tier=tier)
                    tasks.create_task(post(running.app, CHAT, wanted).run())
                    if number % 10 == 0:
                        await asyncio.sleep(rng.random() / 50)
                    if number % 50 == 0:
                        running.gateway.refresh_gauges()  # scrapes in between change nothing
            passed_s = loop.time() - began_s
            for name, usd in USD_PER_HOUR.items():
                busy, idle = (running.metric(MACHINES, replica=name, state=state) for state in ("busy", "idle"))
                assert busy > 0
                assert busy + idle == pytest.approx(usd / 3600 * passed_s, rel=1e-6)
                assert running.metric(CHARGED, replica=name) == pytest.approx(busy, rel=1e-9)
            told = await usage(running, "?group_by=replica,service_tier")
            assert told["totals"]["requests"] == 500
            for row in told["data"]:
                charged = running.metric(CHARGED, replica=row["replica"], service_tier=row["service_tier"])
                assert row["usd"] == pytest.approx(charged, rel=1e-9)
            output = running.metric("penstock_tokens_total", kind="output")
            assert told["totals"]["output_tokens"] == output
            assert told["totals"]["input_tokens"] == running.metric(
                "penstock_tokens_total", kind="input"
            ) + running.metric("penstock_tokens_total", kind="cached_input")

    run_virtual(main())


def test_the_dollars_of_a_long_stream_come_while_it_runs():
    """At every scrape so many as were due by then; usage has them when it has ended."""

    async def main() -> None:
        async with fleet(priced("a")) as all_of_it, asyncio.TaskGroup() as tasks:
            running = all_of_it.running
            task = tasks.create_task(post(running.app, CHAT, body(8000)).run())
            await asyncio.sleep(1)
            before = running.metric(CHARGED)
            await asyncio.sleep(30)
            assert running.metric(CHARGED) - before == pytest.approx(30 * USD_PER_HOUR["a"] / 3600)
            assert (await usage(running))["totals"]["usd"] == 0
            await task
            assert (await usage(running))["totals"]["usd"] == pytest.approx(running.metric(CHARGED))

    run_virtual(main())


def test_a_price_that_changes_in_the_middle_of_a_stream_counts_from_then():
    """By a reload; the stream is not touched."""

    async def main() -> None:
        config = priced("a")
        async with fleet(config) as all_of_it, asyncio.TaskGroup() as tasks:
            running = all_of_it.running
            tasks.create_task(post(running.app, CHAT, body(8000)).run())
            await asyncio.sleep(5)
            told = config.model_dump()
            told["replicas"][0]["cost"]["usd_per_hour"] = 36.0
            running.gateway.reload(Config.model_validate(told))
            await asyncio.sleep(1.5)  # a look later the scheduler knows
            before = running.metric(CHARGED)
            await asyncio.sleep(10)
            assert running.metric(CHARGED) - before == pytest.approx(10 * 36.0 / 3600)

    run_virtual(main())


def test_an_answer_that_moved_is_charged_at_both_machines():
    """For what each did; the request is counted once, where it ended."""

    async def main() -> None:
        config = priced("a", "b")
        engines = {name: breaking_simulated(config, name) for name in ("a", "b")}
        shared = [(50, "cut")]
        for engine in engines.values():
            engine.breaks = shared
        async with gateway_over(engines, config) as running:
            call = await post(running.app, CHAT, body(200)).run()
            assert call.events()[-1] == "[DONE]"
            await asyncio.sleep(1)
            assert at_rest(running)
            told = await usage(running, "?group_by=replica")
            rows = {row["replica"]: row for row in told["data"]}
            assert set(rows) == {"a", "b"}
            assert all(row["usd"] > 0 for row in rows.values())
            assert sorted(row["requests"] for row in rows.values()) == [0, 1]
            for name, row in rows.items():
                assert row["usd"] == pytest.approx(running.metric(CHARGED, replica=name))

    run_virtual(main())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_has_paid_for_what_it_got(stream: bool):
    """Cancelled requests are in usage, with the tokens and dollars that they used."""

    async def main() -> None:
        async with fleet(priced("a")) as all_of_it, asyncio.TaskGroup() as tasks:
            running = all_of_it.running
            task = tasks.create_task(post(running.app, CHAT, {**body(5000), "stream": stream}).run())
            await asyncio.sleep(5)
            task.cancel()
            await asyncio.wait({task})
            await asyncio.sleep(1)
            totals = (await usage(running))["totals"]
            assert (totals["requests"], totals["cancelled"]) == (1, 1)
            assert totals["usd"] == pytest.approx(5 * USD_PER_HOUR["a"] / 3600, rel=0.01)
            assert totals["usd"] == pytest.approx(running.metric(CHARGED))
            assert totals["input_tokens"] == totals["estimated_input_tokens"] > 0

    run_virtual(main())


def test_what_is_refused_costs_nothing_and_is_counted():
    """A request that no replica could ever hold; an unknown model's name is nobody's label."""

    async def main() -> None:
        async with fleet(priced("a")) as all_of_it:
            running = all_of_it.running
            await post(running.app, CHAT, body(10, words=50_000)).run()
            await post(running.app, CHAT, {**body(10), "model": "=nonsense"}).run()
            told = await usage(running, "?group_by=model,replica")
            assert {(row["model"], row["replica"], row["refused"]) for row in told["data"]} == {
                ("m", "", 1),
                ("other", "", 1),
            }
            assert told["totals"]["usd"] == 0

    run_virtual(main())


def test_an_embedding_pays_too():
    """Whatever is placed on a machine pays for it."""

    async def main() -> None:
        told = priced("a").model_dump()
        told["replicas"][0]["models"] = [{"name": "m", "kind": "embedding"}]
        async with fleet(Config.model_validate(told)) as all_of_it:
            running = all_of_it.running
            answer = await post(running.app, "/v1/embeddings", {"model": "m", "input": "Hello"}).run()
            assert answer.status == 200
            assert running.metric(CHARGED, model="m") > 0
            assert (await usage(running))["totals"]["usd"] == pytest.approx(running.metric(CHARGED))

    run_virtual(main())


def test_both_replicas_of_a_hedged_request_are_paid_by_it():
    """The one that was left, for as long as it had it, and the one that answered."""
    engines = {name: FakeEngine(default=lambda: Script(whole_stream(), head_s=0.01)) for name in ("a", "b")}
    told = fake_config(engines, scheduling={"hedge": {"floor_s": 0.5}}).model_dump()
    for replica in told["replicas"]:
        replica["cost"] = {"usd_per_hour": USD_PER_HOUR[replica["name"]]}

    async def main() -> None:
        async with gateway_over(engines, Config.model_validate(told)) as running:
            for _ in range(25):  # its predictions are worth something
                await post(running.app, CHAT, chat(stream=True, max_tokens=20)).run()
            before = {name: running.metric(CHARGED, replica=name) for name in engines}
            assert before["b"] == 0
            engines["a"].scripts = [Script(hang=True)]
            call = await post(running.app, CHAT, chat(stream=True, max_tokens=20)).run()
            assert call.header("x-penstock-replica") == "b"
            await asyncio.sleep(1)
            hedge_s = (running.metric(CHARGED, replica="a") - before["a"]) / USD_PER_HOUR["a"] * 3600
            assert hedge_s == pytest.approx(0.5, rel=0.05)
            rows = {row["replica"]: row for row in (await usage(running, "?group_by=replica"))["data"]}
            assert {name: row["requests"] for name, row in rows.items()} == {"a": 25, "b": 1}
            for name, row in rows.items():
                assert 0 < row["usd"] == pytest.approx(running.metric(CHARGED, replica=name))

    run_virtual(main())


def test_prices_on_demand_are_told_where_somebody_has_said_them():
    """A reserved machine's is that of an on-demand one like it; without such a one there is no figure."""

    async def main(*names: str) -> dict[str, float]:
        async with fleet(priced(*names)) as all_of_it:
            running = all_of_it.running
            return {name: running.metric("penstock_replica_on_demand_usd_per_hour", replica=name) for name in names}

    assert run_virtual(main("a", "r")) == {"a": 3.6, "r": 3.6}
    assert run_virtual(main("r")) == {"r": 0.0}
