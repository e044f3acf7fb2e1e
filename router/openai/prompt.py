"""What a request asks to be read: messages, prompt or input, checked, measured, and hashed for prefix locality.

The text is rendered without the model's chat template: it only has to be the same text whenever the engine's prompt starts the
same way. Hashes are chained, so that equal hash k means equal text up to chunk k.
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from zlib import crc32

from router.openai.body import Body
from router.openai.checks import objects, out_of_range, wrong
from router.openai.errors import invalid_request

# About 64 tokens of English: four KV blocks of 16, fine enough to tell prompts apart and coarse enough to index.
CHUNK_CHARS: Final = 256
CHUNK_TOKENS: Final = 64
# 128 Ki characters of prefix; what differs only beyond it shares what counts.
MAX_CHUNKS: Final = 512
MAX_MESSAGES: Final = 4096
MAX_PARTS: Final = 4096  # of one message's content
MAX_TOOLS: Final = 1024
MAX_INPUTS: Final = 2048  # OpenAI's bound for embeddings; each is a sequence of its own
_MAX_TOKEN_ID: Final = 2**32 - 1


class Prompt(NamedTuple):
    """Size and identity of what is to be read. `token_count`: exact, where the client sent token ids; else None."""

    chars: int
    token_count: int | None
    chunks: tuple[int, ...]
    chunk_tokens: int | None  # exact tokens a chunk; None: CHUNK_CHARS characters
    sequences: int = 1


def read_messages(body: Body, model: str) -> Prompt:
    """Chat: tool definitions come first, as chat templates put them there."""
    messages = objects(body.fields, "messages", MAX_MESSAGES)
    if messages is None:
        raise invalid_request("`messages` is missing; send a list of {role, content}.", param="messages")
    if not messages:
        raise out_of_range("messages", "a list with at least one message")
    pieces = [body.text_of(name) for name in ("tools", "functions") if objects(body.fields, name, MAX_TOOLS)]
    marks: list[str] = []
    chars = sum(map(len, pieces))
    for position, message in enumerate(messages):
        role = message.get("role")
        if type(role) is not str or not role:
            raise wrong(f"messages[{position}].role", "a non-empty string", role)
        marks.append(f"\n{role}\n")
        for text, counted in _content(message, f"messages[{position}].content"):
            marks.append(text)
            chars += len(text) if counted else 0
        for text in _calls(message):
            marks.append(text)
            chars += len(text)
    return Prompt(chars=chars, token_count=None, chunks=text_chunks(model, pieces + marks), chunk_tokens=None)


def read_prompt(value: object, param: str, model: str) -> Prompt:
    """Completions and embeddings: text, texts, token ids, or lists of token ids."""
    if type(value) is str:
        return _texts([value], param, model)
    if value is None:
        raise invalid_request(f"`{param}` is missing; send a string or a list of strings.", param=param)
    if type(value) is not list:
        raise wrong(param, "a string, a list of strings, or token ids", value)
    if not value:
        raise out_of_range(param, "a non-empty string or list")
    kinds = set(map(type, value))
    if kinds == {int}:
        return _ids([value], param, model)
    if len(value) > MAX_INPUTS:
        raise out_of_range(param, f"at most {MAX_INPUTS} inputs")
    if kinds == {str}:
        return _texts(value, param, model)
    if kinds == {list}:
        return _ids(value, param, model)
    raise wrong(param, "all strings, all token ids, or all lists of token ids", value)


def text_chunks(model: str, pieces: Sequence[str]) -> tuple[int, ...]:
    """Hashes of the first whole chunks of the text; the last, partial one has none."""
    head: list[str] = []
    room = MAX_CHUNKS * CHUNK_CHARS
    for piece in pieces:
        head.append(piece[:room])
        room -= len(head[-1])
        if room == 0:
            break
    text = "".join(head)
    return _chain(model, (text[i : i + CHUNK_CHARS].encode() for i in _whole(len(text), CHUNK_CHARS)))


def _chain(model: str, chunks: Iterable[bytes]) -> tuple[int, ...]:
    """blake2b, not crc32: in an index of millions, 32 bits collide."""
    state = blake2b(model.encode(), digest_size=8)  # a replica may serve two models: they share no KV blocks
    hashes = []
    for chunk in chunks:
        state.update(chunk)
        hashes.append(int.from_bytes(state.copy().digest(), "big"))
    return tuple(hashes)


def _whole(length: int, size: int) -> range:
    return range(0, min(length // size, MAX_CHUNKS) * size, size)


def _texts(texts: list[str], param: str, model: str) -> Prompt:
    if not all(texts):
        raise out_of_range(param, "a non-empty string or a list of non-empty strings")
    chunks = text_chunks(model, texts[:1])
    return Prompt(chars=sum(map(len, texts)), token_count=None, chunks=chunks, chunk_tokens=None, sequences=len(texts))


def _ids(prompts: list[list[Any]], param: str, model: str) -> Prompt:
    for ids in prompts:
        if set(map(type, ids)) != {int}:  # the empty list, too
            raise wrong(param, "non-empty lists of integer token ids", ids)
        if min(ids) < 0 or max(ids) > _MAX_TOKEN_ID:
            raise out_of_range(param, f"made of token ids from 0 to {_MAX_TOKEN_ID}")
    first = array("q", prompts[0][: MAX_CHUNKS * CHUNK_TOKENS])
    chunks = _chain(model, (first[i : i + CHUNK_TOKENS].tobytes() for i in _whole(len(first), CHUNK_TOKENS)))
    total = sum(map(len, prompts))
    return Prompt(chars=0, token_count=total, chunks=chunks, chunk_tokens=CHUNK_TOKENS, sequences=len(prompts))


def _content(message: dict[str, Any], param: str) -> Iterable[tuple[str, bool]]:
    """(text, whether it counts as prompt text): media stand as short marks that differ where the media do."""
    content = message.get("content")
    if content is None:
        return
    if type(content) is str:
        yield content, True
        return
    if type(content) is not list:
        raise wrong(param, "a string, a list of parts, or null", content)
    if len(content) > MAX_PARTS:
        raise out_of_range(param, f"at most {MAX_PARTS} parts")
    for position, part in enumerate(content):
        if type(part) is str:
            yield part, True
        elif type(part) is not dict:
            raise wrong(f"{param}[{position}]", "an object with a `type`", part)
        elif part.get("type") == "text":
            text = part.get("text")
            if type(text) is not str:
                raise wrong(f"{param}[{position}].text", "a string", text)
            yield text, True
        elif type(part.get("type")) is not str:
            raise wrong(f"{param}[{position}].type", "a string, such as `text`", part.get("type"))
        else:
            yield f"\n{part['type']}:{crc32(repr(part).encode()):x}\n", False


def _calls(message: dict[str, Any]) -> Iterable[str]:
    """An assistant's earlier tool calls, leniently: their shape is the engine's to judge."""
    calls = message.get("tool_calls")
    for call in calls if type(calls) is list else ():
        function = call.get("function") if type(call) is dict else None
        if type(function) is dict:
            yield from (text for name in ("name", "arguments") if type(text := function.get(name)) is str)
