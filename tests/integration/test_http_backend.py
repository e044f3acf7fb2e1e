"""HttpBackend against a scripted engine: what goes out, what comes back, and what a probe makes of each answer."""

import asyncio
import json
from pathlib import Path

import pytest

from backends.backend import EngineCall, ProbeResult, ServedModel
from backends.vllm import HttpBackend
from config.schema import ReplicaConfig, Upstream
from tests.support.patience import PATIENCE_S
from tests.support.scripted_server import Peer, Script, ScriptedServer, answer, answers, chunked

MODELS = {
    "object": "list",
    "data": [
        {"id": "base", "object": "model", "max_model_len": 2048, "parent": None, "root": "/models/base"},
        {"id": "adapter", "object": "model", "parent": "base"},
        {"id": "embedder", "object": "model", "max_model_len": "long"},
        {"object": "model"},
        "nonsense",
    ],
}
METRICS = 'vllm:num_requests_running{engine="0"} 3.0\nvllm:cache_config_info{block_size="16",num_gpu_blocks="90"} 1.0\n'


def json_answer(document: object, status: str = "200 OK") -> bytes:
    return answer(json.dumps(document).encode(), status=status, headers="content-type: application/json\r\n")


def pages(**by_name: bytes) -> Script:
    """An engine that answers GETs by the last part of their path; unknown ones with 404, and empty ones never."""

    async def play(peer: Peer) -> None:
        while True:
            target = (await peer.request()).split(b" ")[1].decode()
            page = by_name.get(target.rpartition("/")[2], answer(b"", status="404 Not Found"))
            if not page:
                await peer.gone()
            await peer.send(page)

    return play


def backend(url: str, *, probe_timeout_s: float = PATIENCE_S, **replica: object) -> HttpBackend:
    config = ReplicaConfig.model_validate({"name": "r", "url": url, **replica})
    return HttpBackend(config, upstream=Upstream(), probe_timeout_s=probe_timeout_s)


def call(*, stream: bool = False) -> EngineCall:
    return EngineCall(
        request_id="req-1",
        path="/v1/chat/completions",
        body=b'{"a":1}',
        stream=stream,
        headers={"traceparent": "00-1-2-01"},
    )


async def test_an_engine_on_a_unix_socket(tmp_path: Path) -> None:
    """Requests and probes go through the file; closing the backend closes both."""
    script = pages(
        health=answer(b""), models=json_answer(MODELS), metrics=answer(METRICS.encode()), completions=answer(b"{}")
    )
    async with ScriptedServer(script, path=tmp_path / "engine") as server:
        engine = backend(server.url)
        found = await engine.probe()
        assert (found.ready, found.kv_blocks) == (True, 90)
        reply = await engine.send(call())
        assert b"".join([piece async for piece in reply.body()]) == b"{}"
        await engine.aclose()


async def probed(script: Script, **replica: object) -> tuple[ProbeResult, ScriptedServer]:
    async with ScriptedServer(script) as server:
        engine = backend(server.url, **replica)
        result = await engine.probe()
        await engine.aclose()
        return result, server


async def test_what_goes_upstream():
    """The body as it is, our own headers, the call's clean ones, and the replica's key; nothing compressed is asked for."""
    async with ScriptedServer(answers(json_answer({}))) as server:
        engine = backend(server.url, api_key="k")
        for stream in (False, True):
            reply = await engine.send(call(stream=stream))
            assert [piece async for piece in reply.body()] == [b"{}"]
        await engine.aclose()
    plain, streamed = (request.partition(b"\r\n\r\n") for request in server.requests)
    assert plain[2] == b'{"a":1}'
    lines = plain[0].decode().split("\r\n")
    assert lines[0] == "POST /v1/chat/completions HTTP/1.1"
    assert set(lines[1:]) == {
        f"host: {server.address}",
        "traceparent: 00-1-2-01",
        "content-type: application/json",
        "accept: application/json",
        "accept-encoding: identity",
        "x-request-id: req-1",
        "authorization: Bearer k",
        "content-length: 7",
    }
    assert b"accept: text/event-stream" in streamed[0]


