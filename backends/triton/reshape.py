"""A generation's responses as OpenAI's documents: chunks of a stream, or one answer. Pure.

Decides what goes into which event; reading responses and sending bytes is `backends.triton.generation`.
"""

import codecs
import math
from dataclasses import dataclass

import msgspec

from backends.triton.inference import Outputs
from backends.triton.tensors import FINISH_REASON, INPUT_TOKENS, OUTPUT_TOKENS

_BYTES_PER_TOKEN = (
    4  # the rule of thumb for English under BPE; for CJK 3-byte characters it is near one token a character
)
_FINISH_REASONS = ("stop", "length", "content_filter", "tool_calls")
CHAT_PATH = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"


def estimated_tokens(text: str) -> int:
    """Tokens of a text where the engine does not count them."""
    return math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request, as the engine counted them or else as estimated."""

    prompt_tokens: int
    completion_tokens: int

    def document(self) -> dict[str, int]:
        """OpenAI's `usage` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Transcript:
    """Reads the responses of one generation: its text, cut into whole characters, its tokens and how it finished."""

    def __init__(self, *, text_output: str, prompt: str, max_tokens: int, streamed: bool) -> None:
        self._text_output = text_output
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._streamed = streamed
        # A model may cut a character's bytes across responses; what is not whole yet is held back.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._told_finish: str | None = None
        self._told_prompt_tokens: int | None = None
        self._told_tokens: int | None = None
        self._pieces = 0
        self._text_tokens = 0

    def take(self, outputs: Outputs) -> str:
        """The text that a response adds."""
        raw = next(iter(outputs.get(self._text_output, ())), b"")
        text = self._decoder.decode(raw if isinstance(raw, bytes) else str(raw).encode())
        self._pieces += bool(raw)
        self._text_tokens += estimated_tokens(text)
        # Of the new tokens, as the vLLM backend counts them.
        for count in list(outputs.get(OUTPUT_TOKENS, ()))[:1]:
            self._told_tokens = (self._told_tokens or 0) + int(count)
        for count in list(outputs.get(INPUT_TOKENS, ()))[:1]:
            self._told_prompt_tokens = int(count)
        for reason in list(outputs.get(FINISH_REASON, ()))[:1]:
            told = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
            if told in _FINISH_REASONS:  # the vLLM backend says "None" until it knows
                self._told_finish = told
        return text

    def rest(self) -> str:
        """What was held back of a character that never became whole."""
        return self._decoder.decode(b"", final=True)

    @property
    def finish_reason(self) -> str:
        """As told; else `length` where the tokens were used up."""
        return self._told_finish or ("length" if self.usage.completion_tokens >= self._max_tokens else "stop")

    @property
    def usage(self) -> Usage:
        """As told; else estimated: a streamed response is taken for a token, a whole answer by its length."""
        estimate = self._pieces if self._streamed else self._text_tokens
        return Usage(
            prompt_tokens=estimated_tokens(self._prompt)
            if self._told_prompt_tokens is None
            else self._told_prompt_tokens,
            completion_tokens=estimate if self._told_tokens is None else self._told_tokens,
        )


class Reshaper:
    """Writes one request's documents; `id`, `created` and `model` are the same in all of them."""

    def __init__(self, *, path: str, request_id: str, created_s: int, model: str, include_usage: bool) -> None:
        self._chat = path == CHAT_PATH
        self._include_usage = include_usage
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{request_id}"
        self._created_s = created_s
        self._model = model

    def opening(self) -> bytes:
        """What goes before the first text: a chat's role."""
        return self._event({"role": "assistant", "content": ""}, None) if self._chat else b""

    def text(self, text: str) -> bytes:
        """One chunk; nothing for no text."""
        if not text:
            return b""
        return self._event({"content": text} if self._chat else text, None)

    def closing(self, finish_reason: str, usage: Usage) -> bytes:
        """The finish reason, the usage where it was asked for, and the end."""
        events = self._event({} if self._chat else "", finish_reason)
        if self._include_usage:
            events += _sse(self._document([], streamed=True) | {"usage": usage.document()})
        return events + DONE

    def whole(self, text: str, finish_reason: str, usage: Usage) -> bytes:
        """The answer of a request that does not stream."""
        body: dict[str, object] = (
            {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}
        )
        choice = {"index": 0, **body, "logprobs": None, "finish_reason": finish_reason}
        return msgspec.json.encode(self._document([choice], streamed=False) | {"usage": usage.document()})

    def _event(self, content: object, finish_reason: str | None) -> bytes:
        choice = {
            "index": 0,
            "delta" if self._chat else "text": content,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        document = self._document([choice], streamed=True)
        return _sse(document | {"usage": None} if self._include_usage else document)

    def _document(self, choices: list[dict[str, object]], *, streamed: bool) -> dict[str, object]:
        chat_kind = "chat.completion.chunk" if streamed else "chat.completion"
        return {
            "id": self._id,
            "object": chat_kind if self._chat else "text_completion",
            "created": self._created_s,
            "model": self._model,
            "choices": choices,
        }


def _sse(document: dict[str, object]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
