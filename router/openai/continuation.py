"""The request that lets another engine go on with an answer where the last one stopped.

Decides which answers can be gone on with, by which of two ways, and what the engine is sent for it. Token ids: the prompt and the
answer so far as one prompt of /v1/completions, so that the next token is the next token. Text: the answer so far as a last message
to be continued (vLLM's `continue_final_message`), or behind the prompt. Pure; the journal has what was said.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from router.openai.body import Body, parse_object
from router.openai.call_spec import CallSpec
from router.openai.journal import Journal, Mode
from router.openai.stops import StopGuard, stop_strings

COMPLETIONS: Final = "/v1/completions"
# What makes an answer one that nobody can go on with, and the values of it that do not. Why: docs/migration.md.
_HARMLESS: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "logprobs": (None, False),
        "top_logprobs": (None, 0),
        "prompt_logprobs": (None,),
        "echo": (None, False),
        "suffix": (None, ""),
        "best_of": (None, 1),
        "use_beam_search": (None, False),
        "response_format": (None, {"type": "text"}),
        "structured_outputs": (None,),
        "guided_json": (None,),
        "guided_regex": (None,),
        "guided_choice": (None,),
        "guided_grammar": (None,),
        "audio": (None,),
    }
)
_FINAL: Final = frozenset(_HARMLESS)
# A chat's own members, and those that mean another thing in a plain completion.
_NOT_OF_COMPLETIONS: Final = frozenset(
    {
        "messages", "max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls", "chat_template", "chat_template_kwargs",
        "add_generation_prompt", "continue_final_message", "documents", "response_format", "logprobs", "top_logprobs", "n", "best_of",
        "echo", "suffix", "truncate_prompt_tokens", "reasoning_effort", "include_reasoning", "modalities", "add_special_tokens",
    }
)  # fmt: skip
_TRUE, _FALSE = b"true", b"false"


def why_not(fields: Mapping[str, Any], spec: CallSpec) -> str | None:
    """What in a request keeps its answer from being gone on with; None: nothing."""
    if spec.n > 1:
        return "several choices"
    if _FINAL.isdisjoint(fields):
        return None
    for name in sorted(_FINAL.intersection(fields)):
        value = fields[name]
        if not any(type(value) is type(harmless) and value == harmless for harmless in _HARMLESS[name]):
            return name
    return None


def asks_ids(fields: Mapping[str, Any]) -> bool:
    """Whether token ids would be of use. Tool calls are found by the engine's parser, which runs on chats only.

    Where stop strings are the gateway's to find, `min_tokens` would be, too, and the text of a stop token would not be held back.
    """
    return "tools" not in fields and not ("stop" in fields and ("min_tokens" in fields or "stop_token_ids" in fields))


def guard_of(fields: Mapping[str, Any], *, said: Callable[[], str] = str) -> StopGuard | None:
    """For an engine that is asked to hold nothing back, or that does not know what another has `said`."""
    stops = stop_strings(fields["stop"]) if "stop" in fields else ()
    kept = fields.get("include_stop_str_in_output") is True
    return StopGuard(stops, kept=kept, said=said()) if stops else None


def ids_asked(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The members, all true, that make an engine tell its token ids, and hold no text back."""
    return ("return_token_ids", "include_stop_str_in_output") if "stop" in fields else ("return_token_ids",)


def way_on(journal: Journal, body: Body, *, takes_ids: bool) -> Mode:
    """How an engine can go on. `takes_ids`: it takes token ids for a prompt, and its token ids are the same."""
    fields = body.fields
    if takes_ids and journal.exact and not _has_media(fields):
        return Mode.EXACT
    if not journal.by_text or not _is_text(journal) or ("prompt" not in fields and "messages" not in fields):
        return Mode.NONE
    if "prompt" in fields:
        return Mode.TEXT if _one_text(fields["prompt"]) is not None else Mode.NONE
    last = fields["messages"][-1]
    if fields.get("continue_final_message") is True and not isinstance(last.get("content"), str):
        return Mode.NONE
    return Mode.TEXT


def continued(body: bytes, spec: CallSpec, journal: Journal, mode: Mode, *, chat: bool, said_tokens: int) -> bytes:
    """The body that goes upstream. `body`: as the first engine got it; `said_tokens`: of the answer so far."""
    before = parse_object(body, max_depth=len(body))
    left = None if spec.max_output_tokens is None else max(1, spec.max_output_tokens - said_tokens)
    # An absent bound of plain completions is 16 tokens; null is the context, as a chat's absent one.
    set_ = {"max_tokens": b"null" if left is None else b"%d" % left}
    if isinstance(least := before.fields.get("min_tokens"), int):
        set_["min_tokens"] = b"%d" % max(0, least - said_tokens)
    if mode is Mode.EXACT:
        assert journal.prompt_ids is not None
        set_["prompt"] = b"[" + journal.prompt_ids + journal.ids + b"]"
        return before.edit(set_, _NOT_OF_COMPLETIONS)
    if not chat:
        prompt = _one_text(before.fields["prompt"])
        assert prompt is not None
        set_["prompt"] = msgspec.json.encode(prompt + journal.plain_text())
        return before.edit(set_)
    if left is None:
        del set_["max_tokens"]
    set_ |= {"messages": _messages(before, journal), "add_generation_prompt": _FALSE, "continue_final_message": _TRUE}
    return before.edit(set_, {"max_completion_tokens"})


def _messages(body: Body, journal: Journal) -> bytes:
    """The client's, and the answer so far."""
    if body.fields.get("continue_final_message") is True:
        *head, last = body.fields["messages"]
        return msgspec.json.encode([*head, {**last, "content": last["content"] + journal.plain_text()}])
    given = body.text_of("messages").rstrip()
    said = b'{"role":"assistant","content":"' + journal.text + b'"}'
    return given[:-1].encode() + b"," + said + b"]"


def _is_text(journal: Journal) -> bool:
    """An engine that escapes a character as two events may be lost between them."""
    try:
        journal.plain_text()
    except ValueError:
        return False
    return True


def _one_text(prompt: object) -> str | None:
    """A prompt that is one text."""
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else None


def _has_media(fields: Mapping[str, Any]) -> bool:
    """Their place in the prompt's token ids is only a mark."""
    contents = [message.get("content") for message in fields.get("messages") or ()]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, dict) and part.get("type") != "text" for part in parts)
