"""What engines say when they refuse or fail, translated into the error table - and cleaned of the inside of the cluster.

Understands vLLM (PascalCase types, integer codes, `{"error": "Unauthorized"}`), Triton and FastAPI (`{"detail": ...}`), OpenAI's
own shape, and everything that is no JSON at all. An engine's type and status never reach the client unread.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from router.openai.api_error import ApiError, Case, bounded, retry_headers

# Named so that a message about lengths gets the code clients test; wording of vLLM, SGLang, TensorRT-LLM, llama.cpp.
_CONTEXT_LENGTH = re.compile(
    r"maximum (?:context|model|input|sequence|prompt) length|max_(?:model|seq|input|context)_len"
    r"|longer than the model|context (?:length|window|size)|context_length_exceeded|max_position_embeddings",
    re.IGNORECASE,
)
_BUSY = re.compile(r"busy|overload|backlog|queue|capacity|too many", re.IGNORECASE)
_CODE = re.compile(r"[a-z][a-z_]{2,63}")
_PARAM = re.compile(r"[A-Za-z_][\w.\[\]-]{0,127}")
# In this order: what an address or a path is part of goes first. Replacements are words, so that the sentence stays readable.
_SECRETS = (
    (re.compile(r"\b[a-z][a-z0-9+.-]{1,15}://[^\s\"'<>]+", re.IGNORECASE), "[url]"),
    (
        re.compile(r"\[?(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])\]?(?::\d{1,5})?", re.IGNORECASE),
        "[address]",
    ),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b"), "[address]"),
    (
        # Possessive, and only from a word's start: what engines echo must not cost more than its length.
        re.compile(
            r"(?<![\w.-])(?:[\w-]++(?:\.[\w-]++)++:\d{2,5}|localhost:\d{1,5}|[a-z][\w-]*+:\d{4,5})\b", re.IGNORECASE
        ),
        "[address]",
    ),
    (re.compile(r"\bport[ =:]+\d{2,5}\b", re.IGNORECASE), "[port]"),
    (re.compile(r"\b[A-Za-z]:\\[^\s\"']+"), "[path]"),
    (re.compile(r"(?<![\w.:/])~?/(?!v1/)[\w.@+~-]+(?:/[\w.@+~-]*)+"), "[path]"),
    (re.compile(r"\b(?:Bearer\s+\S+|sk-[\w-]{8,})"), "[key]"),
)
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|\bFile \"[^\"]*\", line \d+|\n\s+at \S+\(", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")
# Of an engine's message: the patterns above are linear, but an echo of the prompt is not worth scanning.
_MAX_SCANNED_CHARS = 4096


def upstream_failed(detail: str = "") -> ApiError:
    """No answer, or an engine's own 5xx."""
    return ApiError(Case.UPSTREAM, "The engine failed while it worked on this request; retry.", detail=detail)


