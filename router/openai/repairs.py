"""Repairs of one choice, so that every client can read it; each has its client beside it.

Edits decoded objects in place. Whether a stream is whole is not decided here.
"""

from typing import Any, Final

ROLE: Final = "assistant"
_CONTENT: Final = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function_call", "audio")


def repair_chat_choice(choice: dict[str, Any], *, first: bool) -> bool:
    """A delta that is an object, with the role in the first one of its choice and nowhere else. Whether anything changed."""
    delta = choice.get("delta")
    edited = not isinstance(delta, dict)
    if not isinstance(delta, dict):  # LangChain indexes choice["delta"] and asks it for keys
        delta = choice["delta"] = {}
    if first:
        if delta.get("role") != ROLE:
            choice["delta"] = {"role": ROLE, **{name: value for name, value in delta.items() if name != "role"}}
            edited = True
    elif delta.pop("role", None) is not None:
        # langchainjs #11468 dies of an empty role; openai-python concatenates a repeated one to "assistantassistant".
        edited = True
    return _index_tool_calls(choice["delta"]) or edited


def silent_choice(index: int, *, chat: bool) -> dict[str, Any]:
    """A first chunk that says nothing: its choice exists."""
    said: dict[str, Any] = {"delta": {"role": ROLE, "content": ""}} if chat else {"text": ""}
    return {"index": index, **said, "logprobs": None, "finish_reason": None}


def told_tokens(choice: dict[str, Any]) -> int:
    """Of a choice of a chunk, where it carries anything generated: by its ids, for an engine that is behind, or speculates, says several at once; else one."""
    delta = choice.get("delta")
    if not (choice.get("text") or (isinstance(delta, dict) and any(delta.get(name) for name in _CONTENT))):
        return 0
    ids = choice.get("token_ids")
    return len(ids) if isinstance(ids, list) and ids else 1


def as_chat(chunk: dict[str, Any]) -> None:
    """A chunk of plain completions as one of a chat: what goes on is told as it began."""
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and "text" in choice:
            text = choice.pop("text")
            choice.pop("prompt_token_ids", None)  # a chat's stand beside the choices
            rest = {name: choice.pop(name) for name in list(choice) if name != "index"}
            choice["delta"] = {"content": text}
            choice.update(rest)


def hide_ids(choice: dict[str, Any]) -> bool:
    """Whether there were any."""
    return choice.pop("token_ids", None) is not None


def _index_tool_calls(delta: dict[str, Any]) -> bool:
    """openai-python's accumulator raises TypeError on a tool call without index."""
    calls = delta.get("tool_calls")
    edited = False
    for position, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict) and type(call.get("index")) is not int:
            call["index"] = position
            edited = True
    return edited
