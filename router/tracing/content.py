"""Prompts and answers as attributes, for whoever has asked for them (`tracing.content`): OpenTelemetry's message parts, bounded.

Off by default, and then nothing here runs. Text only: images, audio and tool calls are named, not copied.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from router.openai.journal import Journal


class KeptText:
    """Of one answer, as its stream says it; no more than `limit` bytes of JSON-escaped text."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._escaped = bytearray()

    def said(self, escaped: bytes) -> None:
        if len(self._escaped) < self.limit:
            self._escaped += escaped

    def answer(self, *, choices: int, document: bytes | None) -> str | None:
        """As `gen_ai.output.messages`; None: nothing that could be told. Of several choices streamed at once the texts are mixed.

        `document`: of an answer that came whole.
        """
        texts = _document_texts(document) if document is not None else []
        if self._escaped and choices == 1:
            texts = [self._text()]
        parts = [{"type": "text", "content": bounded(text, self.limit)} for text in texts]
        if not parts:
            return None
        return msgspec.json.encode([{"role": "assistant", "parts": [part]} for part in parts]).decode()

    def _text(self) -> str:
        try:
            text: str = msgspec.json.decode(b'"' + self._escaped + b'"')
        except msgspec.DecodeError:  # half of a surrogate pair
            return self._escaped.decode("utf-8", "replace")
        return text


class KeepingJournal(Journal):
    """A journal that also keeps what is said where nobody could go on with it."""

    __slots__ = ("_kept",)

    def __init__(self, kept: KeptText, *, room_bytes: int, exact: bool, why_not: str | None = None) -> None:
        super().__init__(room_bytes=room_bytes, exact=exact, why_not=why_not)
        self._kept = kept

    def said(self, text: bytes | None, ids: bytes | None) -> None:
        super().said(text, ids)
        if text:
            self._kept.said(text)


def prompt_of(fields: Mapping[str, Any], limit: int) -> str | None:
    """A body's prompt as `gen_ai.input.messages`; the last messages where it is long: they are what was asked."""
    messages = fields.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        prompt = fields.get("prompt", fields.get("input"))
        if prompt is None:
            return None
        text = prompt if isinstance(prompt, str) else msgspec.json.encode(prompt).decode()
        messages = [{"role": "user", "content": text}]
    told: list[dict[str, Any]] = []
    room = limit
    for message in reversed(messages):
        if room <= 0 or not isinstance(message, Mapping):
            break
        parts = [{**part, "content": bounded(part["content"], room)} for part in _parts(message.get("content"))]
        room -= sum(len(part["content"]) for part in parts)
        told.append({"role": str(message.get("role"))[:32], "parts": parts})
    return msgspec.json.encode(told[::-1]).decode()


def bounded(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "..."


def _parts(content: object) -> list[dict[str, str]]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    parts = content if isinstance(content, list) else []
    return [
        {"type": "text", "content": part["text"]}
        if isinstance(part.get("text"), str)
        else {"type": str(part.get("type"))[:32], "content": ""}
        for part in parts
        if isinstance(part, Mapping)
    ]


def _document_texts(document: bytes) -> list[str]:
    choices = msgspec.json.decode(document).get("choices") or []
    found = [choice["message"].get("content") if "message" in choice else choice.get("text") for choice in choices]
    return [text for text in found if isinstance(text, str)]
