"""Errors, headers and browsers: the contract with OpenAI clients, point by point (numbers: docs/api.md)."""

import asyncio
import json
import re
from typing import Any

import pytest

from backends.backend import ConnectFailed, FirstByteTimeout, StreamCut
from tests.support.asgi import Call, chat, post
from tests.support.fake_engine import FakeEngine, Script, chunk, document, whole_stream
from tests.support.gateways import Running, gateway_over
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"


def ask(engine: FakeEngine, *calls: dict[str, Any], **sections: Any) -> list[Call]:
    """Calls (keyword arguments of Call) in turn through one gateway."""

    async def main() -> list[Call]:
        async with gateway_over({"a": engine}, **sections) as running:
            return [await Call(running.app, **call).run() for call in calls]

    return run_virtual(main())


def ask_chat(engine: FakeEngine, body: dict[str, Any] | None = None, **sections: Any) -> Call:
    return ask(engine, {"path": CHAT, "body": json.dumps(body or chat()).encode()}, **sections)[0]


def is_openai_error(call: Call) -> bool:
    error = call.json()["error"]
    return (
        {"message", "type", "param", "code"} == error.keys()
        and isinstance(error["message"], str)
        and isinstance(error["type"], str)
        and (error["code"] is None or isinstance(error["code"], str))
        and call.header("content-type") == "application/json"
        and call.header("x-request-id") is not None
    )


def test_compat_21_every_refusal_is_an_openai_error() -> None:
    """Unknown route, wrong method, bad body, engine errors of any shape: one error object."""
    calls = ask(
        FakeEngine(default=lambda: Script([b'{"detail":"no"}'], status=400, content_type="application/json")),
        {"path": "/v1/nothing", "method": "GET"},
        {"path": CHAT, "method": "GET"},
        {"path": "/v1/models", "method": "DELETE"},
        {"path": CHAT, "body": b"{"},
        {"path": CHAT, "body": json.dumps(chat()).encode()},
    )
    assert [call.status for call in calls] == [404, 405, 405, 400, 400]
    assert all(is_openai_error(call) for call in calls)
    assert calls[1].header("allow") == "POST"


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (400, b'{"error":{"message":"This model\'s maximum context length is 2048 tokens.","type":"BadRequestError","param":null,"code":400}}', 400, "context_length_exceeded"),
        (400, b'{"error":{"message":"temperature must be non-negative","type":"BadRequestError","param":"temperature","code":400}}', 400, None),
        (401, b'{"error":"Unauthorized"}', 502, None),
        (404, b'{"error":{"message":"The model `m` does not exist.","type":"NotFoundError","param":"model","code":404}}', 404, "model_not_found"),
        (429, b'{"error":{"message":"slow down"}}', 429, "rate_limit_exceeded"),
        (503, b'{"error":{"message":"The engine is currently busy","type":"ServiceUnavailableError","code":503}}', 503, "engine_overloaded"),
        (500, b"<html>at /usr/lib/python3/engine.py 10.0.0.7:8000</html>", 502, None),
    ],
)  # fmt: skip
def test_compat_22_engine_refusals_are_translated(status: int, body: bytes, expected: int, code: str | None) -> None:
    """An engine's own words keep their meaning and lose its addresses, paths and integer codes."""
    call = ask_chat(FakeEngine(default=lambda: Script([body], status=status, content_type="application/json")))
    assert call.status == expected
    assert is_openai_error(call)
    if code is not None:
        assert call.json()["error"]["code"] == code
    assert b"10.0.0.7" not in call.data
    assert b"/usr/lib" not in call.data


def test_compat_22_an_engine_that_never_answers_is_a_504() -> None:
    """Accepted and silent: a timeout, said as one, and not to be retried by the SDK for minutes."""
    call = ask_chat(FakeEngine(Script(error=FirstByteTimeout("300 s"))))
    assert (call.status, call.json()["error"]["code"]) == (504, "timeout")
    assert call.header("x-should-retry") == "false"


def test_compat_23_retry_after_is_sane() -> None:
    """A 503 says when to come back: an integer of at least 1, and milliseconds, both within 120 s."""
    engine = FakeEngine(default=lambda: Script(hang=True))

    async def main() -> Call:
        async with gateway_over({"a": engine}, capacity={"max_num_seqs": 1}, queue={"max_requests": 1}) as running:
            loop = asyncio.get_running_loop()
            others = [post(running.app, CHAT, chat(stream=True)) for _ in range(2)]
            tasks = [loop.create_task(other.run()) for other in others]
            await asyncio.sleep(1)
            refused = await post(running.app, CHAT, chat()).run()
            for other in others:
                other.hang_up()
            await asyncio.gather(*tasks)
            return refused

    refused = run_virtual(main())
    assert refused.status == 503
    assert 1 <= int(refused.header("retry-after") or 0) <= 120
    assert 1 <= int(refused.header("retry-after-ms") or 0) <= 120_000
    assert refused.header("x-penstock-dropped-reason") == "queue_full"