async def test_only_harmless_headers_come_back():
    """What an engine says of itself, and cookies, end here; a client may see the type and when to come again."""
    headers = "Server: uvicorn\r\nSet-Cookie: a=b\r\nRetry-After: 7\r\nContent-Type: application/json\r\n"
    async with ScriptedServer(answers(answer(b"{}", status="503 Service Unavailable", headers=headers))) as server:
        engine = backend(server.url)
        reply = await engine.send(call())
        assert (reply.status, reply.content_type) == (503, "application/json")
        assert reply.headers == {"retry-after": "7", "content-type": "application/json"}
        await reply.aclose()
        await engine.aclose()


async def test_a_stream_passes_byte_for_byte():
    """Events are not looked at, and a reply read to its end leaves its connection for the next."""
    events = [b'data: {"x":1}\n\n', b": comment\n\n", b"data: [DONE]\n\n"]
    async with ScriptedServer(answers(*chunked(*events))) as server:
        engine = backend(server.url)
        reply = await engine.send(call(stream=True))
        assert reply.content_type == "text/event-stream"
        assert b"".join([piece async for piece in reply.body()]) == b"".join(events)
        await reply.aclose()
        assert engine.statistics().idle == 1
        await engine.aclose()


async def test_a_document_for_a_stream_is_passed_as_it_is():
    """Whether JSON may answer a stream is the relay's decision."""
    async with ScriptedServer(answers(json_answer({"choices": []}))) as server:
        engine = backend(server.url)
        reply = await engine.send(call(stream=True))
        assert (reply.status, reply.content_type) == (200, "application/json")
        await reply.aclose()
        await engine.aclose()


async def test_a_redirect_is_an_answer_like_any_other():
    """Never followed: an engine cannot send our requests elsewhere."""
    redirect = answer(b"", status="307 Temporary Redirect", headers="location: http://127.0.0.1:1/\r\n")
    async with ScriptedServer(answers(redirect)) as server:
        engine = backend(server.url)
        reply = await engine.send(call())
        result = await engine.probe()
        assert (reply.status, dict(reply.headers)) == (307, {})
        assert (result.ready, result.detail) == (False, "health: answered 307")
        await reply.aclose()
        await engine.aclose()


@pytest.mark.parametrize(
    ("suffix", "path"), [("/v1", "/v1/x"), ("/v1/", "/v1/x"), ("/a/b", "/a/b/v1/x"), ("/", "/v1/x")]
)
async def test_base_urls(suffix: str, path: str):
    """A prefix is kept; the /v1 that OpenAI clients write into base URLs is not doubled."""
    async with ScriptedServer(answers(json_answer({}))) as server:
        engine = backend(server.url + suffix)
        reply = await engine.send(EngineCall(request_id="r", path="/v1/x", body=b"{}", stream=False))
        await reply.aclose()
        await engine.aclose()
    assert server.requests[0].split(b" ")[1].decode() == path


async def test_a_probe_finds_models_load_and_blocks():
    """Models with their context, adapters by their parent, kinds as configured, figures under their names."""
    script = pages(health=answer(b""), models=json_answer(MODELS), metrics=answer(METRICS.encode()))
    result, _ = await probed(script, models=[{"name": "embedder", "kind": "embedding"}])
    assert result == ProbeResult(
        ready=True,
        models=(
            ServedModel(name="base", max_model_len=2048),
            ServedModel(name="adapter", parent="base"),
            ServedModel(name="embedder", kind="embedding"),
        ),
        metrics={"running": 3},
        kv_blocks=90,
        block_size=16,
    )


async def test_an_engine_without_health_is_judged_by_its_models():
    """Engines other than vLLM may have no /health; a model list says as much."""
    result, _ = await probed(pages(models=json_answer(MODELS)))
    assert (result.ready, len(result.models), result.metrics) == (True, 3, {})
    result, _ = await probed(pages())
    assert (result.ready, result.detail) == (False, "health: answered 404")


