"""What engines say, translated and cleaned."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.openai.api_error import Case
from router.openai.engine_errors import from_engine, from_stream_event, scrub


def vllm(message: str, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


TOO_LONG = "This model's maximum context length is 2048 tokens. However, you requested 3000 output tokens."


@pytest.mark.parametrize(
    ("status", "body", "case", "said"),
    [
        (400, vllm("top_k must be -1 or at least 1, got -7.", "BadRequestError", 400, "top_k"), Case.INVALID_REQUEST, "top_k must be"),
        (400, vllm(TOO_LONG, "BadRequestError", 400, "max_tokens"), Case.CONTEXT_LENGTH, "2048"),
        (400, vllm("The decoder prompt (length 30) is longer than the maximum model length of 20.", "BadRequestError", 400),
         Case.CONTEXT_LENGTH, "longer"),
        (400, {"object": "error", "message": "old vLLM", "type": "BadRequestError", "code": 400}, Case.INVALID_REQUEST, "old vLLM"),
        (422, {"detail": [{"loc": ["body", "messages", 0], "msg": "Field required", "input": "secret"}]}, Case.INVALID_REQUEST,
         "messages.0: Field required"),
        (400, {"detail": "n > 1 is not supported"}, Case.INVALID_REQUEST, "n > 1"),
        (400, {"error": "unexpected tensor"}, Case.INVALID_REQUEST, "unexpected tensor"),
        (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, Case.CONTEXT_LENGTH, "too long"),
        (413, {}, Case.BODY_TOO_LARGE, "413"),
        (401, {"error": "Unauthorized"}, Case.UPSTREAM, "operator"),
        (403, {"detail": "Forbidden"}, Case.UPSTREAM, "operator"),
        (404, vllm("The model `x` does not exist.", "NotFoundError", 404), Case.MODEL_NOT_FOUND, "`x` does not exist"),
        (404, {"detail": "Not Found"}, Case.NOT_FOUND, "endpoint"),
        (405, {"detail": "Method Not Allowed"}, Case.NOT_FOUND, "endpoint"),
        (501, {}, Case.NOT_FOUND, "endpoint"),
        (408, {}, Case.OVERLOADED, "retry"),
        (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, Case.RATE_LIMITED, "busy"),
        (503, vllm("The engine is currently busy and cannot accept new requests.", "ServiceUnavailableError", 503), Case.OVERLOADED, ""),
        (500, vllm("EngineCore encountered an issue.", "InternalServerError", 500), Case.UPSTREAM, "engine failed"),
        (500, {"error": "Exceeds maximum queue size"}, Case.OVERLOADED, "retry-after"),
        (502, b"<html>Bad Gateway nginx/1.2</html>", Case.UPSTREAM, "engine failed"),
        (504, b"", Case.UPSTREAM_TIMEOUT, "in time"),
        (400, b"", Case.INVALID_REQUEST, "400"),
        (400, b"\xff\xfe garbage", Case.INVALID_REQUEST, "400"),
        (418, b"[" * 100_000, Case.INVALID_REQUEST, "418"),
        (400, [1], Case.INVALID_REQUEST, "400"),
        (400, {"error": {"message": {"deep": 1}}}, Case.INVALID_REQUEST, "400"),
        (400, {"detail": {"x": 1}}, Case.INVALID_REQUEST, "400"),
    ],
)  # fmt: skip
def test_compat_21_engines_are_translated(status: int, body: Any, case: Case, said: str) -> None:
    """Every dialect becomes one row of the table; `code` is never a number and `type` never PascalCase."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    error = from_engine(status, raw, {})
    assert error.case is case
    assert said in error.message
    assert error.code is None or (isinstance(error.code, str) and error.code.islower())
    assert "Error" not in error.type
    assert "secret" not in error.message


