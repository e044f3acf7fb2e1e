"""What the gateway reads from a request, and what it refuses."""

import json
from typing import Any

import pytest

from batching.request import ServiceTier
from config.schema import ModelKind
from router.openai.body import Body, parse_object
from router.openai.call_spec import CallSpec
from router.openai.errors import ApiError
from router.openai.request import read_call, read_chat, read_completion, read_embedding

HELLO = [{"role": "user", "content": "hello"}]


def body(**fields: Any) -> Body:
    return parse_object(json.dumps(fields).encode(), max_depth=64)


def chat(**fields: Any) -> CallSpec:
    return read_chat(body(**{"model": "m", "messages": HELLO, **fields}))


def completion(**fields: Any) -> CallSpec:
    return read_completion(body(**{"model": "m", "prompt": "hello", **fields}))


def embedding(**fields: Any) -> CallSpec:
    return read_embedding(body(**{"model": "m", "input": "hello", **fields}))


def test_the_least_chat_request() -> None:
    """Model and messages are enough; all else has OpenAI's defaults."""
    spec = chat()
    assert (spec.model, spec.kind, spec.stream, spec.n) == ("m", ModelKind.CHAT, False, 1)
    assert (spec.max_output_tokens, spec.prompt_chars, spec.service_tier) == (None, 5, ServiceTier.DEFAULT)
    assert (spec.affinity_key, spec.tenant, spec.prompt_token_count) == (None, None, None)


def test_a_path_selects_its_reader() -> None:
    """The canonical path of each hot endpoint is known."""
    assert read_call("/v1/chat/completions", body(model="m", messages=HELLO), {}).kind is ModelKind.CHAT
    assert read_call("/v1/completions", body(model="m", prompt="x"), {}).kind is ModelKind.CHAT
    assert read_call("/v1/embeddings", body(model="m", input="x"), {}).kind is ModelKind.EMBEDDING


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_tokens": None}, None),
    ],
)
def test_the_newer_token_limit_counts(fields: dict[str, Any], tokens: int | None) -> None:
    """max_completion_tokens before max_tokens; null is absent."""
    assert chat(**fields).max_output_tokens == tokens


def test_completions_without_a_limit_are_short() -> None:
    """OpenAI's and vLLM's default of 16 tokens is what will be generated, so it is what is reserved."""
    assert completion().max_output_tokens == 16


@pytest.mark.parametrize(
    ("name", "tier"),
    [
        ("priority", ServiceTier.PRIORITY),
        ("fast", ServiceTier.PRIORITY),
        ("ultrafast", ServiceTier.PRIORITY),
        ("auto", ServiceTier.DEFAULT),
        ("default", ServiceTier.DEFAULT),
        ("scale", ServiceTier.DEFAULT),
        (None, ServiceTier.DEFAULT),
        ("flex", ServiceTier.FLEX),
    ],
)
def test_service_tiers_map_onto_classes(name: str | None, tier: ServiceTier) -> None:
    """OpenAI's names are the client's only way to say how urgent a call is."""
    assert chat(service_tier=name).service_tier is tier


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"model": ""}, "model"),
    ({"model": "m" * 257}, "model"),
    ({"stream": "true"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"n": True}, "n"),
    ({"n": 1.0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_tokens": "10"}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 5, "max_tokens": False}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stop": {}}, "stop"),
    ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata"),
    ({"metadata": {"k": 1}}, "metadata"),
    ({"metadata": []}, "metadata"),
    ({"service_tier": "gold"}, "service_tier"),
    ({"service_tier": 1}, "service_tier"),
    ({"stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
]
BAD_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": HELLO * 4097}, "messages"),
    ({"messages": ["hello"]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": ""}]}, "messages[0].role"),
    ({"messages": [*HELLO, {"role": 1}]}, "messages[1].role"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": {"text": "x"}}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": ["x"] * 4097}]}, "messages[0].content"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"tools": {}}, "tools"),
    ({"tools": ["x"]}, "tools[0]"),
    ({"tools": [{}] * 1025}, "tools"),
]
BAD_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": value}, "prompt")
    for value in (
        None,
        "",
        [],
        [""],
        {},
        3,
        [1.5],
        [True],
        [-1],
        [2**32],
        [[]],
        [[1], []],
        ["a", 1],
        [["a"]],
        ["a"] * 2049,
    )
] + [({"logprobs": 21}, "logprobs"), ({"logprobs": True}, "logprobs"), ({"best_of": 9}, "best_of")]
BAD_EMBEDDING: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [{}]}, "input"),
    ({"dimensions": 0}, "dimensions"),
    ({"encoding_format": 1}, "encoding_format"),
]


