"""Dollars of a gateway process as an operator sees them: on its page of metrics and in its usage, against the clock and the price.

Every comparison with the clock is a bracket: what passed between two answers is at least what passed between the asking, so that no
slow machine can fail it.
"""

import asyncio
import csv
import io
import json
import os
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.asgi import chat
from tests.support.gateway_process import serving
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import RawClient, ask, connected, get, post
from tests.support.scrape import from_page

CHAT = "/v1/chat/completions"
CHARGED, MACHINES = "penstock_cost_units_total", "penstock_replica_cost_units_total"
USD_PER_S = {"a": 0.001, "b": 0.002}


def write(folder: Path) -> Path:
    path = folder / "penstock.yaml"
    replicas = [
        {
            "name": name,
            "backend": "simulated",
            "models": [f"model-{name}"],
            "gpu": {"type": "A100-80G"},
            "cost": {"usd_per_hour": usd * 3600},
        }
        for name, usd in USD_PER_S.items()
    ]
    path.write_text(json.dumps({"replicas": replicas}))
    return path


def story(tokens: int, name: str = "a", *, stream: bool = True) -> bytes:
    return post(CHAT, chat("Hi", model=f"model-{name}", stream=stream, max_tokens=tokens, ignore_eos=True))


def now() -> float:
    return asyncio.get_running_loop().time()


async def scraped(url: str) -> tuple[float, str, float]:
    """(asked, the page, answered)."""
    asked_s = now()
    page = (await ask(url, get("/metrics"))).body.decode()
    return asked_s, page, now()


async def usage(url: str, query: str = "") -> dict[str, Any]:
    told: dict[str, Any] = (await ask(url, get(f"/admin/usage{query}"))).json()
    return told


def of(page: str, name: str) -> Mapping[str, float]:
    """Dollars of one replica."""
    return {
        "charged": from_page(page, CHARGED, replica=name),
        "busy": from_page(page, MACHINES, replica=name, state="busy"),
        "idle": from_page(page, MACHINES, replica=name, state="idle"),
    }


async def test_a_page_of_dollars_is_price_times_time(tmp_path: Path) -> None:
    """Between two scrapes every machine has cost its price; a stream was charged for the time between its request and its end."""
    async with serving(write(tmp_path)) as gateway:
        first_asked_s, before, first_answered_s = await scraped(gateway.url)
        begun_s = now()
        async with connected(gateway.url) as client:
            answer = await client.ask(story(100))
        ended_s = now()
        assert answer.status == 200
        second_asked_s, after, second_answered_s = await scraped(gateway.url)
        for name, usd in USD_PER_S.items():
            old, new = of(before, name), of(after, name)
            spent = sum(new[state] - old[state] for state in ("busy", "idle"))
            assert usd * (second_asked_s - first_answered_s) <= spent <= usd * (second_answered_s - first_asked_s)
            assert new["charged"] == pytest.approx(new["busy"], rel=1e-9)
        charged = of(after, "a")["charged"]
        assert 0 < charged <= USD_PER_S["a"] * (ended_s - begun_s) * 1.001
        assert charged >= USD_PER_S["a"] * 99 * 0.005  # a hundred tokens of an A100 take longer
        assert of(after, "b")["charged"] == 0
        told = await usage(gateway.url)
        assert told["totals"]["usd"] == pytest.approx(charged, rel=1e-9)
        assert told["totals"]["output_tokens"] == 100


async def one_each(stack: AsyncExitStack, url: str) -> list[RawClient]:
    """A connection to each of two workers; the kernel chooses, so that it may take some."""
    found: dict[int, RawClient] = {}
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < 2:
            client = await stack.enter_async_context(connected(url))
            seat = (await client.ask(get("/readyz"))).json()["workers"]["answered_by"]
            found.setdefault(seat, client)
    return list(found.values())


