"""The table from Triton's faults to what a client or the gateway sees."""

import json

import pytest

from backends.backend import ClosedEarly, ConnectFailed, FirstByteTimeout, StreamCut, UpstreamError
from backends.triton.errors import Refusal, interpret, scrub
from backends.triton.inference import EngineFault


@pytest.mark.parametrize(
    ("code", "details", "status", "error_code"),
    [
        ("UNAVAILABLE", "[request id: 7] Exceeds maximum queue size", 503, "engine_overloaded"),
        ("UNAVAILABLE", "Request timeout expired", 503, "engine_overloaded"),
        ("", "Exceeds maximum queue size", 503, "engine_overloaded"),
        ("RESOURCE_EXHAUSTED", "too many", 503, "engine_overloaded"),
        ("CANCELLED", "cancelled", 503, "engine_overloaded"),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", 404, "model_not_found"),
        ("", "Request for unknown model: 'm' is not found", 404, "model_not_found"),
        ("INVALID_ARGUMENT", "a row cannot be embedded", 400, "invalid_value"),
        ("", "[request id: r1] expected number of inputs between 1 and 7 but got 8", 400, "invalid_value"),
        ("INTERNAL", "Stub process 'm_0_0' is not healthy.", 503, "engine_dead"),
        ("", "Stub process 'm_0_0' is not healthy.", 503, "engine_dead"),
        ("INTERNAL", "CUDA error", 500, "engine_error"),
        ("", "something else", 500, "engine_error"),
        ("UNIMPLEMENTED", "no", 500, "engine_error"),
        ("UNAUTHENTICATED", "who are you", 503, "engine_error"),
    ],
)
def test_what_the_engine_says_has_a_status(code: str, details: str, status: int, error_code: str) -> None:
    """An error of the engine becomes an OpenAI error with the status a client can act on."""
    refusal = interpret(EngineFault(code, details), model="m", started=False)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (status, error_code)
    error = json.loads(refusal.document())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; last error: ipv4:127.0.0.1:1: refused", ConnectFailed),
        ("UNAVAILABLE", "DNS resolution failed for triton:8001", ConnectFailed),
        ("UNAVAILABLE", "Stream removed (Socket closed)", ClosedEarly),
        ("UNAVAILABLE", "anything that Triton does not say", ClosedEarly),
        ("INTERNAL", "Received RST_STREAM with error code 2", ClosedEarly),
        ("UNKNOWN", "Stream removed", ClosedEarly),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", FirstByteTimeout),
    ],
)
def test_the_transport_is_not_an_answer(code: str, details: str, kind: type[UpstreamError]) -> None:
    """A broken or absent connection raises, so that the gateway may try elsewhere; after the first response it is a cut stream."""
    assert type(interpret(EngineFault(code, details), model="m", started=False)) is kind
    assert type(interpret(EngineFault(code, details), model="m", started=True)) is StreamCut


def test_a_process_that_dies_mid_stream_cuts_it() -> None:
    """A dead model process is no answer of the engine once the stream runs: it can be continued elsewhere."""
    assert isinstance(
        interpret(EngineFault("INTERNAL", "Stub process 'm' is not healthy."), model="m", started=True), StreamCut
    )


@pytest.mark.parametrize(
    "secret",
    [
        "ipv4:10.1.2.3:8001",
        "10.1.2.3:8001",
        "10.1.2.3",
        "[fe80::1]:8001",
        "ipv6:%5B::1%5D:8001",
        "unix:/run/triton.sock",
        "triton.svc.cluster.local:8001",
        "/srv/models/textgen/1/model.py(23)",
        "/opt/tritonserver/backends",
        r"C:\models\textgen",
        "file:///srv/x",
    ],
)
def test_messages_carry_no_addresses_and_no_paths(secret: str) -> None:
    """Where engines live, and what their disks look like, is nobody's business."""
    message = scrub(f"failed at {secret}: broken")
    assert message.startswith("failed at ...")
    assert "8001" not in message
    assert "models" not in message
    assert "10.1" not in message


def test_messages_are_one_bounded_line() -> None:
    """A model's traceback stays in its own log."""
    assert scrub("first\nTraceback:\n  more") == "first"
    assert len(scrub("x" * 10_000)) <= 300
    assert scrub("") == "The engine failed"


def test_ordinary_words_survive() -> None:
    """Scrubbing leaves what a client needs to read."""
    words = "max_tokens must be >= 1 and/or <= 4096: got 0 (ratio 1/2)"
    assert scrub(f"[request id: <id_unknown>] {words}") == words