def refused(spec: Any, fields: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        spec(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("read", "fields", "param"),
    [(chat, *case) for case in BAD + BAD_CHAT]
    + [(completion, *case) for case in BAD + BAD_COMPLETION]
    + [(embedding, *case) for case in BAD_EMBEDDING],
)
def test_compat_22_bad_fields_are_named(read: Any, fields: dict[str, Any], param: str) -> None:
    """A wrong type or value is a 400 whose `param` and message name the field."""
    error = refused(read, fields)
    assert (error.status, error.type, error.param) == (400, "invalid_request_error", param)
    assert param.split("[", maxsplit=1)[0] in error.message


def test_a_missing_member_is_named() -> None:
    """Not only null: absent."""
    for read, fields, param in (
        (read_chat, {"messages": HELLO}, "model"),
        (read_chat, {"model": "m"}, "messages"),
        (read_completion, {"model": "m"}, "prompt"),
        (read_embedding, {"model": "m"}, "input"),
    ):
        with pytest.raises(ApiError, match="missing") as caught:
            read(body(**fields))
        assert caught.value.param == param


@pytest.mark.parametrize(
    "field",
    ["api_base", "base_url", "api_url", "api_host", "azure_endpoint", "custom_host", "endpoint_url", "host_url"],
)
def test_a_body_cannot_say_where_it_goes(field: str) -> None:
    """CVE-2024-6587: a body that names a host is refused, on every endpoint, whatever its value."""
    for read in (chat, completion, embedding):
        for value in ("http://169.254.169.254", None):
            assert refused(read, {field: value}).param == field


def test_compat_17_unknown_fields_are_no_error() -> None:
    """Engines have fields of their own; wrong types in them are the engine's to refuse."""
    assert chat(top_k="many", structured_outputs=[], nonsense={"a": None}, response_format=3).model == "m"


def test_null_is_absent_everywhere() -> None:
    """Clients serialise unset options as null."""
    names = [
        "stream",
        "n",
        "max_tokens",
        "temperature",
        "top_p",
        "stop",
        "metadata",
        "service_tier",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "tools",
    ]
    assert chat(**dict.fromkeys(names)) == chat()


def test_choices_are_counted_over_prompts() -> None:
    """Two prompts with n=3 hold six sequences and need six finish reasons."""
    assert completion(prompt=["a", "b"], n=3).n == 6
    assert completion(prompt=[[1, 2], [3]]).n == 2
    assert completion(prompt=[1, 2, 3]).n == 1
    assert embedding(input=["a", "b"]).n == 2


@pytest.mark.parametrize(
    ("fields", "asked", "strip"),
    [
        ({}, False, False),
        ({"stream": True}, False, True),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, False, True),
        ({"stream": True, "stream_options": {"include_usage": None}}, False, True),
    ],
)
def test_compat_10_usage_is_stripped_where_nobody_asked(fields: dict[str, Any], asked: bool, strip: bool) -> None:
    """The usage chunk belongs to the client only where it asked for it."""
    spec = chat(**fields)
    assert (spec.include_usage, spec.strip_usage) == (asked, strip)


def test_affinity_follows_the_strongest_key() -> None:
    """Each candidate counts only where all stronger ones are absent; what is no string is no key."""
    order: list[tuple[str, str]] = [
        ("body", "prompt_cache_key"),
        ("header", "x-session-id"),
        ("body", "session_id"),
        ("header", "x-openwebui-chat-id"),
        ("header", "x-claude-code-session-id"),
        ("header", "session-id"),
        ("header", "thread-id"),
        ("body", "safety_identifier"),
        ("body", "user"),
    ]
    for strongest in range(len(order)):
        left = order[strongest:]
        fields = {name: name for where, name in left if where == "body"}
        headers = {name: name for where, name in left if where == "header"}
        call = body(model="m", messages=HELLO, **fields)
        assert read_chat(call, headers).affinity_key == left[0][1]
    assert read_chat(body(model="m", messages=HELLO, prompt_cache_key=7, user="")).affinity_key is None