async def until_charged_what_it_costs(url: str) -> None:
    """Two that charge for one machine's time have told each other of themselves by then, which takes a report; before, both pay it all."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            asked_s, before, begun_s = await scraped(url)
            await asyncio.sleep(1)
            ended_s, after, answered_s = await scraped(url)
            charged = of(after, "a")["charged"] - of(before, "a")["charged"]
            if 0.95 * USD_PER_S["a"] * (ended_s - begun_s) <= charged <= USD_PER_S["a"] * (answered_s - asked_s):
                return


async def test_workers_charge_no_second_twice(tmp_path: Path) -> None:
    """Both have streams on one machine: together they are charged what it costs, and no more; and there is one book of usage."""
    async with serving(write(tmp_path), "--workers", "2") as gateway:
        async with AsyncExitStack() as stack:
            for client in await one_each(stack, gateway.url):
                await client.send(story(30_000))
                await client.head()
            await until_charged_what_it_costs(gateway.url)
        async with AsyncExitStack() as stack, asyncio.timeout(PATIENCE_S):  # they have hung up
            while (await usage(gateway.url))["totals"]["cancelled"] < 2:
                await asyncio.sleep(0.05)
            _, last, _ = await scraped(gateway.url)
            for client in await one_each(stack, gateway.url):
                totals = (await client.ask(get("/admin/usage?group_by=tenant,model"))).json()["totals"]
                assert totals["requests"] == 2
                assert totals["output_tokens"] == from_page(last, "penstock_tokens_total", kind="output")
                assert totals["usd"] == pytest.approx(of(last, "a")["charged"], rel=1e-6)


async def test_a_worker_that_ends_leaves_its_usage_behind(tmp_path: Path) -> None:
    """The book is the supervisor's: who asks after a restart of a worker is told of all requests."""
    async with serving(write(tmp_path), "--workers", "2") as gateway, AsyncExitStack() as stack:
        for client in await one_each(stack, gateway.url):
            assert (await client.ask(story(3))).status == 200
        assert (await usage(gateway.url))["totals"]["requests"] == 2
        pid = int((await gateway.until_log(r"worker 1 serves \(pid (\d+)\)"))[1])
        os.kill(pid, signal.SIGKILL)
        await gateway.until_log(r"worker 1 serves \(pid \d+\)", times=2)
        assert (await usage(gateway.url))["totals"]["requests"] == 2


async def test_usage_as_csv_is_what_it_is_as_json(tmp_path: Path) -> None:
    """By parameter or by what the client accepts."""
    async with serving(write(tmp_path)) as gateway:
        for name in USD_PER_S:
            assert (await ask(gateway.url, story(5, name, stream=False))).status == 200
        told = await usage(gateway.url, "?group_by=model,day")
        answer = await ask(gateway.url, get("/admin/usage?group_by=model,day&format=csv"))
        assert answer.headers["content-type"].startswith("text/csv")
        read = list(csv.DictReader(io.StringIO(answer.body.decode())))
        assert [{name: str(value) for name, value in row.items() if name != "usd"} for row in told["data"]] == [
            {name: value for name, value in row.items() if name != "usd"} for row in read
        ]
        for row, cells in zip(told["data"], read, strict=True):
            assert float(cells["usd"]) == pytest.approx(row["usd"], abs=1e-12)
        accepted = await ask(gateway.url, get("/admin/usage", "accept: text/csv"))
        assert accepted.headers["content-type"].startswith("text/csv")


async def test_a_question_that_cannot_be_read_says_what_to_write(tmp_path: Path) -> None:
    """With status 400, and what there is."""
    questions = {
        "group_by=colour": "group_by",
        "group_by=day,hour": "not both",
        "from=yesterday": "2026-01-31",
        "from=2026-02-01&to=2026-01-01": "later",
        "format=xml": "json or csv",
        "since=2026-01-01": "group_by",
    }
    async with serving(write(tmp_path)) as gateway:
        for query, words in questions.items():
            answer = await ask(gateway.url, get(f"/admin/usage?{query}"))
            assert answer.status == 400
            assert words in answer.error["message"]