def test_params_of_engines_are_kept() -> None:
    """Which field is at fault helps, as long as it is a name."""
    assert from_engine(400, json.dumps(vllm("x", "BadRequestError", 400, "top_k")).encode(), {}).param == "top_k"
    assert from_engine(400, json.dumps(vllm("x", "BadRequestError", 400, "/etc/passwd")).encode(), {}).param is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "1"),
        ({"retry-after": "7"}, "7"),
        ({"retry-after-ms": "2500"}, "3"),
        ({"retry-after": "Wed, 21 Oct"}, "1"),
        ({"retry-after": "86400"}, "120"),
    ],
)
@pytest.mark.parametrize("status", [408, 429, 503])
def test_compat_23_busy_engines_have_a_retry_after(status: int, headers: dict[str, str], expected: str) -> None:
    """The engine's own wait within bounds, else a second."""
    assert dict(from_engine(status, b"", headers).headers())[b"retry-after"].decode() == expected


@pytest.mark.parametrize(
    ("event", "case"),
    [
        (vllm("EngineCore encountered an issue.", "InternalServerError", 500), Case.UPSTREAM),
        (vllm(TOO_LONG, "BadRequestError", 400), Case.CONTEXT_LENGTH),
        ({"error": {"message": "x", "code": "503"}}, Case.OVERLOADED),
        ({"error": "boom"}, Case.UPSTREAM),
        ({"error": {}}, Case.UPSTREAM),
        ({"message": "x", "code": None}, Case.UPSTREAM),
        ("boom", Case.UPSTREAM),
        (None, Case.UPSTREAM),
        ({"error": {"message": "x", "code": True}}, Case.UPSTREAM),
    ],
)
def test_in_stream_errors_are_translated(event: object, case: Case) -> None:
    """Inside a 200 the engine's number is all there is; without one it is a failure of the engine."""
    assert from_stream_event(event).case is case


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("connect to http://10.0.0.3:8000/v1?k=v failed", "connect to [url] failed"),
        ("refused by 10.2.3.4:8000 and 10.2.3.5", "refused by [address] and [address]"),
        ("[::1]:8000, fe80::1 and 2001:db8:0:0:0:0:0:1 are away", "[address], [address] and [address] are away"),
        ("vllm-0.vllm.svc.cluster.local:8000 down", "[address] down"),
        ("localhost:80 or worker:8000 down", "[address] or [address] down"),
        ("vllm_1:8000 and n:10, 12:30", "[address] and n:10, 12:30"),
        ("listening on port 8000", "listening on [port]"),
        ("in /usr/lib/python3/vllm/x.py here", "in [path] here"),
        (r"in C:\models\llama here", "in [path] here"),
        ("broken. Traceback (most recent call last): secret", "broken."),
        ('broken File "/a/b.py", line 3, in f', "broken"),
        ("key Bearer abc.def and sk-1234567890abcdef", "key [key] and [key]"),
        ("a\nb\r\n\x00c\u2028d", "a b c d"),
        ("model meta-llama/Llama-3 needs temperature 0.5, ratio 3:4; see /v1/models", None),
        (TOO_LONG, None),
    ],
)
def test_compat_21_the_inside_never_leaks(said: str, shown: str | None) -> None:
    """Addresses, ports, URLs, paths, keys and tracebacks are replaced; ordinary sentences stay."""
    assert scrub(said) == (said if shown is None else shown)


@given(st.text(max_size=300), st.ip_addresses(v=4), st.integers(1024, 65535), st.text(max_size=300))
def test_an_address_is_found_anywhere(before: str, address: Any, port: int, after: str) -> None:
    """Whatever stands around it, an IPv4 address with its port goes, and the message stays one bounded line."""
    out = scrub(f"{before} {address}:{port} {after}")
    assert f"{address}:{port}" not in out
    assert len(out) <= 512
    assert out.isprintable() or not any(c in out for c in "\n\r\x00")


@pytest.mark.parametrize("status", [500, 502, 401])
def test_failures_of_an_engine_say_nothing_of_it(status: int) -> None:
    """The engine's words on its own failure are for the log; the client gets ours."""
    error = from_engine(status, b'{"error": {"message": "CUDA error on 10.0.0.1:5000"}}', {})
    assert "CUDA" not in error.to_body().decode()
    assert error.detail == "CUDA error on [address]"
