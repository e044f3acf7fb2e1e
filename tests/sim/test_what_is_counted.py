"""What a request leaves on the page of metrics: lengths, reasons, batches, overhead; by whole gateways in virtual time."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.asgi import Call, chat, post
from tests.support.fake_engine import DONE, FakeEngine, Script, chunk, document, usage_chunk, whole_stream
from tests.support.gateways import Running, gateway_over
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"
KEY = "0123456789abcdef-of-the-admin"


def in_gateway(engine: FakeEngine, main: Callable[[Running], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with gateway_over({"a": engine}, **options) as running:
            await main(running)

    run_virtual(run())


async def asked(running: Running, *, headers: Any = (), **fields: Any) -> Call:
    return await post(running.app, CHAT, chat(**fields), headers=headers).run()


def count(running: Running, name: str, **labels: str) -> float:
    return running.metric(f"penstock_{name}", **labels)


def test_lengths_are_the_engine_s():
    """Prompt and answer by usage, once a request, streamed or not; their sums are those of the tokens."""
    engine = FakeEngine(
        Script(whole_stream(3, prompt=5)), Script([document(prompt=7, completion=2)], content_type="application/json")
    )

    async def main(running: Running) -> None:
        await asked(running, stream=True)
        await asked(running, max_tokens=5)
        assert count(running, "prompt_length_tokens_count", model="m", service_tier="default") == 2
        assert count(running, "prompt_length_tokens_sum") == 12
        assert count(running, "output_length_tokens_sum") == 5
        assert count(running, "tokens_total") == 17

    in_gateway(engine, main)


def test_an_answer_that_broke_off_has_the_length_it_had():
    """Without usage the tokens that were seen count; a prompt that nobody counted is no figure."""
    engine = FakeEngine(
        default=lambda: Script([chunk("w", role="assistant"), chunk("w")]), models=FakeEngine().found.models
    )

    async def main(running: Running) -> None:
        await asked(running, stream=True)
        assert count(running, "output_length_tokens_sum") == 2
        assert count(running, "prompt_length_tokens_count") == 0
        assert count(running, "finish_reasons_total") == 0

    in_gateway(engine, main, migration={"mode": "off"})


def test_reasons_are_counted_by_choice_and_bounded():
    """Each choice of a stream and of a document; a reason that nobody knows is `other`."""
    streamed = [
        chunk("x", role="assistant", finish="tool_calls"),
        chunk("y", index=1, finish="as_it_pleased"),
        usage_chunk(1, 2),
        DONE,
    ]
    answer = json.loads(document())
    answer["choices"].append({**answer["choices"][0], "index": 1, "finish_reason": "length"})
    plain = Script([json.dumps(answer).encode()], content_type="application/json")

    async def main(running: Running) -> None:
        assert (await asked(running, stream=True, n=2)).status == 200
        assert (await asked(running, n=2)).status == 200
        found = {
            reason: count(running, "finish_reasons_total", model="m", reason=reason)
            for reason in ("stop", "length", "tool_calls", "other")
        }
        assert found == {"stop": 1, "length": 1, "tool_calls": 1, "other": 1}

    in_gateway(FakeEngine(Script(streamed), plain), main)


def test_clients_that_come_again():
    """OpenAI's SDKs say how often they have tried; the first time, and nonsense, is none."""

    async def main(running: Running) -> None:
        for told in ("0", "1", "2", "", "00", "x", "9" * 5000):
            await asked(running, stream=True, headers=[("x-stainless-retry-count", told)])
        assert count(running, "client_retries_total", model="m") == 3

    in_gateway(FakeEngine(), main)


def test_the_batch_that_was_joined():
    """Three one after the other into a batch of eight: the first finds it empty, the third is the third."""
    engine = FakeEngine(default=lambda: Script(whole_stream(), head_s=10.0))

    async def main(running: Running) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(asked(running, stream=True))
                await asyncio.sleep(0.5)
            assert count(running, "batch_fill_ratio_sum", replica="a") == (1 + 2 + 3) / 8
            assert count(running, "batch_fill_ratio_count") == count(running, "batch_tokens_count") == 3
            tokens = count(running, "batch_tokens_sum", replica="a")
            assert tokens > 6, "their prompts are computed, too"

    in_gateway(engine, main)


def test_overhead_is_told_by_stage():
    """Every request counts in ingress, every placement in route, some reads of streams in relay."""

    async def main(running: Running) -> None:
        for _ in range(8):
            await asked(running, stream=True)
        stages = {
            stage: count(running, "overhead_seconds_count", stage=stage) for stage in ("ingress", "route", "relay")
        }
        assert stages["ingress"] == stages["route"] == 8
        assert 0 < stages["relay"] < 8 * 6

    in_gateway(FakeEngine(default=lambda: Script(whole_stream(), gap_s=0.1)), main)


def test_what_no_queue_would_have_helped_is_no_queue_s():
    """An unknown model and a prompt that is too long have not waited for anything; a model without a replica that works has."""
    engine = FakeEngine()

    async def main(running: Running) -> None:
        assert (await asked(running, model="unknown")).status == 404
        assert (await asked(running, content="word " * 40_000)).status == 400
        assert count(running, "queue_wait_seconds_count") == 0
        engine.found = type(engine.found)(ready=False)
        await asyncio.sleep(20)
        assert (await asked(running)).status == 503
        assert count(running, "queue_wait_seconds_count", outcome="no_replica") == 1
        assert count(running, "desired_replicas", model="m", cost_tier="on_demand") == 1

    in_gateway(engine, main)


def test_the_fleet_s_price_and_size():
    """Gauges of each replica, gone with it."""

    async def main(running: Running) -> None:
        machine = {"replica": "a", "gpu": "unknown", "cost_tier": "on_demand"}
        assert count(running, "replica_gpus", **machine) == 1
        assert count(running, "replica_price_usd_per_hour", **machine) == 0
        running.gateway.reload(running.gateway.config.model_copy(update={"replicas": ()}))
        assert count(running, "replica_gpus") == 0
        assert count(running, "desired_replicas", model="m") == 0

    in_gateway(FakeEngine(), main)


def test_wrong_admin_keys_are_counted():
    """One for each caller who is refused for the key; whoever has it is none."""

    async def main(running: Running) -> None:
        for told in (f"Bearer {KEY}", "Bearer wrong", ""):
            headers = [("host", "127.0.0.1"), ("authorization", told)]
            await Call(running.app, "/admin/replicas", method="GET", headers=headers).run()
        assert count(running, "auth_failures_total", reason="admin_key") == 2

    in_gateway(FakeEngine(), main, server={"admin_key": KEY})


def test_a_gap_for_each_token_after_the_first():
    """However they came: one by one, some at once, or all of them with the first."""
    words = [chunk(f"w{number}") for number in range(4)]
    end = [chunk(finish="stop"), usage_chunk(1, 4), DONE]
    ways = ([*words], [b"".join(words)], [b"".join(words[:2]), b"".join(words[2:])])
    engine = FakeEngine(*(Script([chunk("", role="assistant"), *way, *end], gap_s=0.5) for way in ways))

    async def main(running: Running) -> None:
        for _ in ways:
            await asked(running, stream=True)
        assert count(running, "inter_token_latency_seconds_count") == 3 * 3
        assert count(running, "inter_token_latency_seconds_sum") == pytest.approx(0.5 * (3 + 0 + 1))
        assert count(running, "inter_token_latency_seconds_bucket", le="0.001") == 0 + 3 + 2

    in_gateway(engine, main)
