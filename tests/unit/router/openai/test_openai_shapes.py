"""The documented shapes and the checks on the hot path say yes and no to the same requests."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from router.openai.body import parse_object
from router.openai.errors import ApiError
from router.openai.request import SERVICE_TIERS, read_call
from router.openai.shapes import ChatCompletion, ChatCompletionRequest, CompletionRequest, EmbeddingRequest

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SHAPES: dict[str, type[BaseModel]] = {CHAT: ChatCompletionRequest, TEXT: CompletionRequest, EMBED: EmbeddingRequest}
HELLO = [{"role": "user", "content": "hello"}]
LEAST: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": HELLO},
    TEXT: {"model": "m", "prompt": "hello"},
    EMBED: {"model": "m", "input": "hello"},
}
PARTS = [
    {"type": "text", "text": "what is it?"},
    {"type": "image_url", "image_url": {"url": "https://a.example/x.png"}},
]
TOOL_TURN = [
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "tool", "content": "3", "tool_call_id": "1"},
]

GOOD: list[tuple[str, dict[str, Any]]] = [
    *((path, {}) for path in LEAST),
    *((path, {"service_tier": tier}) for path in LEAST for tier in SERVICE_TIERS),
    *((path, {"metadata": {"k": "v"}, "user": "u", "unknown": {"deep": [1]}}) for path in LEAST),
    (CHAT, {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}),
    (
        CHAT,
        {
            "temperature": 0,
            "top_p": 1,
            "n": 8,
            "max_completion_tokens": 1,
            "stop": ["a"] * 16,
            "logprobs": True,
            "top_logprobs": 20,
        },
    ),
    (CHAT, {"messages": [{"role": "user", "content": PARTS}, *TOOL_TURN]}),
    (
        CHAT,
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": "auto",
            "response_format": {"type": "json_object"},
        },
    ),
    (CHAT, {"top_k": 3, "chat_template_kwargs": {"thinking": True}, "priority": -1}),
    (CHAT, {"temperature": None, "n": None, "stop": None, "stream": None, "stream_options": None, "max_tokens": None}),
    *((TEXT, {"prompt": prompt}) for prompt in ("x", ["x", "y"], [1, 2], [[1], [2, 3]])),
    *((EMBED, {"input": value}) for value in ("x", ["x", "y"], [1, 2], [[1], [2, 3]])),
    (TEXT, {"logprobs": 5, "best_of": 2, "echo": True, "suffix": "x", "stop": "y"}),
    (EMBED, {"dimensions": 256, "encoding_format": "base64"}),
]
BAD: list[tuple[str, dict[str, Any]]] = [
    *((path, {"model": value}) for path in LEAST for value in (None, "", 3, "m" * 257)),
    *((path, {"service_tier": value}) for path in LEAST for value in ("gold", 1)),
    *(
        (path, {"metadata": value})
        for path in LEAST
        for value in ([], {"k": 1}, {"k" * 65: "v"}, {str(i): "" for i in range(17)})
    ),
    *(
        (path, fields)
        for path in (CHAT, TEXT)
        for fields in (
            {"stream": "yes"},
            {"stream": 1},
            {"n": 0},
            {"n": 9},
            {"n": 1.0},
            {"n": True},
            {"max_tokens": 0},
            {"max_tokens": "3"},
            {"max_tokens": 2**31},
            {"temperature": 3},
            {"temperature": -1},
            {"top_p": 2},
            {"presence_penalty": 3},
            {"frequency_penalty": -3},
            {"stop": ["a"] * 17},
            {"stop": 3},
            {"stream": True, "stream_options": []},
        )
    ),
    (CHAT, {"messages": None}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": [{"content": "x"}]}),
    (CHAT, {"messages": [{"role": "", "content": "x"}]}),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}),
    (CHAT, {"max_completion_tokens": -1}),
    (CHAT, {"top_logprobs": 21}),
    (CHAT, {"tools": {}}),
    *((TEXT, {"prompt": prompt}) for prompt in (None, "", [], [""], {}, [[]], [-1])),
    *((EMBED, {"input": value}) for value in (None, "", [], [""], {}, [[]], [-1])),
    (TEXT, {"logprobs": 21}),
    (TEXT, {"best_of": 9}),
    (EMBED, {"dimensions": 0}),
]


@pytest.mark.parametrize(("path", "fields"), GOOD)
def test_golden_requests_are_accepted_by_both(path: str, fields: dict[str, Any]) -> None:
    """What the OpenAPI document allows, the gateway takes."""
    request = {**LEAST[path], **fields}
    SHAPES[path].model_validate(request)
    assert read_call(path, parse_object(json.dumps(request).encode(), max_depth=64), {}).model == "m"


@pytest.mark.parametrize(("path", "fields"), BAD)
def test_bad_requests_are_refused_by_both(path: str, fields: dict[str, Any]) -> None:
    """What the gateway refuses, the OpenAPI document does not promise."""
    request = {**LEAST[path], **fields}
    with pytest.raises(ValidationError):
        SHAPES[path].model_validate(request)
    with pytest.raises(ApiError):
        read_call(path, parse_object(json.dumps(request).encode(), max_depth=64), {})


def test_every_documented_field_has_a_schema() -> None:
    """The shapes can be printed as JSON Schema, which is their whole purpose."""
    for path, shape in SHAPES.items():
        schema = shape.model_json_schema()
        assert set(LEAST[path]) == set(schema["required"])
        assert schema["additionalProperties"] is True


def test_an_answer_of_vllm_fits_the_documented_shape() -> None:
    """Engines' extras are allowed; what OpenAI requires is there."""
    answer = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "service_tier": None, "prompt_logprobs": None,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x", "reasoning": None}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "prompt_tokens_details": None},
    }  # fmt: skip
    assert ChatCompletion.model_validate(answer).choices[0].message.content == "x"
