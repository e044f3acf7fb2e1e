"""The bytes that engine and load generator agree on: one chat request, its JSON answer, its stream of K chunks.

Shaped and sized like vLLM's. A stream received is whole only if it is these bytes.
"""

import json
from typing import Final

MODEL: Final = "fake"
PATH: Final = "/v1/chat/completions"
_PROMPT: Final = "Explain in two sentences why the sky is blue. " * 40  # about 500 tokens, a short chat turn
_ID: Final = "chatcmpl-0123456789abcdef0123456789abcdef"
_CREATED: Final = 1_700_000_000


def request_bytes(*, stream: bool) -> bytes:
    """A whole HTTP request."""
    said = {"model": MODEL, "messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 256, "stream": stream}
    body = _compact(said)
    head = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def answer() -> bytes:
    """The JSON body of an answer that is not streamed."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "Rayleigh. " * 40}, "finish_reason": "stop"}
    return _compact(
        {
            "id": _ID,
            "object": "chat.completion",
            "created": _CREATED,
            "model": MODEL,
            "choices": [choice],
            "usage": _usage(100),
        }
    )


def events(chunks: int, *, usage: bool = False) -> list[bytes]:
    """The SSE events of a stream: `chunks` with content, the last of which ends the choice; then, if asked, usage; then [DONE]."""
    made = [_event([_choice(number, chunks)], None) for number in range(chunks)]
    if usage:
        made.append(_event([], _usage(chunks)))
    return [*made, b"data: [DONE]\n\n"]


def _event(choices: list[object], usage: object) -> bytes:
    chunk = {"id": _ID, "object": "chat.completion.chunk", "created": _CREATED, "model": MODEL, "choices": choices}
    if usage is not None:
        chunk["usage"] = usage
    return b"data: " + _compact(chunk) + b"\n\n"


def _choice(number: int, chunks: int) -> dict[str, object]:
    delta = {"role": "assistant"} if number == 0 else {}
    finish_reason = "stop" if number + 1 == chunks else None
    return {
        "index": 0,
        "delta": {**delta, "content": f" token{number}"},
        "logprobs": None,
        "finish_reason": finish_reason,
    }


def _usage(output_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 500, "completion_tokens": output_tokens, "total_tokens": 500 + output_tokens}


def _compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
