"""Non-streaming answers, models and URLs: the contract with OpenAI clients, point by point (numbers: docs/api.md)."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backends.backend import ServedModel
from tests.support.asgi import Call, chat, post
from tests.support.fake_engine import FakeEngine, Script, document
from tests.support.gateways import Running, gateway_over
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"


def with_gateway(engine: FakeEngine, work: Callable[[Running], Awaitable[Any]], **sections: Any) -> Any:
    async def main() -> Any:
        async with gateway_over({"a": engine}, **sections) as running:
            return await work(running)

    return run_virtual(main())


def answer(raw: bytes, body: dict[str, Any] | None = None) -> Call:
    engine = FakeEngine(Script([raw], content_type="application/json"))
    return with_gateway(engine, lambda g: post(g.app, CHAT, body or chat()).run())


def test_compat_15_null_content_stays_null() -> None:
    """A tool call's null content is passed on as null, and usage is there."""
    raw = document().replace(b'"content": "hello"', b'"content": null, "tool_calls": []')
    call = answer(raw)
    assert call.json()["choices"][0]["message"]["content"] is None
    assert call.json()["usage"]["total_tokens"] == 7


def test_compat_15_null_choices_are_an_error() -> None:
    """`choices: null` never reaches a client as a 200."""
    call = answer(b'{"id":"x","object":"chat.completion","choices":null}')
    assert call.status == 502
    assert call.json()["error"]["type"] == "server_error"


def test_compat_15_an_error_inside_a_200_is_an_error() -> None:
    """Triton and some engines answer 200 with an error inside."""
    call = answer(b'{"error": "expects model to produce exactly 1 response"}')
    assert call.status is not None
    assert call.status >= 400


def test_compat_17_unknown_fields_and_numbers_pass_untouched() -> None:
    """What the gateway does not know goes to the engine byte for byte, numbers as they were written."""
    raw = b'{"model": "m", "messages":[{"role":"user","content":"hi"}], "top_k": 5.0, "x": 1e400, "temperature": 0.70, "guided": {"a": [1 ,2]}}'
    raw = raw.replace(b"1e400", b"1E+2")
    engine = FakeEngine(Script([document()], content_type="application/json"))
    with_gateway(engine, lambda g: Call(g.app, CHAT, raw).run())
    assert engine.calls[0].body == raw


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"m","model":"m","messages":[]}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    ],
)
def test_compat_17_duplicates_and_nan_are_refused(raw: bytes) -> None:
    """Bodies that two parsers would read differently are a 400."""
    engine = FakeEngine()
    call = with_gateway(engine, lambda g: Call(g.app, CHAT, raw).run())
    assert call.status == 400
    assert engine.calls == []


def test_compat_18_models() -> None:
    """The model list has OpenAI's shape and the context length; an id may contain slashes; unknown ones are 404."""
    engine = FakeEngine(
        models=(ServedModel(name="org/model-7b", max_model_len=4096), ServedModel(name="lora", parent="org/model-7b"))
    )

    async def look(g: Running) -> tuple[Call, Call, Call]:
        paths = ("/v1/models", "/v1/models/org/model-7b", "/v1/models/org/model-8b")
        first, second, third = [await Call(g.app, path, method="GET").run() for path in paths]
        return first, second, third

    listed, one, unknown = with_gateway(engine, look)
    assert listed.json()["object"] == "list"
    assert [m["id"] for m in listed.json()["data"]] == ["lora", "org/model-7b"]
    assert {"id", "object", "created", "owned_by", "max_model_len", "context_length"} <= listed.json()["data"][1].keys()
    assert one.json()["id"] == "org/model-7b"
    assert unknown.status == 404
    assert "org/model-7b" in unknown.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1//models", "/v1/models/", "//v1/models"])
def test_compat_19_paths_of_every_client(path: str) -> None:
    """Base URLs are joined in every way; HEAD works like GET without a body."""
    engine = FakeEngine()
    for method in ("GET", "HEAD"):
        call = with_gateway(engine, lambda g, m=method: Call(g.app, path, method=m).run())
        assert call.status == 200


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/chat/completions", "/v1//chat/completions", "/v1/chat/completions/"]
)
def test_compat_19_posts_are_never_redirected(path: str) -> None:
    """A redirected POST loses its body: every spelling answers at once."""
    assert with_gateway(FakeEngine(), lambda g: post(g.app, path, chat(stream=True)).run()).status == 200


def test_compat_20_unknown_model_names_the_near_ones() -> None:
    """A typo is a 404 `model_not_found` that lists what was probably meant."""
    engine = FakeEngine(models=(ServedModel(name="llama-3.1-8b"),))
    call = with_gateway(engine, lambda g: post(g.app, CHAT, chat(model="llama-3.1-8B-instruct")).run())
    error = call.json()["error"]
    assert (call.status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "llama-3.1-8b" in error["message"]


def test_compat_28_reasoning_passes() -> None:
    """`reasoning` of vLLM's answers reaches the client untouched."""
    raw = document().replace(b'"content": "hello"', b'"content": "hello", "reasoning": "because"')
    assert answer(raw).json()["choices"][0]["message"]["reasoning"] == "because"


def test_compat_29_a_key_is_optional_and_stays_here() -> None:
    """Any key, or none, is accepted while keys are off; it is never sent to an engine."""
    engine = FakeEngine(*[Script([document()], content_type="application/json") for _ in range(3)])

    async def ask(g: Running) -> list[int | None]:
        secrets = [(), (("authorization", "Bearer sk-1"),), (("x-api-key", "sk-2"),)]
        return [(await post(g.app, CHAT, chat(), headers=headers).run()).status for headers in secrets]

    assert with_gateway(engine, ask) == [200, 200, 200]
    assert all("authorization" not in call.headers and "x-api-key" not in call.headers for call in engine.calls)
    assert "sk-" not in json.dumps([dict(call.headers) for call in engine.calls])
