"""The token ids of a prompt, as an engine reads it: from the request where they stand in it, else by `POST /tokenize`.

Decides for which requests the answer is the same as what the engine generates from; where in doubt, none is asked for.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import httpx
import msgspec

from backends.kv_events.messages import MAX_TOKEN

_CHAT: Final = "/v1/chat/completions"
_COMPLETION: Final = "/v1/completions"
# Members that /tokenize reads as the endpoint itself does.
_SAME_CHAT = ("model", "messages", "tools", "chat_template_kwargs", "add_generation_prompt",
              "continue_final_message", "add_special_tokens")  # fmt: skip
_SAME_COMPLETION = ("model", "prompt", "add_special_tokens")
# Members that change what the engine reads, or which blocks it may share, in ways that /tokenize does not know;
# a client's template, moreover, is not for us to send anywhere.
_OTHERWISE = frozenset({"cache_salt", "chat_template", "documents", "functions", "media_io_kwargs", "mm_processor_kwargs", "prompt_embeds",
                        "reasoning_effort", "suffix", "truncate_prompt_tokens"})  # fmt: skip
MAX_ANSWER_BYTES: Final = 8 * 2**20  # a million tokens
_TIMEOUT_S = 5.0


class _Tokens(msgspec.Struct):
    tokens: list[Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)]]


class TokensUnavailableError(Exception):
    """The engine did not tell."""


def own_tokens(path: str, fields: Mapping[str, Any]) -> list[int] | None:
    """The ids that the client itself sent as the prompt."""
    prompt = fields.get("prompt")
    if path != _COMPLETION or _read_otherwise(fields) or type(prompt) is not list or set(map(type, prompt)) != {int}:
        return None
    return prompt


def question(path: str, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """The body for /tokenize; None: it would not be the prompt that the engine reads."""
    if _read_otherwise(fields):
        return None
    if path == _COMPLETION and type(fields.get("prompt")) is str:
        return _picked(fields, _SAME_COMPLETION)
    if path == _CHAT and all(map(_is_text, fields.get("messages") or ())):
        return _picked(fields, _SAME_CHAT)
    return None


async def ask(http: httpx.AsyncClient, base_url: str, api_key: str | None, body: Mapping[str, Any]) -> list[int]:
    """Raises TokensUnavailableError for whatever is no answer in time."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {api_key}"} if api_key else {})
    try:
        async with http.stream(
            "POST", f"{base_url}/tokenize", content=msgspec.json.encode(body), headers=headers, timeout=_TIMEOUT_S
        ) as response:
            if not response.is_success:
                raise TokensUnavailableError(f"/tokenize answered {response.status_code}")
            read = bytearray()
            async for piece in response.aiter_bytes():
                read += piece
                if len(read) > MAX_ANSWER_BYTES:
                    raise TokensUnavailableError("/tokenize answers without end")
    except httpx.HTTPError as error:
        raise TokensUnavailableError(f"/tokenize: {type(error).__name__}") from error
    try:
        return msgspec.json.decode(read, type=_Tokens).tokens
    except (msgspec.DecodeError, RecursionError) as error:
        raise TokensUnavailableError("/tokenize gives no tokens") from error


def _read_otherwise(fields: Mapping[str, Any]) -> bool:
    return any(fields.get(name) is not None for name in _OTHERWISE)


def _picked(fields: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: fields[name] for name in names if fields.get(name) is not None}


def _is_text(message: Any) -> bool:
    """Images and the like become tokens that only the engine's processor knows."""
    content = message.get("content") if isinstance(message, dict) else message
    if not isinstance(content, list):
        return content is None or isinstance(content, str)
    return all(isinstance(part, str) or (isinstance(part, dict) and part.get("type") == "text") for part in content)