async def test_a_dying_engine_is_not_ready():
    """The 503 of /health is what vLLM answers once its core is dead."""
    script = pages(health=answer(b"", status="503 Service Unavailable"), models=json_answer(MODELS))
    result, _ = await probed(script)
    assert (result.ready, result.detail) == (False, "health: answered 503")


@pytest.mark.parametrize("silent", ["models", "metrics"])
async def test_one_silent_page_does_not_make_an_engine_unready(silent: str):
    """Each look has its own timeout; what was not said is unknown."""
    answering = {"health": answer(b""), "models": json_answer(MODELS), "metrics": answer(METRICS.encode())}
    result, _ = await probed(pages(**{**answering, silent: b""}), probe_timeout_s=2.0)
    assert result.ready
    assert (result.models == (), result.metrics == {}) == (silent == "models", silent == "metrics")


async def test_a_silent_engine_is_not_ready():
    """Accepting connections is not health."""
    result, _ = await probed(pages(health=b""), probe_timeout_s=0.5)
    assert (result.ready, result.detail) == (False, "health: no answer within 0.5 s")


async def test_a_refused_key_is_not_ready_and_says_what_to_check():
    """/health needs no key; without this each request would fail with 401 on a replica that looks well."""
    script = pages(health=answer(b""), models=json_answer({"error": "Unauthorized"}, "401 Unauthorized"))
    result, _ = await probed(script, api_key="secret-key")
    assert not result.ready
    assert "api_key" in result.detail
    assert "secret-key" not in result.detail


async def test_no_engine_at_all():
    """A refused probe is a result, not an exception, and names no address."""
    async with ScriptedServer(pages()) as server:
        url = server.url
    result = await backend(url).probe()
    assert (result.ready, result.detail) == (False, "health: no connection")


async def test_a_sleeping_engine_is_asleep():
    """/health stays 200 while vLLM sleeps; its metrics tell."""
    sleeping = answer(b'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0.0\n')
    result, _ = await probed(pages(health=answer(b""), models=json_answer(MODELS), metrics=sleeping))
    assert (result.ready, result.asleep) == (True, True)


@pytest.mark.parametrize("body", [b"", b"null", b"[1]", b'{"data": 3}', b"{", b"[" * 100_000, b"\xff"])
async def test_a_senseless_model_list_is_no_list(body: bytes):
    """Unknown models, never an exception."""
    result, _ = await probed(pages(health=answer(b""), models=answer(body)))
    assert (result.ready, result.models) == (True, ())


async def test_an_endless_page_is_given_up():
    """What a probe holds is bounded."""
    endless = b"".join(chunked(*[b"x" * 2**20] * 5))
    result, _ = await probed(pages(health=answer(b""), models=json_answer(MODELS), metrics=endless))
    assert (result.ready, result.metrics) == (True, {})


async def test_the_key_goes_to_the_engine_only():
    """Metrics that live elsewhere are read without the engine's key."""
    async with ScriptedServer(pages(metrics=answer(METRICS.encode()))) as exporter:
        script = pages(health=answer(b""), models=json_answer(MODELS))
        result, engine = await probed(script, api_key="k", metrics_url=f"{exporter.url}/metrics")
    assert result.metrics == {"running": 3}
    assert all(b"Bearer k" in request for request in engine.requests)
    assert not any(b"Bearer" in request for request in exporter.requests)


async def test_cancelling_a_send_cancels_the_work_upstream():
    """The engine sees its connection close."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()
        left.set()

    async with ScriptedServer(silent) as server, asyncio.TaskGroup() as tasks:
        engine = backend(server.url)
        sending = tasks.create_task(engine.send(call()))
        await asked.wait()
        sending.cancel()
        async with asyncio.timeout(PATIENCE_S):
            await left.wait()
        assert engine.statistics().open == 0
        await engine.aclose()
    assert sending.cancelled()
