"""What a Triton fault means to the client: an OpenAI error, or no answer at all. The one table.

Never an address or a path in a message: an engine's words are scrubbed, and long ones cut.
"""

import re

import msgspec

from backends.backend import ClosedEarly, ConnectFailed, FirstByteTimeout, StreamCut, UpstreamError
from backends.triton.inference import EngineFault

_MAX_MESSAGE_CHARS = 300  # a sentence or two; a model's traceback is for its own log
_ADDRESSES = re.compile(
    r"(?:ipv[46]:|unix:)\S+"  # gRPC's own way to write them
    r"|\[[0-9a-fA-F:]+\](?::\d+)?"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"
    r"|\b[A-Za-z][\w-]*(?:\.[\w-]+)*:\d{2,5}\b"
)
_PATHS = re.compile(r"(?:[A-Za-z]:\\|\\\\|(?<![\w/])/)[\w.@+~-]+(?:[\\/][\w.@+~-]*)+(?:\(\d+\))?|\bfile:\S+")

_REQUEST_ID = re.compile(
    r"^\[request id: [^\]]*\]\s*"
)  # Triton's prefix; the gateway's answers carry the id in a header

_DEAD_STUB = (
    "not healthy"  # "Stub process 'textgen_0_0' is not healthy": the model's process died; Triton still calls it READY
)
# What Triton itself says with UNAVAILABLE; anything else with that code is the transport's.
_ENGINE_UNAVAILABLE = (
    "queue size",
    "timeout expired",
    _DEAD_STUB,
    "unknown model",
    "no available versions",
    "not ready",
    "shutting down",
    "stopping",
)
_CONNECT = (
    "failed to connect",
    "connection refused",
    "connection timeout",
    "name resolution",
    "dns",
    "no route to host",
    "network is unreachable",
    "empty address list",
    "handshake",
)
_BROKEN = ("socket closed", "connection reset", "rst_stream", "goaway", "stream removed", "broken pipe", "eof")
_RETRY_AFTER_S = 1  # a Triton queue drains in about a batch or a few steps


class Refusal(Exception):
    """An answer that is an OpenAI error object, with its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def document(self) -> bytes:
        """The OpenAI error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return msgspec.json.encode(
            {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
        )


def unsupported(param: str, why: str) -> Refusal:
    """The 400 for a request parameter that this backend cannot honour."""
    return Refusal(400, f"`{param}` {why}", code="unsupported_parameter", param=param)


def unknown_model(model: str) -> Refusal:
    """The 404 of a model that the server does not have."""
    return Refusal(404, f"The model `{model}` does not exist", code="model_not_found", param="model")


def is_dead_stub(fault: EngineFault) -> bool:
    """Whether the fault tells that the model's own process is gone."""
    return _DEAD_STUB in fault.details


def interpret(fault: EngineFault, *, model: str, started: bool) -> Refusal | UpstreamError:
    """What to tell, or raise, for a fault; `started`: part of the answer was given already."""
    code = fault.code or _code_by_words(fault.details)
    words = fault.details.lower()
    if code in ("UNAVAILABLE", "INTERNAL", "UNKNOWN"):
        broken = _transport(code, words)
        if broken is not None:
            return StreamCut(broken.outcome) if started else broken
    if is_dead_stub(fault):
        return StreamCut("the model's process died") if started else _dead()
    if code == "DEADLINE_EXCEEDED":
        return StreamCut("deadline") if started else FirstByteTimeout("deadline")
    return _refusal(code, model=model, details=fault.details)


def _transport(code: str, words: str) -> UpstreamError | None:
    if code == "UNAVAILABLE" and any(mark in words for mark in _ENGINE_UNAVAILABLE):
        return None
    if code == "UNAVAILABLE" and any(mark in words for mark in _CONNECT):
        return ConnectFailed("the engine cannot be reached")
    if code == "UNAVAILABLE" or any(mark in words for mark in _BROKEN):
        return ClosedEarly("the engine closed the connection")
    return None


def _refusal(code: str, *, model: str, details: str) -> Refusal:
    match code:
        case "UNAVAILABLE" | "RESOURCE_EXHAUSTED" | "CANCELLED":
            return Refusal(503, scrub(details), code="engine_overloaded", retry_after_s=_RETRY_AFTER_S)
        case "NOT_FOUND":
            return unknown_model(model)
        case "INVALID_ARGUMENT" | "OUT_OF_RANGE":
            return Refusal(400, scrub(details), code="invalid_value")
        case "UNAUTHENTICATED" | "PERMISSION_DENIED":
            # The gateway's credentials, not the client's: 401 would send the client looking in the wrong place.
            return Refusal(503, "The engine refused the gateway", code="engine_error")
        case _:
            return Refusal(500, scrub(details), code="engine_error")


def _dead() -> Refusal:
    return Refusal(503, "The model's process is not healthy", code="engine_dead", retry_after_s=_RETRY_AFTER_S)


def _code_by_words(details: str) -> str:
    """Servers before 24.08 put errors into a stream without a code; Triton's own sentences tell which it was."""
    words = details.lower()
    if "unknown model" in words:
        return "NOT_FOUND"
    if any(mark in words for mark in _ENGINE_UNAVAILABLE):
        return "UNAVAILABLE"
    if "inference input" in words or "unexpected shape" in words or "expected" in words:
        return "INVALID_ARGUMENT"
    return "INTERNAL"


def scrub(details: str) -> str:
    """An engine's message as a client may see it: its first line, no addresses, no paths, bounded."""
    lines = details.strip().splitlines()
    message = _REQUEST_ID.sub("", lines[0] if lines else "")
    message = _PATHS.sub("...", _ADDRESSES.sub("...", message))
    return message[:_MAX_MESSAGE_CHARS].strip() or "The engine failed"
