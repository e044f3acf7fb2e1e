"""Token counts as engines report them. What an engine did not say is None, never 0."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(init=False, slots=True)
class Usage:
    """OpenAI's `usage` object; `cached_tokens` are part of the prompt's, `reasoning_tokens` of the completion's."""

    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None

    def __init__(
        self,
        *,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        cached_tokens: int | None = None,
        reasoning_tokens: int | None = None,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens
        self.reasoning_tokens = reasoning_tokens


def read_usage(value: object) -> Usage | None:
    """None for null, and for what is no object."""
    if not isinstance(value, dict):
        return None
    return Usage(
        prompt_tokens=_count(value, "prompt_tokens"),
        completion_tokens=_count(value, "completion_tokens"),
        cached_tokens=_count(value.get("prompt_tokens_details"), "cached_tokens"),
        reasoning_tokens=_count(value.get("completion_tokens_details"), "reasoning_tokens"),
    )


def whole_usage(value: Mapping[str, Any], before: int) -> dict[str, Any]:
    """Of an answer whose first `before` tokens another engine said: this one counted them as its prompt's."""
    usage = dict(value)
    prompt, completion = _count(value, "prompt_tokens"), _count(value, "completion_tokens")
    if prompt is not None:
        usage["prompt_tokens"] = max(0, prompt - before)
    if completion is not None:
        usage["completion_tokens"] = completion + before
    details = value.get("prompt_tokens_details")
    cached = _count(details, "cached_tokens")
    if isinstance(details, dict) and cached is not None and prompt is not None:
        usage["prompt_tokens_details"] = {**details, "cached_tokens": min(cached, usage["prompt_tokens"])}
    return usage


def _count(value: object, name: str) -> int | None:
    fields: Mapping[str, Any] = value if isinstance(value, dict) else {}
    count = fields.get(name)
    return count if type(count) is int and count >= 0 else None
