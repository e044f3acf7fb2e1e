"""Request bodies: the fields of OpenAI's and vLLM's that this engine reads, checked and turned into jobs.

Fields it does not know pass unnoticed, as sampling settings do: the words are a function of the prompt alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from backends.simulated.choice import Choice, Ending, plan_choice
from backends.simulated.errors import bad_request
from backends.simulated.tokens import MAX_TOKEN_ID, encode, split_prompt

MAX_CHOICES = 16  # `n`; each is a sequence of its own
MAX_STOPS = 16  # each costs a search per token; OpenAI allows 4
MAX_EMBEDDING_INPUTS = 2048  # OpenAI's limit

_COMPLETION_TOKENS = 16  # OpenAI's and vLLM's default of /v1/completions


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class ContentPart(msgspec.Struct, kw_only=True):
    type: str = "text"
    text: str | None = None


class Message(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[ContentPart] | None = None


class GenerationBody(msgspec.Struct, kw_only=True):
    """What chat and plain completions share."""

    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    ignore_eos: bool | None = False
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool | None = False
    return_token_ids: bool | None = False
    priority: int | None = None
    logprobs: bool | int | None = None
    prompt_logprobs: int | None = None


class ChatBody(GenerationBody, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = False


class CompletionBody(GenerationBody, kw_only=True):
    prompt: str | list[Any]
    echo: bool | None = False
    suffix: str | None = None


class EmbeddingBody(msgspec.Struct, kw_only=True):
    input: str | list[Any]
    encoding_format: str | None = "float"
    dimensions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJob:
    """A chat or plain completion, ready to run."""

    chat: bool
    prompt_ids: Sequence[int]
    choices: tuple[Choice, ...]
    priority: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingJob:
    """Embedding inputs as token ids."""

    inputs: tuple[Sequence[int], ...]
    base64: bool


B = TypeVar("B")


def chat_job(fields: Mapping[str, object], context_tokens: int) -> GenerationJob:
    body = _convert(fields, ChatBody)
    ids = encode(render_chat(body))
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return _generation_job(body, ids, limit, context_tokens, chat=True)


def completion_job(fields: Mapping[str, object], context_tokens: int) -> GenerationJob:
    body = _convert(fields, CompletionBody)
    for name in ("echo", "suffix"):
        if getattr(body, name):
            raise bad_request(f"{name} is not supported by this engine", name)
    ids = prompt_ids(body.prompt)
    limit = body.max_tokens
    if limit is None and "max_tokens" not in fields:
        limit = min(_COMPLETION_TOKENS, max(context_tokens - len(ids), 1))
    return _generation_job(body, ids, limit, context_tokens, chat=False)


def embedding_job(fields: Mapping[str, object], context_tokens: int) -> EmbeddingJob:
    body = _convert(fields, EmbeddingBody)
    if body.encoding_format not in ("float", "base64", None):
        raise bad_request("encoding_format must be 'float' or 'base64'", "encoding_format")
    if body.dimensions is not None:
        raise bad_request("This model does not support changing its output dimensions", "dimensions")
    several = isinstance(body.input, list) and not all(_is_id(item) for item in body.input)
    inputs = tuple(_ids(item, "input") for item in (body.input if several else [body.input]))
    if len(inputs) > MAX_EMBEDDING_INPUTS:
        raise bad_request(f"input has {len(inputs)} items, more than {MAX_EMBEDDING_INPUTS}", "input")
    for ids in inputs:
        _check_prompt(ids, context_tokens + 1, "input")
    return EmbeddingJob(inputs=inputs, base64=body.encoding_format == "base64")


def prompt_ids(prompt: str | list[Any]) -> list[int]:
    """A plain prompt as ids: a text, token ids, or a list that holds one of these."""
    if isinstance(prompt, list) and prompt and not _is_id(prompt[0]):
        if len(prompt) > 1:
            raise bad_request("several prompts in one request are not supported by this engine", "prompt")
        prompt = prompt[0]
    return _ids(prompt, "prompt")


def render_chat(body: ChatBody) -> str:
    """The chat template: role lines; a final message that is to be continued stays open."""
    generation = body.add_generation_prompt if body.add_generation_prompt is not None else True
    if body.continue_final_message and generation:
        raise bad_request("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    text = "".join(f"<|{message.role}|>\n{_content(message)}\n" for message in body.messages)
    if body.continue_final_message:
        return text[:-1]
    return text + "<|assistant|>\n" if generation else text


def chat_text(messages: Sequence[Mapping[str, object]]) -> str:
    """What a chat's messages become before the answer; for test clients, with `tokens.expected_text`."""
    return render_chat(msgspec.convert({"messages": messages}, ChatBody))


def _content(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    if any(part.type != "text" for part in message.content):
        raise bad_request("this engine reads text content only", "messages")
    return "".join(part.text or "" for part in message.content)


def _generation_job(
    body: GenerationBody, ids: Sequence[int], limit: int | None, context_tokens: int, *, chat: bool
) -> GenerationJob:
    if (body.logprobs is not None and body.logprobs is not False) or body.prompt_logprobs is not None:
        raise bad_request("logprobs are not supported by this engine", "logprobs")
    _check_prompt(ids, context_tokens, "messages" if chat else "prompt")
    room = context_tokens - len(ids)
    if limit is not None and limit > room:
        raise bad_request(
            f"'max_tokens' or 'max_completion_tokens' is too large: {limit}. This model's maximum context length is "
            f"{context_tokens} tokens and your request has {len(ids)} input tokens ({limit} > {context_tokens} - {len(ids)}).",
            "max_tokens",
        )
    ending = Ending(
        max_tokens=limit if limit is not None else room,
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        stop=_stops(body.stop),
        stop_shown=bool(body.include_stop_str_in_output),
    )
    if ending.min_tokens > ending.max_tokens:
        raise bad_request(
            f"min_tokens must be less than or equal to max_tokens={ending.max_tokens}, got {ending.min_tokens}.",
            "min_tokens",
        )
    split = split_prompt(ids)
    options = body.stream_options or StreamOptions()
    return GenerationJob(
        chat=chat,
        prompt_ids=ids,
        choices=tuple(plan_choice(split, index, ending) for index in range(body.n or 1)),
        priority=body.priority or 0,
        stream=bool(body.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
        return_token_ids=bool(body.return_token_ids),
    )


def _check_prompt(ids: Sequence[int], context_tokens: int, param: str) -> None:
    if not ids:
        raise bad_request("The decoder prompt cannot be empty", param)
    if len(ids) >= context_tokens:
        raise bad_request(
            f"This model's maximum context length is {context_tokens} tokens. However, your request has {len(ids)} input "
            "tokens. Please reduce the length of the input messages.",
            param,
        )


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise bad_request(f"stop has {len(stops)} strings, more than {MAX_STOPS}", "stop")
    if "" in stops:
        raise bad_request("stop cannot contain an empty string.", "stop")
    return stops


def _ids(value: object, param: str) -> list[int]:
    if isinstance(value, str):
        return encode(value)
    if isinstance(value, list) and all(_is_id(item) for item in value):
        return value
    raise bad_request(f"{param} must be a text or token ids", param)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKEN_ID


def _convert(fields: Mapping[str, object], shape: type[B]) -> B:
    try:
        return msgspec.convert(fields, shape)
    except msgspec.ValidationError as error:
        raise bad_request(str(error)) from error
