"""Traces as a collector gets them: `penstock serve` in a process of its own, over OTLP, with engines that are processes, too."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backends.simulated.options import EngineOptions
from backends.simulated.server import create_engine_app
from router.tracing.context import Parent, parent_of
from tests.support.asgi import chat
from tests.support.command_process import command
from tests.support.engine_process import EngineProcess, replica
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.otlp_collector import OtlpCollector, Told, collecting
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import Answer, ask, connected, get, post
from tests.support.servers import served
from tests.support.stream_client import chat_body, told

CHAT = "/v1/chat/completions"
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
TRACE = CLIENT[3:35]


@pytest.fixture
def collector() -> Iterator[OtlpCollector]:
    with collecting() as running:
        yield running


class HeadersSeen:
    """An engine's front door that keeps what its requests say of their trace, and fails as often as it is told to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.parents: list[Parent | None] = []
        self.failures = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != CHAT:
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.parents.append(parent_of(headers))
        if self.failures:
            self.failures -= 1
            await _fail(receive, send)
        else:
            await self._app(scope, receive, send)


async def _fail(receive: Receive, send: Send) -> None:
    message: Message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
    body = b'{"error": {"message": "broken", "type": "server_error", "param": null, "code": null}}'
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def engine(**options: Any) -> AsyncIterator[tuple[str, HeadersSeen]]:
    """A simulated engine behind HTTP in this loop."""
    values = {"model": "m", "kv_blocks": 4096, "max_model_len": 32_768, "speed": 50.0, **options}
    seen = HeadersSeen(create_engine_app(EngineOptions(**values)))
    async with served(seen) as url:
        yield url, seen


def write(folder: Path, replicas: list[dict[str, Any]], endpoint: str, **more: Any) -> Path:
    path = folder / "penstock.yaml"
    tracing = {
        "enabled": True,
        "endpoint": endpoint,
        "delay_s": 0.05,
        "flush_timeout_s": PATIENCE_S,
        **more.pop("tracing", {}),
    }
    path.write_text(json.dumps({"replicas": replicas, "tracing": tracing, "probe": {"interval_s": 0.1}, **more}))
    return path


async def until(collector: OtlpCollector, count: int) -> list[Told]:
    """So many requests' trees."""
    return await asyncio.to_thread(collector.until, count)


def story(word: str = "Hello", tokens: int = 5) -> dict[str, Any]:
    return chat(word, stream=True, max_tokens=tokens, ignore_eos=True)


async def answer(gateway: GatewayProcess, body: object, *headers: str) -> Answer:
    return await ask(gateway.url, post(CHAT, body, *headers))


async def test_a_stream_from_client_to_engine(collector: OtlpCollector, tmp_path: Path) -> None:
    """The client's trace goes on through ours to the engine: one tree, its times in order, its service named."""
    async with engine() as (url, seen):
        config = write(
            tmp_path, [replica("a", url)], collector.url, tracing={"headers": {"x-key": "k1"}, "service_name": "gate"}
        )
        async with serving(config) as gateway:
            said = await answer(gateway, story(), f"traceparent: {CLIENT}01", "tracestate: v=1", "baggage: who=me")
            (root,) = await until(collector, 1)
    assert said.status == 200
    assert (root.name, root.trace_id, root.parent_id, root.state) == ("chat m", TRACE, "b7ad6b7169203331", "v=1")
    assert (root.attributes["gen_ai.usage.output_tokens"], root.attributes["gen_ai.response.finish_reasons"]) == (
        5,
        ["length"],
    )
    (attempt,) = root.of("client")
    port = int(url.rsplit(":", 1)[1])
    assert (attempt.attributes["server.address"], attempt.attributes["server.port"]) == ("127.0.0.1", port)
    assert seen.parents == [Parent(int(TRACE, 16), int(attempt.span_id, 16), sampled=True, state="v=1")]
    place, relay = root.child("place"), attempt.child("relay")
    assert place.attributes["penstock.placement.formula"].startswith("a [on_demand] by ")
    assert (
        root.start_ns
        <= place.start_ns
        <= attempt.start_ns
        <= relay.start_ns
        <= relay.end_ns
        <= attempt.end_ns
        <= root.end_ns
    )
    assert (root.resource["service.name"], root.resource["process.pid"]) == ("gate", gateway.pid)
    assert collector.exports[0].items() >= {":path": "/v1/traces", "x-key": "k1"}.items()
    assert re.search(rf"penstock.request .* trace_id={TRACE} span_id={root.span_id}", gateway.log)


