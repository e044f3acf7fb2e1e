"""An answer that does not stream: one JSON document, checked before it becomes somebody's 200.

Reads only what the gateway needs; the rest is validated as JSON and passed on byte for byte.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from router.openai.errors import from_stream_event, upstream_garbled, upstream_lost
from router.openai.repairs import ROLE
from router.openai.usage import Usage, read_usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """`body`: what the client gets. `finished`: every choice had a finish reason (embeddings: always)."""

    body: bytes
    usage: Usage | None
    finished: bool
    finish_reasons: tuple[str, ...] = ()
    model: str | None = None  # as the engine calls it


class _Choice(msgspec.Struct):
    """The parts of a choice that are looked at; msgspec skips the rest without building it."""

    finish_reason: str | None = None
    message: dict[str, Any] | None = None


class _Answer(msgspec.Struct):
    object: str | None = None
    model: Any = None
    error: Any = None
    choices: list[_Choice] | None = None
    data: list[msgspec.Raw] | None = None
    usage: Any = None


def check_document(raw: bytes, *, chat: bool) -> Document:
    """Raises ApiError where a 200 holds an error, no JSON, or less than an answer. `chat` False: completions and embeddings."""
    try:
        if not raw.isascii():
            raw.decode()  # what msgspec skips, it does not decode
        answer = msgspec.json.decode(raw, type=_Answer)
    except (ValueError, RecursionError) as e:
        # Triton's `{"error": "..."}` comes with status 200, too; `choices: null` decodes and is caught below.
        raise upstream_garbled(f"malformed document: {e}") from None
    if answer.error is not None or answer.object == "error":
        raise from_stream_event(msgspec.json.decode(raw))
    if not answer.choices and (chat or answer.data is None):
        raise upstream_garbled("a document without choices")
    choices = answer.choices or []
    if any(choice.finish_reason in {"abort", "error"} for choice in choices):
        raise upstream_lost()
    finished = all(choice.finish_reason for choice in choices)
    body = _with_roles(raw, choices) if chat else raw
    named = answer.model if isinstance(answer.model, str) else None
    reasons = tuple(choice.finish_reason for choice in choices if choice.finish_reason)
    return Document(body=body, usage=read_usage(answer.usage), finished=finished, finish_reasons=reasons, model=named)


def _with_roles(raw: bytes, choices: list[_Choice]) -> bytes:
    """The same bytes, unless a message lacks its role: then the one edit that makes it readable."""
    if any(choice.message is None for choice in choices):
        raise upstream_garbled("a choice without message")
    if all(choice.message is not None and choice.message.get("role") for choice in choices):
        return raw
    document = msgspec.json.decode(raw)
    for choice in document["choices"]:
        choice["message"]["role"] = choice["message"].get("role") or ROLE
    return msgspec.json.encode(document)
