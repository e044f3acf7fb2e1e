"""The one line that each request leaves in the log: what it says of each way in which a request can go."""

import logging
from typing import Any

import pytest

from backends.backend import ConnectFailed
from router.logs import FIELDS, JsonFormatter, TextFormatter
from tests.support.asgi import chat, post
from tests.support.fake_engine import FakeEngine, Script, document, whole_stream
from tests.support.gateways import fake_config, gateway_over
from tests.support.tenants import asking, bearer, key_for
from tests.support.traces import KeptTraces
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"
SECRET = "what-the-prompt-says"
NAMES = [
    "id", "endpoint", "model", "tier", "tenant", "stream", "status", "outcome", "error", "finish_reason", "replica", "gpu",
    "cost_tier", "attempts", "moves", "client_retries", "queue_ms", "ttft_ms", "tpot_ms", "total_ms", "prompt_tokens",
    "cached_tokens", "output_tokens", "usd",
]  # fmt: skip


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "penstock")
    return caplog


def fields_of(lines: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found = [record for record in lines.records if record.name == "penstock.request"]
    for record in found:  # whatever is said, nobody's words are in it
        assert SECRET not in TextFormatter().format(record)
        assert SECRET not in JsonFormatter().format(record)
    return [getattr(record, FIELDS) for record in found]


def test_a_stream_and_a_document(lines: pytest.LogCaptureFixture) -> None:
    """Where it went, how long each part took, what it used; the same names for both."""

    async def main() -> None:
        answers = [
            Script(whole_stream(3, prompt=7), gap_s=0.1, head_s=0.5),
            Script([document("hi", 9, 4)], content_type="application/json"),
        ]
        async with gateway_over({"a": FakeEngine(*answers)}) as running:
            headers = [("x-request-id", "r1"), ("x-stainless-retry-count", "2")]
            await post(running.app, CHAT, chat(SECRET, stream=True, max_tokens=20), headers=headers).run()
            await post(running.app, CHAT, chat(SECRET, max_tokens=20, service_tier="flex")).run()

    run_virtual(main())
    stream, whole = fields_of(lines)
    assert list(stream) == list(whole) == NAMES
    assert stream.pop("total_ms") >= 1100
    assert stream == {
        "id": "r1", "endpoint": "chat", "model": "m", "tier": "default", "tenant": "anonymous", "stream": True, "status": 200,
        "outcome": "completed", "error": None, "finish_reason": "stop", "replica": "a", "gpu": "unknown", "cost_tier": "on_demand",
        "attempts": 1, "moves": 0, "client_retries": 2, "queue_ms": 0, "ttft_ms": 700, "tpot_ms": 100.0,
        "prompt_tokens": 7, "cached_tokens": 0, "output_tokens": 3, "usd": 0.0,
    }  # fmt: skip
    assert (
        whole.items()
        >= {"stream": False, "tier": "flex", "client_retries": None, "prompt_tokens": 9, "output_tokens": 4}.items()
    )


def test_what_fails_says_why(lines: pytest.LogCaptureFixture) -> None:
    """Unknown models are `other`, a bug of ours is a 500, what was tried twice says so; what is unknown is None."""

    async def main() -> None:
        fleet = {
            "a": FakeEngine(Script(error=ConnectFailed("refused")), Script(error=RuntimeError("a bug"))),
            "b": FakeEngine(),
        }
        config = fake_config(fleet, tracing={"enabled": True}, scheduling={"hedge": {"enabled": False}})
        async with gateway_over(fleet, config, span_sink=(kept := KeptTraces())) as running:
            await post(running.app, CHAT, chat(stream=True, max_tokens=20)).run()
            await post(running.app, CHAT, chat(model=SECRET)).run()
            running.gateway.backends["b"].scripts = [Script(error=RuntimeError("a bug"))]  # type: ignore[attr-defined]
            call = await post(running.app, CHAT, chat(stream=True, max_tokens=20)).run()
            assert call.status == 500
            assert kept.last().root.failed == "internal_error"

    run_virtual(main())
    retried, unknown, bug = fields_of(lines)
    assert (retried["attempts"], retried["replica"], retried["status"]) == (2, "b", 200)
    assert (
        unknown.items()
        >= {"model": "other", "status": 404, "outcome": "rejected", "error": "model_not_found", "replica": None}.items()
    )
    assert bug.items() >= {"status": 500, "outcome": "failed", "error": "internal_error", "ttft_ms": None}.items()
    assert len(retried["trace_id"]) == 32
    assert len(retried["span_id"]) == 16


def test_what_ends_before_it_is_read_has_a_line_too(lines: pytest.LogCaptureFixture) -> None:
    """A body that is too large: id, status and error, as its client got them."""

    async def main() -> None:
        config = fake_config({"a": (engine := FakeEngine())}, server={"max_body_bytes": 100})
        async with gateway_over({"a": engine}, config) as running:
            body = chat(SECRET * 100)
            call = await post(running.app, CHAT, body, headers=[("x-request-id", "big")]).run()
            assert call.status == 413

    run_virtual(main())
    assert fields_of(lines) == [
        {"id": "big", "endpoint": "chat", "status": 413, "error": "request_too_large", "outcome": "rejected"}
    ]


def test_nobody_pays_for_a_line_that_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    """At `log_level: warning` there is none."""
    caplog.set_level(logging.WARNING, "penstock")

    async def main() -> None:
        async with gateway_over({"a": FakeEngine()}) as running:
            await post(running.app, CHAT, chat(stream=True, max_tokens=20)).run()

    run_virtual(main())
    assert [record.name for record in caplog.records] == []


def test_beyond_a_limit_it_is_still_its_tenants(lines: pytest.LogCaptureFixture) -> None:
    """Rejected, by a pseudonym that is the same as where it was served."""

    async def main() -> None:
        engine = FakeEngine(Script(whole_stream(3, prompt=7)))
        limited = [{"name": "acme", "limits": {"requests_per_minute": 1}}]
        async with gateway_over({"a": engine}, asking({"a": engine}, tenants=limited)) as running:
            for _ in range(2):
                await post(running.app, CHAT, chat(SECRET, stream=True), headers=[bearer(key_for("acme"))]).run()

    run_virtual(main())
    served, refused = fields_of(lines)
    assert (served["status"], served["outcome"]) == (200, "completed")
    assert (refused["status"], refused["outcome"], refused["error"]) == (429, "rejected", "rate_limit_exceeded")
    assert served["tenant"] == refused["tenant"] != "acme"