async def test_what_a_client_does_not_sample_is_not_exported(collector: OtlpCollector, tmp_path: Path) -> None:
    """Its engine is told so; the next one, sampled, is the first that the collector sees."""
    async with engine() as (url, seen), serving(write(tmp_path, [replica("a", url)], collector.url)) as gateway:
        await answer(gateway, story(), f"traceparent: {CLIENT}00")
        await answer(gateway, story(), f"traceparent: {CLIENT}01")
        roots = await until(collector, 1)
    assert len(roots) == 1
    assert [parent.sampled for parent in seen.parents if parent is not None] == [False, True]
    assert roots[0].of("client")[0].span_id == f"{seen.parents[1].span_id:016x}"  # type: ignore[union-attr]


async def test_one_that_waits_and_one_that_is_refused(collector: OtlpCollector, tmp_path: Path) -> None:
    """With room for one, the second waits as long as its span says; the third, which nobody serves, has failed nobody."""
    async with engine(speed=5.0) as (url, _):
        config = write(tmp_path, [replica("a", url, capacity={"max_num_seqs": 1})], collector.url)
        async with serving(config) as gateway, connected(gateway.url) as first:
            await first.send(post(CHAT, story("first", 1500)))
            await first.head()
            second, third = await asyncio.gather(
                answer(gateway, story("second")), answer(gateway, {**story(), "model": "nobody"})
            )
            await first.rest_of_chunks()
            by_status = {root.attributes["http.response.status_code"]: root for root in await until(collector, 3)}
            roots = collector.roots()
    assert (second.status, third.status) == (200, 404)
    waited = next(root for root in roots if root.attributes["penstock.queue.seconds"] > 0.1)
    wait = waited.child("queue")
    assert (wait.end_ns - wait.start_ns) / 1e9 == pytest.approx(waited.attributes["penstock.queue.seconds"], abs=0.01)
    assert waited.of("client")[0].start_ns >= wait.end_ns
    refused = by_status[404]
    assert [child.name for child in refused.children] == ["queue"]
    assert (refused.name, refused.error, refused.attributes["error.type"]) == ("chat other", None, "model_not_found")


async def test_a_retry_on_a_second_replica(collector: OtlpCollector, tmp_path: Path) -> None:
    """Both attempts are seen, linked, and each engine's parent is its own attempt."""
    async with engine() as (bad, first), engine() as (good, second):
        replicas = [replica("cheap", bad, usd_per_hour=0.1), replica("dear", good, usd_per_hour=10.0)]
        first.failures = 1
        async with serving(write(tmp_path, replicas, collector.url)) as gateway:
            said = await answer(gateway, story())
            (root,) = await until(collector, 1)
    assert said.status == 200
    failed, served = sorted(root.of("client"), key=lambda span: span.start_ns)
    assert [span.attributes["penstock.attempt.outcome"] for span in (failed, served)] == ["5xx", "ok"]
    assert (failed.error, served.error, root.error) == ("5xx", None, None)
    assert served.links == [(failed.span_id, {"penstock.link": "repeats"})]
    assert root.event("retry")["penstock.why"] == "5xx"
    spans = [f"{parent.span_id:016x}" for parent in (*first.parents, *second.parents) if parent is not None]
    assert spans == [failed.span_id, served.span_id]


async def test_a_stream_whose_engine_is_killed(collector: OtlpCollector, tmp_path: Path) -> None:
    """The client's answer is whole, and its trace says where it moved, how it went on, and how long the seam was."""
    with EngineProcess(speed=1.0) as first, EngineProcess() as second:  # the first one is still at it when it is killed
        await asyncio.gather(first.ready(), second.ready())
        replicas = [replica("cheap", first.url, usd_per_hour=0.1), replica("dear", second.url, usd_per_hour=10.0)]
        async with serving(write(tmp_path, replicas, collector.url)) as gateway:

            async def at_token(number: int) -> None:
                if number >= 20 and first.running:
                    first.kill()

            said = await told(gateway.url, chat_body("a story", 400), at_token=at_token)
            (root,) = await until(collector, 1)
    assert said.faults == []
    cut, went_on = sorted(root.of("client"), key=lambda span: span.start_ns)
    assert [span.attributes["penstock.replica"] for span in (cut, went_on)] == ["cheap", "dear"]
    assert (cut.error, went_on.error, root.error) == ("stream_cut", None, None)
    assert went_on.attributes["penstock.continuation"] == "exact"
    assert went_on.links == [(cut.span_id, {"penstock.link": "continues"})]
    assert (
        root.event("move").items()
        >= {"penstock.from": "cheap", "penstock.to": "dear", "penstock.why": "stream_cut"}.items()
    )
    assert root.event("seam")["penstock.gap_seconds"] > 0
    assert (cut.child("relay").end_ns, went_on.child("relay").end_ns) <= (went_on.start_ns, root.end_ns)
    assert root.attributes["penstock.moves"] == 1