def test_compat_23_queued_too_long_is_a_503() -> None:
    """A request that no replica had room for within `queue.max_wait_s` is sent away with Retry-After, at that moment."""
    engine = FakeEngine(default=lambda: Script(hang=True))

    async def main() -> tuple[Call, float]:
        async with gateway_over({"a": engine}, capacity={"max_num_seqs": 1}, queue={"max_wait_s": 7.0}) as running:
            loop = asyncio.get_running_loop()
            first = post(running.app, CHAT, chat(stream=True))
            task = loop.create_task(first.run())
            await asyncio.sleep(1)
            began = loop.time()
            refused = await post(running.app, CHAT, chat()).run()
            waited = loop.time() - began
            first.hang_up()
            await task
            return refused, waited

    refused, waited = run_virtual(main())
    assert (refused.status, refused.json()["error"]["code"]) == (503, "queue_timeout")
    assert round(waited, 3) == 7.0
    assert refused.header("retry-after") is not None


def test_compat_23_the_clients_own_timeout_bounds_the_queue() -> None:
    """Nobody waits in the queue longer than its SDK will listen."""
    engine = FakeEngine(default=lambda: Script(hang=True))

    async def main() -> float:
        async with gateway_over({"a": engine}, capacity={"max_num_seqs": 1}) as running:
            loop = asyncio.get_running_loop()
            first = post(running.app, CHAT, chat(stream=True))
            task = loop.create_task(first.run())
            await asyncio.sleep(1)
            began = loop.time()
            await post(running.app, CHAT, chat(), headers=[("x-stainless-read-timeout", "4")]).run()
            waited = loop.time() - began
            first.hang_up()
            await task
            return waited

    assert round(run_virtual(main()), 3) == 4.0


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([("x-request-id", "abc-1")], "abc-1"),
        ([("x-client-request-id", "abc-2")], "abc-2"),
        ([("x-request-id", "a b")], None),
        ([("x-request-id", "x" * 129)], None),
        ([], None),
    ],
)
def test_compat_24_request_ids(given: list[tuple[str, str]], kept: str | None) -> None:
    """A client's short visible id is kept, else one is made; it comes back and goes to the engine."""
    engine = FakeEngine(Script([document()], content_type="application/json"))
    call = ask(engine, {"path": CHAT, "body": json.dumps(chat()).encode(), "headers": given})[0]
    returned = call.header("x-request-id")
    assert returned == (kept or returned)
    assert returned == engine.calls[0].request_id
    if kept is None:
        assert returned is not None
        assert returned.startswith("req-")


def test_compat_24_every_answer_has_an_id() -> None:
    """Also those of routes that are not hot, and errors inside a stream name it."""
    models, ready = ask(
        FakeEngine(),
        {"path": "/v1/models", "method": "GET"},
        {"path": "/readyz", "method": "GET", "headers": [("x-request-id", "r1")]},
    )
    assert models.header("x-request-id") is not None
    assert ready.header("x-request-id") == "r1"
    cut = Script([chunk("", role="assistant"), chunk("half")], fail=StreamCut("cut"))
    call = ask(
        FakeEngine(cut),
        {"path": CHAT, "body": json.dumps(chat(stream=True)).encode(), "headers": [("x-request-id", "r2")]},
        migration={"mode": "off"},
    )[0]
    assert "(request id: r2)" in json.loads(call.events()[-1])["error"]["message"]


def test_the_openapi_document_is_whole() -> None:
    """Every reference in /openapi.json leads somewhere, and the hot endpoints are described."""
    document = ask(FakeEngine(), {"path": "/openapi.json", "method": "GET"})[0].json()
    references = set(re.findall(r"#/components/schemas/([A-Za-z0-9_]+)", json.dumps(document)))
    assert references <= document["components"]["schemas"].keys()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"} <= document["paths"].keys()


def test_a_compressed_body_is_refused_by_name() -> None:
    """`content-encoding: gzip` is said to be the problem, not some byte of it."""
    call = ask(FakeEngine(), {"path": CHAT, "body": b"\x1f\x8b", "headers": [("content-encoding", "gzip")]})[0]
    assert call.status == 400
    assert "content-encoding" in call.json()["error"]["message"]


def test_compat_25_decision_headers() -> None:
    """The answer says where it was made, what tier that is, how long it waited and how often it was tried."""
    call = ask_chat(FakeEngine(Script([document()], content_type="application/json", head_s=0.25)))
    assert call.header("x-penstock-replica") == "a"
    assert call.header("x-penstock-cost-tier") == "on_demand"
    assert call.header("x-penstock-queue-ms") == "0"
    assert call.header("x-penstock-attempts") == "1"
    assert call.header("x-penstock-ttft-ms") == "250"
    assert call.header("openai-processing-ms") == "250"


