"""What a tenant beyond its limits is told, and what it is not charged for: 429, x-ratelimit-*, 403 (numbers: docs/api.md)."""

import asyncio
import json
import re
from typing import Any

import pytest

from backends.backend import StreamCut
from config.schema import Config
from tests.support.asgi import Call, chat
from tests.support.fake_engine import FakeEngine, Script, chunk, document, whole_stream
from tests.support.gateways import Running, gateway_over
from tests.support.tenants import asking, bearer, key_for
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"
ACME, UMBRELLA = key_for("acme"), key_for("umbrella")
GO_DURATION = re.compile(r"0s|\d+ms|(\d+h)?(\d+m)?\d+(\.\d+)?s")


def in_gateway(main: Any, *engines: FakeEngine, **policy: Any) -> None:
    """One tenant, acme, with this policy."""
    engine = (
        engines[0] if engines else FakeEngine(default=lambda: Script([document()], content_type="application/json"))
    )
    sections = {name: policy.pop(name) for name in ("queue", "capacity") if name in policy}
    capacity = sections.pop("capacity", None)
    config: Config = asking({"a": engine}, tenants=[{"name": "acme", **policy}], **sections)
    if capacity:
        replica = config.replicas[0]
        changed = replica.model_copy(update={"capacity": replica.capacity.model_copy(update=capacity)})
        config = config.model_copy(update={"replicas": (changed,)})

    async def run() -> None:
        async with gateway_over({"a": engine}, config) as running:
            await main(running)

    run_virtual(run())


def call(running: Running, body: dict[str, Any] | None = None, key: str = ACME, **options: Any) -> Call:
    data = json.dumps(body or chat(max_tokens=10)).encode()
    return Call(running.app, CHAT, data, headers=[bearer(key)], **options)


def check_waits(refused: Call) -> None:
    assert 1 <= int(refused.header("retry-after") or 0) <= 120
    assert 1 <= int(refused.header("retry-after-ms") or 0) <= 120_000


