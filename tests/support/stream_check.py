"""What is wrong with an answer, given the request alone: the simulated engines' words are a function of the prompt.

Judges whole transcripts, without I/O: loss, duplication, order, completeness, one id, one role, one end, usage once and right.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.simulated.bodies import chat_job, completion_job

CONTEXT_TOKENS = 8192  # of `tests.support.engine_process`
ERROR_EVENT = "the stream ends with an error event"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The one right answer to a request."""

    chat: bool
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    include_usage: bool

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def expected_answer(body: Mapping[str, Any]) -> Expected:
    """To a chat or plain completion with one choice."""
    chat = "messages" in body
    job = (chat_job if chat else completion_job)(body, CONTEXT_TOKENS)
    (choice,) = job.choices
    return Expected(
        chat=chat,
        text=choice.texts(0, choice.limit_tokens),
        finish_reason=choice.finish_reason,
        prompt_tokens=len(job.prompt_ids),
        completion_tokens=choice.limit_tokens,
        include_usage=job.include_usage,
    )


def faults_of_stream(expected: Expected, status: int, raw: bytes) -> list[str]:
    """Everything that a client could hold against a streamed answer; empty: one unbroken, complete, exactly equal answer."""
    if status != 200:
        return [f"status {status}: {raw[:300]!r}"]
    if not raw.endswith(b"\n\n"):
        return [f"broken off in the middle of an event: ...{raw[-80:]!r}"]
    try:
        events = [_event(part) for part in raw.decode().split("\n\n")[:-1] if not part.startswith(":")]
    except (ValueError, AssertionError) as error:
        return [f"not readable: {error}"]
    chunks = [event for event in events if event is not None]
    found: list[str] = []
    if any("error" in chunk for chunk in chunks):
        found.append(ERROR_EVENT if "error" in chunks[-1] else "an error event that is not the last")
    if events.count(None) != 1 or events[-1] is not None:
        found.append(f"[DONE] {events.count(None)} times, or not last")
    chunks = [chunk for chunk in chunks if "error" not in chunk]
    found += _identity(chunks, expected)
    choices = [(place, choice) for place, chunk in enumerate(chunks) for choice in chunk["choices"]]
    found += _text("".join(_said(choice) for _, choice in choices), expected.text)
    found += _roles([choice for _, choice in choices], expected)
    ends = [(place, choice["finish_reason"]) for place, choice in choices if choice.get("finish_reason")]
    if [reason for _, reason in ends] != [expected.finish_reason]:
        found.append(f"finish reasons {[reason for _, reason in ends]}, not [{expected.finish_reason!r}]")
    elif any(place > ends[0][0] for place, _ in choices):
        found.append("a choice after its finish reason")
    return found + _usage(chunks, expected)


def faults_of_document(expected: Expected, status: int, raw: bytes) -> list[str]:
    """The same of an answer in one piece."""
    if status != 200:
        return [f"status {status}: {raw[:300]!r}"]
    try:
        document = json.loads(raw)
        (choice,) = document["choices"]
        usage = document["usage"]
    except (ValueError, KeyError) as error:
        return [f"not readable: {error!r}"]
    found = _text(choice["message"]["content"] if expected.chat else choice["text"], expected.text)
    if choice["finish_reason"] != expected.finish_reason:
        found.append(f"finish reason {choice['finish_reason']!r}, not {expected.finish_reason!r}")
    found += _figures(usage, expected)
    if expected.chat and choice["message"].get("role") != "assistant":
        found.append("no role")
    if document.get("object") != ("chat.completion" if expected.chat else "text_completion"):
        found.append(f"object {document.get('object')!r}")
    return found + _leaks([document, choice])


def _event(part: str) -> dict[str, Any] | None:
    """None: [DONE]."""
    assert part.startswith("data: "), f"{part[:80]!r} is no data line"
    assert "\n" not in part, f"{part[:80]!r} has several lines"
    if part == "data: [DONE]":
        return None
    event = json.loads(part[6:])
    assert isinstance(event, dict), part[:80]
    return event


def _said(choice: Mapping[str, Any]) -> str:
    return str((choice["delta"].get("content") if "delta" in choice else choice.get("text")) or "")


def _identity(chunks: Sequence[Mapping[str, Any]], expected: Expected) -> list[str]:
    found = []
    for name in ("id", "created", "model", "object"):
        values = {chunk.get(name) for chunk in chunks}
        if len(values) != 1 or values == {None}:
            found.append(f"{len(values)} different values of {name!r}: {sorted(map(str, values))[:3]}")
    kind = "chat.completion.chunk" if expected.chat else "text_completion"
    if any(chunk.get("object") != kind for chunk in chunks):
        found.append(f"an object that is no {kind}")
    indices = {choice.get("index") for chunk in chunks for choice in chunk["choices"]}
    if indices - {0}:
        found.append(f"choices {indices}")
    return found + _leaks([*chunks, *(choice for chunk in chunks for choice in chunk["choices"])])


def _leaks(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Members that the gateway may ask an engine for, and nobody asked the gateway for."""
    leaked = {name for part in parts for name in ("token_ids", "prompt_token_ids") if part.get(name) is not None}
    return [f"{name} that nobody asked for" for name in sorted(leaked)]


def _text(said: str, expected: str) -> list[str]:
    if said == expected:
        return []
    words, wanted = said.split(" "), expected.split(" ")
    at = next((i for i, pair in enumerate(zip(words, wanted, strict=False)) if pair[0] != pair[1]), None)
    if expected.startswith(said):
        kind = "text lost at the end"
    elif at is None:
        kind = "more text than there is"
    elif words[at] == wanted[at - 1]:
        kind = "text duplicated"
    elif words[at] in wanted[at + 1 :]:
        kind = "text lost"
    else:
        kind = "text differs"
    where = min(len(words), len(wanted)) if at is None else at
    return [f"{kind}: {len(words)} words of {len(wanted)}, from word {where} on"]


def _roles(choices: Sequence[Mapping[str, Any]], expected: Expected) -> list[str]:
    if not expected.chat:
        return []
    roles = [place for place, choice in enumerate(choices) if choice["delta"].get("role")]
    return [] if roles == [0] else [f"the role comes {len(roles)} times, at {roles[:3]}"]


def _usage(chunks: Sequence[Mapping[str, Any]], expected: Expected) -> list[str]:
    told = [(place, chunk["usage"]) for place, chunk in enumerate(chunks) if chunk.get("usage") is not None]
    if not expected.include_usage:
        return [f"usage that nobody asked for, {len(told)} times"] if told else []
    if len(told) != 1 or told[0][0] != len(chunks) - 1 or chunks[-1]["choices"]:
        return [f"usage {len(told)} times, or not last"]
    return _figures(told[0][1], expected)


def _figures(usage: Mapping[str, Any], expected: Expected) -> list[str]:
    """`prompt_tokens_details` is left aside: what an engine's cache held is its own."""
    wrong = {name: usage.get(name) for name in expected.usage} != expected.usage
    return [f"usage {usage}, not {expected.usage}"] if wrong else []