def test_compat_26_cors_is_off_unless_configured() -> None:
    """No browser origin is allowed by default; a configured one is, with its preflight and the exposed headers."""
    preflight = {
        "path": CHAT,
        "method": "OPTIONS",
        "headers": [("origin", "https://chat.example"), ("access-control-request-method", "POST")],
    }
    off = ask(FakeEngine(), preflight)[0]
    assert off.header("access-control-allow-origin") is None
    simple = {"path": "/v1/models", "method": "GET", "headers": [("origin", "https://chat.example")]}
    on, models = ask(FakeEngine(), preflight, simple, server={"cors_origins": ["https://chat.example"]})
    assert on.status == 200
    assert on.header("access-control-allow-origin") == "https://chat.example"
    assert "x-request-id" in (models.header("access-control-expose-headers") or "")


def test_compat_27_openwebui_headers_stay_here() -> None:
    """Names and addresses of users that a frontend sends are not passed to engines."""
    engine = FakeEngine(Script([document()], content_type="application/json"))
    headers = [("x-openwebui-user-email", "a@b.c"), ("x-openwebui-chat-id", "c1"), ("traceparent", "00-1-2-01")]
    ask(engine, {"path": CHAT, "body": json.dumps(chat()).encode(), "headers": headers})
    assert dict(engine.calls[0].headers) == {"traceparent": "00-1-2-01"}


def test_service_tier_names_map_to_classes() -> None:
    """OpenAI's names order the queue: priority first, flex last; flex that is shed is a 429 `resource_unavailable`."""
    engine = FakeEngine(default=lambda: Script(hang=True))

    async def main() -> Call:
        async with gateway_over({"a": engine}, capacity={"max_num_seqs": 1}, queue={"max_wait_s": 2.0}) as running:
            first = post(running.app, CHAT, chat(stream=True))
            task = asyncio.get_running_loop().create_task(first.run())
            await asyncio.sleep(1)
            shed = await post(running.app, CHAT, chat(service_tier="flex")).run()
            first.hang_up()
            await task
            return shed

    shed = run_virtual(main())
    assert (shed.status, shed.json()["error"]["code"]) == (429, "resource_unavailable")


def test_every_replica_down_is_a_503() -> None:
    """When no replica answers, a client is told so at once, with Retry-After; nothing hangs."""
    engine = FakeEngine(default=lambda: Script(error=ConnectFailed("refused")))

    async def main() -> tuple[Call, Call]:
        async with gateway_over({"a": engine}) as running:
            first = await post(running.app, CHAT, chat()).run()
            await go_down(engine, running)
            return first, await post(running.app, CHAT, chat()).run()

    first, second = run_virtual(main())
    assert first.status == 502
    assert (second.status, second.json()["error"]["code"]) == (503, "no_capacity")
    assert int(second.header("retry-after") or 0) >= 1


async def go_down(engine: FakeEngine, running: Running) -> None:
    from backends.backend import ProbeResult

    engine.found = ProbeResult(ready=False, detail="health: no connection")
    await asyncio.sleep(5)
    assert running.metric("penstock_replica_up") == 0


def test_a_whole_request_may_be_bounded() -> None:
    """`server.total_timeout_s`: a stream ends with an error event at that moment, an answer that has not begun is a 504."""
    endless = [chunk("x")] * 1000
    engine = FakeEngine(Script(endless, gap_s=1.0), Script(hang=True, content_type="application/json"))

    async def main() -> tuple[Call, Call, float]:
        async with gateway_over({"a": engine}, server={"total_timeout_s": 5.5}) as running:
            stream = await post(running.app, CHAT, chat(stream=True)).run()
            began = asyncio.get_running_loop().time()
            document = await post(running.app, CHAT, chat()).run()
            assert running.metric("penstock_requests_total", error_code="timeout") == 2
            return stream, document, asyncio.get_running_loop().time() - began

    stream, document, waited = run_virtual(main())
    assert stream.text() == "xxxxx"
    assert json.loads(stream.events()[-1])["error"]["code"] == "timeout"
    assert (document.status, waited) == (504, 5.5)
    assert "5.5 s" in document.json()["error"]["message"]
    assert engine.running == 0


def test_a_bound_that_passes_behind_a_whole_answer_changes_nothing() -> None:
    """The engine is slow to end what it has said already: the client has all of it, and the request is counted as that."""
    engine = FakeEngine(Script(whole_stream(), hang=True))

    async def main() -> Call:
        async with gateway_over({"a": engine}, server={"total_timeout_s": 0.5}) as running:
            call = await post(running.app, CHAT, chat(stream=True)).run()
            await asyncio.sleep(5)
            assert running.metric("penstock_requests_total", status="200", error_code="none") == 1
            assert running.metric("penstock_requests_total", error_code="timeout") == 0
            return call

    assert run_virtual(main()).events()[-1] == "[DONE]"
