"""A look that learns nothing changes nothing: what an engine told before holds until it tells something else."""

import asyncio
from dataclasses import replace

import pytest

from backends.backend import ProbeResult, ServedModel
from tests.support.asgi import Call, chat, post
from tests.support.fake_engine import FakeEngine, Script, whole_stream
from tests.support.gateways import fake_config, gateway_over
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"
CAPACITY = {
    "max_num_seqs": 1,
    "max_num_batched_tokens": None,
    "kv_blocks": None,
    "block_size": None,
    "max_model_len": None,
}


class SlowToSay(FakeEngine):
    """Answers each probe after `probe_s`."""

    probe_s = 0.0

    async def probe(self) -> ProbeResult:
        await asyncio.sleep(self.probe_s)
        return await super().probe()


def told() -> ProbeResult:
    return ProbeResult(ready=True, models=(ServedModel(name="m", max_model_len=4096),), kv_blocks=100, block_size=16)


def test_an_unreadable_model_list_removes_no_model() -> None:
    """`/v1/models` and `/metrics` fail while a request runs and one waits: both are served, the model and its KV stay known."""
    engine = FakeEngine(default=lambda: Script(whole_stream(), head_s=20.0))
    engine.found = told()

    async def main() -> tuple[list[int | None], float, list[str]]:
        async with gateway_over({"a": engine}, fake_config({"a": engine}, CAPACITY)) as running:
            loop = asyncio.get_running_loop()
            tasks = [loop.create_task(post(running.app, CHAT, chat(stream=True)).run()) for _ in range(2)]
            await asyncio.sleep(1)
            engine.found = ProbeResult(ready=True)
            await asyncio.sleep(5)
            headroom = running.metric("penstock_replica_kv_headroom_tokens")
            listed = await Call(running.app, "/v1/models", method="GET").run()
            calls = await asyncio.gather(*tasks)
            return [call.status for call in calls], headroom, [model["id"] for model in listed.json()["data"]]

    statuses, headroom, models = run_virtual(main())
    assert statuses == [200, 200]
    assert headroom > 0
    assert models == ["m"]


def test_a_readable_list_does_remove() -> None:
    """A model that the engine no longer lists is no longer placed there."""
    engine = FakeEngine()
    engine.found = replace(told(), models=(ServedModel(name="m"), ServedModel(name="lora")))

    async def main() -> int | None:
        async with gateway_over({"a": engine}) as running:
            engine.found = told()
            await asyncio.sleep(3)
            return (await post(running.app, CHAT, chat(model="lora")).run()).status

    assert run_virtual(main()) == 503


def test_a_slow_probe_is_no_dead_engine() -> None:
    """One question that runs into its own timeout does not take the replica down."""
    engine = SlowToSay()

    async def main() -> float:
        async with gateway_over({"a": engine}, probe={"timeout_s": 2.0}) as running:
            engine.probe_s = 3.0
            await asyncio.sleep(30)
            return running.metric("penstock_replica_up")

    assert run_virtual(main()) == 1.0


def test_a_hanging_probe_is_one() -> None:
    """A backend that never comes back from a look is down after a few of them."""
    engine = SlowToSay()

    async def main() -> float:
        async with gateway_over({"a": engine}) as running:
            engine.probe_s = 1e6
            await asyncio.sleep(60)
            return running.metric("penstock_replica_up")

    assert run_virtual(main()) == 0.0


def test_a_retired_backend_is_closed_after_its_last_stream() -> None:
    """Reload removes a replica under a running stream: its backend lives until the stream ends, and not longer."""
    engine = FakeEngine(Script(whole_stream(), head_s=20.0))
    closed: list[float] = []

    async def aclose() -> None:
        closed.append(asyncio.get_running_loop().time())

    engine.aclose = aclose  # type: ignore[method-assign]
    other = FakeEngine()
    config = fake_config({"a": engine, "b": other})

    async def main() -> tuple[str, list[float]]:
        async with gateway_over({"a": engine, "b": other}, config) as running:
            task = asyncio.get_running_loop().create_task(post(running.app, CHAT, chat(stream=True)).run())
            await asyncio.sleep(1)
            running.gateway.reload(config.model_copy(update={"replicas": config.replicas[1:]}))
            await asyncio.sleep(10)
            assert closed == []
            call = await task
            await asyncio.sleep(2)
            return call.text(), list(closed)

    text, times = run_virtual(main())
    assert text == "w0 w1 w2 "
    assert [round(at) for at in times] == [20]


def test_figures_that_stop_coming_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log tells when the scheduler falls back on its own ledger and when no more; requests are served throughout."""
    engine = FakeEngine()
    with_figures = ProbeResult(
        ready=True, models=(ServedModel(name="m", max_model_len=4096),), metrics={"kv_usage_ratio": 0.1, "running": 0.0}
    )

    async def main() -> None:
        async with gateway_over({"a": engine}) as running:
            for found, degraded in ((with_figures, 0), (ProbeResult(ready=True), 1), (with_figures, 0)):
                engine.found = found
                await asyncio.sleep(15)
                assert running.metric("penstock_replica_ledger_only", replica="a") == degraded
                assert (await post(running.app, CHAT, chat(stream=True)).run()).complete

    with caplog.at_level("INFO", "penstock.fleet"):
        run_virtual(main())
    said = [record.getMessage() for record in caplog.records if "ledger" in record.msg or "KV" in record.getMessage()]
    assert said == [
        "replica a: its engine tells no usage of a KV cache whose size is known; its room is reckoned from our own ledger alone",
        "replica a: its engine tells its KV usage again",
        "replica a: no KV figures of its engine for 10 s; its room is reckoned from our own ledger alone",
        "replica a: its engine tells its KV usage again",
    ]