def test_compat_22_requests_a_minute() -> None:
    """The request after the limit's last is a 429 of type `requests` that says when to come back, and then it is let in."""

    async def main(running: Running) -> None:
        for _ in range(3):
            assert (await call(running).run()).status == 200
        refused = await call(running).run()
        error = refused.json()["error"]
        assert (refused.status, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
        check_waits(refused)
        assert running.metric("penstock_rate_limited_total", scope="requests") == 1
        assert running.metric("penstock_requests_total", status="429", model="m") == 1
        assert running.metric("penstock_queue_wait_seconds_count") == 3  # it was never in the queue
        assert (await call(running, key=UMBRELLA).run()).status == 200
        await asyncio.sleep(int(refused.header("retry-after-ms") or 0) / 1e3)
        assert (await call(running).run()).status == 200

    in_gateway(main, limits={"requests_per_minute": 3})


def test_compat_22_tokens_a_minute() -> None:
    """Tokens are reserved for the longest answer and settled by usage: what was not used may be used by others at once."""

    async def main(running: Running) -> None:
        first = await call(running, chat(max_tokens=90)).run()
        assert first.status == 200
        assert first.header("x-ratelimit-limit-tokens") == "100"
        # By usage: 5 + 2.
        refused = await call(running, chat(max_tokens=97)).run()
        error = refused.json()["error"]
        assert (refused.status, error["type"], error["code"]) == (429, "tokens", "rate_limit_exceeded")
        assert refused.header("x-ratelimit-remaining-tokens") == "93"
        check_waits(refused)
        assert (await call(running, chat(max_tokens=90)).run()).status == 200

    in_gateway(main, limits={"tokens_per_minute": 100})


def test_what_never_fits_is_not_to_be_retried() -> None:
    """A request larger than a whole minute's tokens says so, and that retrying does not help."""

    async def main(running: Running) -> None:
        refused = await call(running, chat(max_tokens=101)).run()
        assert (refused.status, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "Request too large" in refused.json()["error"]["message"]
        assert refused.header("x-should-retry") == "false"
        assert refused.header("retry-after") is None
        assert running.metric("penstock_rate_limited_total", scope="too_large") == 1

    in_gateway(main, limits={"tokens_per_minute": 100})


def test_compat_25_limits_are_told_on_every_answer() -> None:
    """200s, streamed or not, and 429s carry limit, remaining and reset of each limit that there is; a tenant without has none."""
    engine = FakeEngine(Script(whole_stream()), default=lambda: Script([document()], content_type="application/json"))

    async def main(running: Running) -> None:
        stream, whole = await call(running, chat(stream=True, max_tokens=5)).run(), await call(running).run()
        refused = await call(running).run()
        assert [stream.status, whole.status, refused.status] == [200, 200, 429]
        for answer, left in ((stream, "1"), (whole, "0"), (refused, "0")):
            assert answer.header("x-ratelimit-limit-requests") == "2"
            assert answer.header("x-ratelimit-remaining-requests") == left
            for of in ("requests", "tokens"):
                reset = answer.header(f"x-ratelimit-reset-{of}") or ""
                assert GO_DURATION.fullmatch(reset), reset
        other = await call(running, key=UMBRELLA).run()
        assert not [name for name, _ in other.response_headers if name.startswith("x-ratelimit")]

    in_gateway(main, engine, limits={"requests_per_minute": 2, "tokens_per_minute": 1000})


def test_places_come_back_exactly_once() -> None:
    """Concurrency counts requests under way; whether one ends, is left by its client or breaks, its place is free once."""
    engine = FakeEngine(default=lambda: Script([chunk("x")], hang=True))

    async def main(running: Running) -> None:
        async with asyncio.TaskGroup() as tasks:
            first, second = (call(running, chat(stream=True)) for _ in range(2))
            waiting = [tasks.create_task(one.run()) for one in (first, second)]
            await asyncio.sleep(1)
            refused = await call(running).run()
            assert (refused.status, refused.json()["error"]["type"]) == (429, "requests")
            check_waits(refused)
            first.hang_up()
            await waiting[0]
            third = call(running, chat(stream=True))
            tasks.create_task(third.run())
            await asyncio.sleep(1)
            assert (await call(running).run()).status == 429
            for one in (second, third):
                one.hang_up()
        engine.scripts.append(Script([chunk("x")], fail=StreamCut("gone")))
        engine.default = lambda: Script([document()], content_type="application/json")
        await call(running, chat(stream=True, n=1)).run()
        assert [(await call(running).run()).status for _ in range(3)] == [200] * 3

    in_gateway(main, engine, limits={"concurrency": 2})


@pytest.mark.parametrize("how", ["unknown model", "engine broken", "queue full"])
def test_what_the_gateway_did_not_serve_is_not_charged(how: str) -> None:
    """A request that was refused, or that no engine answered, leaves the tenant's limits as they were."""
    engine = FakeEngine()

    async def main(running: Running) -> None:
        if how == "unknown model":
            assert (await call(running, chat(model="nope")).run()).status == 404
        elif how == "engine broken":
            engine.default = lambda: Script([b"{}"], status=500, content_type="application/json")
            assert (await call(running).run()).status == 502
        else:
            engine.default = lambda: Script([chunk("x")], hang=True)
            async with asyncio.TaskGroup() as tasks:
                others = [call(running, chat(stream=True), key=UMBRELLA) for _ in range(2)]
                for other in others:
                    tasks.create_task(other.run())
                await asyncio.sleep(1)
                assert (await call(running).run()).status == 503
                for other in others:
                    other.hang_up()
        tenancy = running.gateway.tenancy
        assert tenancy is not None
        account = tenancy.accounts.of("acme", running.gateway.config.tenants[0].limits)
        told = account.standings(asyncio.get_running_loop().time())
        assert (told["requests"].left, told["tokens"].left) == (5, 1000)

    limits = {"requests_per_minute": 5, "tokens_per_minute": 1000}
    in_gateway(main, engine, limits=limits, queue={"max_requests": 1}, capacity={"max_num_seqs": 1})


def test_a_cut_answer_is_charged_for_what_was_said() -> None:
    """A client that leaves in the middle pays the prompt and the tokens it got."""
    engine = FakeEngine(Script([chunk("", role="assistant"), *[chunk("w ") for _ in range(4)]], hang=True))

    async def main(running: Running) -> None:
        leaving = call(running, chat(stream=True, max_tokens=500))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(leaving.run())
            await asyncio.sleep(1)
            leaving.hang_up()
        tenancy = running.gateway.tenancy
        assert tenancy is not None
        account = tenancy.accounts.of("acme", running.gateway.config.tenants[0].limits)
        used = 1000 - account.standings(asyncio.get_running_loop().time())["tokens"].left
        assert 5 <= used <= 20

    in_gateway(main, engine, limits={"tokens_per_minute": 1000})


def test_compat_22_dollars_a_month() -> None:
    """Once the month's dollars are spent: 429 `insufficient_quota`, not to be retried."""

    async def main(running: Running) -> None:
        tenancy = running.gateway.tenancy
        assert tenancy is not None
        assert (await call(running).run()).status == 200
        tenancy.accounts.of("acme", running.gateway.config.tenants[0].limits).spent_usd = 7.5
        refused = await call(running).run()
        error = refused.json()["error"]
        assert (refused.status, error["type"], error["code"]) == (429, "insufficient_quota", "insufficient_quota")
        assert refused.header("x-should-retry") == "false"

    in_gateway(main, limits={"usd_per_month": 7.5})


def test_models_and_tiers_of_a_tenant() -> None:
    """What a tenant may not ask for is a 403 that says what it may; who asks for no tier, or for `auto`, gets the tenant's default."""

    async def main(running: Running) -> None:
        refused = await call(running, chat(model="gpt-4")).run()
        assert (refused.status, refused.json()["error"]["code"]) == (403, "model_not_found")
        refused = await call(running, chat(service_tier="priority")).run()
        assert (refused.status, refused.json()["error"]["param"]) == (403, "service_tier")
        assert "flex" in refused.json()["error"]["message"]
        for fields in ({}, {"service_tier": "auto"}, {"service_tier": "flex"}):
            assert (await call(running, chat(**fields)).run()).status == 200
        assert running.metric("penstock_requests_total", service_tier="flex", status="200") == 3

    in_gateway(main, models=["m", "llama-*"], service_tiers=["flex"], default_tier="flex")


def test_the_scheduler_knows_the_tenant() -> None:
    """A tenant's name and weight are what fairness goes by."""

    async def main(running: Running) -> None:
        for key in (ACME, UMBRELLA):
            assert (await call(running, key=key).run()).status == 200
        ledger = running.gateway.decisions.ledger
        assert ledger is not None
        told = {record.asked("tenant"): record.asked("weight") for record in ledger.recent(limit=2)}
        assert told == {"acme": 3.0, "umbrella": 1.0}

    in_gateway(main, weight=3)


def test_a_tenant_sees_its_models_only() -> None:
    """GET /v1/models lists what the key has access to; the others are not there for it."""

    async def main(running: Running) -> None:
        for path, status in (("/v1/models", 200), ("/v1/models/m", 404)):
            answer = await Call(running.app, path, method="GET", headers=[bearer(ACME)]).run()
            assert answer.status == status
            assert b'"id":"m"' not in answer.data

    in_gateway(main, models=["llama-*"])


def test_settings_of_all_others() -> None:
    """The entry `*` is for every tenant that has none, each with limits of its own."""
    engine = FakeEngine(default=lambda: Script([document()], content_type="application/json"))
    config = asking({"a": engine}, tenants=[{"name": "*", "limits": {"requests_per_minute": 1}}])

    async def main() -> None:
        async with gateway_over({"a": engine}, config) as running:
            for key in (ACME, UMBRELLA):
                assert [(await call(running, key=key).run()).status for _ in range(2)] == [200, 429]

    run_virtual(main())
