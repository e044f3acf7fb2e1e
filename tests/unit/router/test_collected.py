"""The document that a stream tells."""

import json
from typing import Any

from router.collected import assemble

HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def stream(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def choice(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **more}]}


def test_texts_add_up_and_an_empty_delta_says_nothing() -> None:
    """Reasoning is a text of its own; the last chunk may only have the reason."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    found = assemble(
        stream(
            {**choice({"role": "assistant", "content": ""}), "prompt_text": None},
            choice({"reasoning": "h"}),
            choice({"reasoning": "m"}),
            choice({"content": "Yes"}),
            choice({"content": ". "}),
            choice({}, finish_reason="stop", stop_reason=None),
            {**HEAD, "choices": [], "usage": usage},
        )
    )
    assert found == {
        **HEAD,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Yes. ", "reasoning": "hm"},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": usage,
    }


def test_what_an_engine_leaves_out_is_left_out() -> None:
    """No object, no usage, comments between: still a document."""
    raw = b": keep-alive\n\n" + stream({"id": "c", "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]})
    assert assemble(raw) == {"id": "c", "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}], "usage": None}