async def test_a_client_that_hangs_up(collector: OtlpCollector, tmp_path: Path) -> None:
    """Cancelled, no failure of ours; the relay ends where the client did."""
    async with engine(speed=1.0) as (url, _), serving(write(tmp_path, [replica("a", url)], collector.url)) as gateway:
        async with connected(gateway.url) as client:
            await client.send(post(CHAT, story(tokens=2000)))
            await client.head()
            await client.chunk()
        (root,) = await until(collector, 1)
    assert (root.attributes["penstock.outcome"], root.attributes["error.type"], root.error) == (
        "cancelled",
        "client_closed",
        None,
    )
    assert root.of("client")[0].attributes["penstock.attempt.outcome"] == "cancelled"


async def test_a_collector_that_is_away_is_said_once(collector: OtlpCollector, tmp_path: Path) -> None:
    """Requests are served as ever, one line says why there are no traces, another one that there are again."""
    collector.status = 400  # which nobody repeats
    async with engine() as (url, _), serving(write(tmp_path, [replica("a", url)], collector.url)) as gateway:
        for count in (1, 2, 3):
            assert (await answer(gateway, story())).status == 200
            await asyncio.to_thread(collector.until_exports, count)
        await gateway.until_log(
            r"traces cannot be exported to \S+/v1/traces, those of 1 requests are lost: it answered 400"
        )
        collector.status = 200
        assert (await answer(gateway, story())).status == 200
        await gateway.until_log("traces are exported to .* again")
        assert len(re.findall("cannot be exported", gateway.log)) == 1
        assert "opentelemetry" not in gateway.log


async def test_nobody_listens(tmp_path: Path) -> None:
    """No connection at all: requests are served, and the end does not wait for a collector that was never there."""
    async with engine() as (url, _):
        config = write(tmp_path, [replica("a", url)], "http://127.0.0.1:1", tracing={"timeout_s": 1.5})
        async with serving(config) as gateway:
            assert (await answer(gateway, story())).status == 200
            await gateway.until_log(
                "cannot be exported to http://127.0.0.1:1/v1/traces, those of 1 requests are lost: .*Connection refused"
            )
            gateway.signal(signal.SIGTERM)
            assert await gateway.exit_code() == 0
    assert len(re.findall("cannot be exported", gateway.log)) == 1


async def test_the_end_exports_what_waits(collector: OtlpCollector, tmp_path: Path) -> None:
    """SIGTERM, long before the batch would have gone."""
    async with engine() as (url, _):
        config = write(tmp_path, [replica("a", url)], collector.url, tracing={"delay_s": 3600})
        async with serving(config) as gateway:
            for _ in range(3):
                await answer(gateway, story())
            assert collector.spans == []
            gateway.signal(signal.SIGTERM)
            assert await gateway.exit_code() == 0
    assert len(collector.roots()) == 3
    assert "not exported" not in gateway.log


async def test_the_end_does_not_wait_for_a_collector_that_hangs(collector: OtlpCollector, tmp_path: Path) -> None:
    """It takes the connection and says nothing: after `flush_timeout_s` the gateway is gone, and has said what is lost."""
    collector.release.clear()
    async with engine() as (url, _):
        tracing = {"delay_s": 3600, "timeout_s": 3600, "flush_timeout_s": 0.2}
        async with serving(write(tmp_path, [replica("a", url)], collector.url, tracing=tracing)) as gateway:
            await answer(gateway, story())
            gateway.signal(signal.SIGTERM)
            assert await gateway.exit_code() == 0
    assert "Traceback" not in gateway.log


async def test_each_worker_is_an_instance(collector: OtlpCollector, tmp_path: Path) -> None:
    """Both export their own, under one service and two instances."""
    async with (
        engine() as (url, _),
        serving(write(tmp_path, [replica("a", url)], collector.url), "--workers", "2") as gateway,
    ):
        served: set[int] = set()
        asked = 0
        async with asyncio.timeout(PATIENCE_S):
            while len(served) < 2:  # the kernel chooses
                async with connected(gateway.url) as client:
                    served.add((await client.ask(get("/readyz"))).json()["workers"]["answered_by"])
                    assert (await client.ask(post(CHAT, story()))).status == 200
                    asked += 1
        roots = await until(collector, asked)
    assert len({root.resource["service.instance.id"] for root in roots}) == 2
    assert {root.resource["service.name"] for root in roots} == {"penstock"}


async def test_a_missing_extra_is_said_before_anything_is_served(tmp_path: Path) -> None:
    """Configured and not installed: what to install, and the exit code of a bad configuration."""
    shadow = tmp_path / "opentelemetry" / "sdk"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("")  # in the way of the real one; the API alone comes with FastAPI
    root = Path(__file__).resolve().parents[2]
    environ = {"PYTHONPATH": f"{tmp_path}:{root}", "PENSTOCK_TRACING__ENABLED": "true"}
    async with command("serve", "--port", "0", environ=environ) as process:
        assert await process.exit_code() == 78
        await process.until_log("pip install 'penstock")
    environ["PENSTOCK_TRACING__ENABLED"] = "false"
    async with command("serve", "--port", "0", environ=environ) as process:
        await process.listens()