def from_engine(status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
    """An engine's answer with a status >= 400. `headers`: names in lower case."""
    return _translate(status, _read_error(body), _retry_after_s(headers))


def from_stream_event(value: object) -> ApiError:
    """An error event inside a 200: the decoded JSON of its `data`. An engine's number is in `code`, where it gives one."""
    error = _error_of(value)
    code = error.get("code")
    number = int(code) if isinstance(code, int | str) and re.fullmatch(r"[45]\d\d", str(code)) else 500
    return _translate(number, error, None)


def scrub(text: str) -> str:
    """One bounded line without addresses, ports, URLs, paths, keys or tracebacks."""
    text = text[:_MAX_SCANNED_CHARS]
    if found := _TRACEBACK.search(text):
        text = text[: found.start()]
    text = _CONTROL.sub(" ", text)
    for pattern, word in _SECRETS:
        text = pattern.sub(word, text)
    return bounded(text.strip())


def _translate(status: int, error: Mapping[str, Any], retry_after_s: float | None) -> ApiError:
    said = scrub(str(error.get("message") or ""))
    wait_s = 1.0 if retry_after_s is None else retry_after_s
    if status in {401, 403}:  # the gateway's credentials, not the client's
        return ApiError(Case.UPSTREAM, "The engine refused the gateway; its operator must look at it.", detail=said)
    if status == 404:
        return _missing(said)
    if status in {405, 501}:
        return ApiError(
            Case.NOT_FOUND, "The engine that serves this model does not offer this endpoint; use another model."
        )
    if status == 408:
        return ApiError(
            Case.OVERLOADED, "The engine gave the request up; retry.", headers=retry_headers(wait_s), detail=said
        )
    if status == 429:
        message = "The engine is busy; retry after the time in `retry-after`."
        return ApiError(Case.RATE_LIMITED, message, headers=retry_headers(wait_s), detail=said)
    if status == 503 or (status >= 500 and _BUSY.search(said)):
        message = "The engine cannot take the request now; retry after the time in `retry-after`."
        return ApiError(Case.OVERLOADED, message, headers=retry_headers(wait_s), detail=said)
    if status == 504:
        return ApiError(Case.UPSTREAM_TIMEOUT, "The engine did not answer in time; retry later.", detail=said)
    if status >= 500:
        return upstream_failed(said)
    return _refused(status, said, error)


def _missing(said: str) -> ApiError:
    if "model" in said.lower():
        return ApiError(Case.MODEL_NOT_FOUND, f"{said} GET /v1/models lists what is served.", param="model")
    return ApiError(
        Case.NOT_FOUND,
        "The engine that serves this model does not offer this endpoint; use another model.",
        detail=said,
    )


def _refused(status: int, said: str, error: Mapping[str, Any]) -> ApiError:
    """The request's own fault: the engine's words are what helps."""
    param = error.get("param")
    param = param if isinstance(param, str) and _PARAM.fullmatch(param) else None
    code = error.get("code")
    code = code if isinstance(code, str) and _CODE.fullmatch(code) else None
    if _CONTEXT_LENGTH.search(said) or code == Case.CONTEXT_LENGTH.code:
        message = said or "The request is longer than the model's context; shorten the prompt."
        return ApiError(Case.CONTEXT_LENGTH, message, param=param)
    case = Case.BODY_TOO_LARGE if status == Case.BODY_TOO_LARGE.status else Case.INVALID_REQUEST
    message = said or f"The engine refused the request with status {status} and no reason; check its parameters."
    return ApiError(case, message, param=param, code=code)


def _read_error(body: bytes) -> Mapping[str, Any]:
    """HTML, garbage and an empty body say nothing: only their status counts."""
    try:
        return _error_of(json.loads(body))
    except (ValueError, RecursionError):
        return {}


def _error_of(value: object) -> Mapping[str, Any]:
    """The object that holds `message`, whatever it is wrapped in."""
    if isinstance(value, str):
        return {"message": value}
    if not isinstance(value, dict):
        return {}
    inner = value.get("error")
    if isinstance(inner, dict):
        return inner if isinstance(inner.get("message"), str) else {**inner, "message": None}
    if isinstance(inner, str):  # vLLM's 401, Triton's HTTP frontend
        return {**value, "message": inner}
    if "detail" in value:
        return {"message": _detail(value["detail"])}
    return value if isinstance(value.get("message"), str) else {}


def _detail(detail: object) -> str:
    """FastAPI's: a string, or a list of `{loc, msg}`. The values that it echoes (`input`) stay out."""
    if isinstance(detail, str):
        return detail
    if not isinstance(detail, list):
        return ""
    parts = [(d.get("loc"), d.get("msg")) for d in detail[:4] if isinstance(d, dict)]
    return "; ".join(
        f"{'.'.join(str(p) for p in loc if p != 'body')}: {msg}" if isinstance(loc, list) else str(msg)
        for loc, msg in parts
    )


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
    return None
