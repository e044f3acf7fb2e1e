"""An OpenAI request as the gateway needs it - checked, measured, mapped onto its own terms - and the body that goes upstream.

Checks only what the gateway itself relies on or must bound; every other field is the engine's and passes untouched, unknown ones
above all. Knows no queue and no replica.
"""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from batching.request import ServiceTier
from config.schema import ModelKind
from router.openai import checks
from router.openai.body import Body, parse_object
from router.openai.call_spec import CallSpec
from router.openai.errors import invalid_request
from router.openai.prompt import Prompt, read_messages, read_prompt

MAX_CHOICES: Final = 8  # `n` and `best_of`: each choice is a sequence slot and KV blocks of its own
MAX_STOP: Final = 16
MAX_LOGPROBS: Final = 20  # OpenAI's bound for `top_logprobs`; engines build a sorted list of so many for each token
MAX_MODEL_CHARS: Final = 256
MAX_KEY_CHARS: Final = 256  # of an affinity key: longer ones are no identifier
COMPLETION_TOKENS: Final = (
    16  # `max_tokens` of /v1/completions where the client sends none (OpenAI's and vLLM's default)
)

SERVICE_TIERS: Final[Mapping[str, ServiceTier]] = MappingProxyType(
    {
        "priority": ServiceTier.PRIORITY,
        "fast": ServiceTier.PRIORITY,
        "ultrafast": ServiceTier.PRIORITY,
        "auto": ServiceTier.DEFAULT,
        "default": ServiceTier.DEFAULT,
        "scale": ServiceTier.DEFAULT,
        "flex": ServiceTier.FLEX,
    }
)
_TIER_NAMES: Final = tuple(SERVICE_TIERS)

# They let a stranger read files, run code paths, poison or probe caches of an engine (docs/api.md); stripped unless trusted.
RISKY_FIELDS: Final = frozenset(
    {
        "cache_salt",
        "chat_template",
        "ec_transfer_params",
        "kv_transfer_params",
        "media_io_kwargs",
        "mm_processor_kwargs",
        "vllm_xargs",
    }
)
# Where a request goes is the operator's to say: CVE-2024-6587 was a key sent to the host that a body had named.
_ADDRESS_FIELDS: Final = frozenset(
    {"api_base", "api_host", "api_url", "azure_endpoint", "base_url", "custom_host", "endpoint_url", "host_url"}
)
# The strongest first; None of them: the prefix itself decides.
_AFFINITY: Final = (
    ("body", "prompt_cache_key"),
    ("head", "x-session-id"),
    ("body", "session_id"),
    ("head", "x-openwebui-chat-id"),
    ("head", "x-claude-code-session-id"),
    ("head", "session-id"),
    ("head", "thread-id"),
    ("body", "safety_identifier"),
    ("body", "user"),
)
_PRIORITY: Final = frozenset({"priority"})
_RISKY_OR_PRIORITY: Final = RISKY_FIELDS | _PRIORITY
_NO_FIELDS: Final[frozenset[str]] = frozenset()
_USAGE_ASKED: Final = b'{"include_usage":true}'
# OpenAI's ranges; engines that allow more get their own names for it (`top_k`, `min_p`, ...).
_SAMPLING: Final = (("temperature", 0, 2), ("top_p", 0, 1), ("presence_penalty", -2, 2), ("frequency_penalty", -2, 2))
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def read_chat(body: Body, headers: Mapping[str, str] = _NO_HEADERS) -> CallSpec:
    """`POST /v1/chat/completions`."""
    fields = body.fields
    model = _model(fields)
    prompt = read_messages(body, model)
    _sampling(fields)
    checks.boolean(fields, "logprobs")
    checks.integer(fields, "top_logprobs", 0, MAX_LOGPROBS)
    return _generation(fields, headers, model, prompt, default_tokens=None)


def read_completion(body: Body, headers: Mapping[str, str] = _NO_HEADERS) -> CallSpec:
    """`POST /v1/completions`."""
    fields = body.fields
    model = _model(fields)
    prompt = read_prompt(fields.get("prompt"), "prompt", model)
    _sampling(fields)
    checks.integer(fields, "logprobs", 0, MAX_LOGPROBS)
    checks.integer(fields, "best_of", 1, MAX_CHOICES)
    return _generation(fields, headers, model, prompt, default_tokens=COMPLETION_TOKENS)


def read_embedding(body: Body, headers: Mapping[str, str] = _NO_HEADERS) -> CallSpec:
    """`POST /v1/embeddings`."""
    fields = body.fields
    model = _model(fields)
    prompt = read_prompt(fields.get("input"), "input", model)
    checks.integer(fields, "dimensions", 1)
    checks.string(fields, "encoding_format")
    return _spec(fields, headers, model, prompt, kind=ModelKind.EMBEDDING)


READERS: Final[Mapping[str, Callable[[Body, Mapping[str, str]], CallSpec]]] = MappingProxyType(
    {"/v1/chat/completions": read_chat, "/v1/completions": read_completion, "/v1/embeddings": read_embedding}
)


def read_call(path: str, body: Body, headers: Mapping[str, str] = _NO_HEADERS) -> CallSpec:
    """By the canonical path; `headers` has lower-case names."""
    return READERS[path](body, headers)


def upstream_body(
    body: Body,
    spec: CallSpec,
    *,
    trusted: bool,
    priority_ok: bool,
    asked: tuple[str, ...] = (),
    salt: str | None = None,
) -> bytes:
    """What the engine gets: risky members cut out, usage asked for; everything else byte for byte.

    `priority_ok`: the engine orders by `priority`; others refuse the request for it. `asked`: members that are to be true.
    `salt`: in the place of any `cache_salt` that the client sent.
    """
    set_ = dict.fromkeys(asked, b"true")
    if salt is not None:
        set_["cache_salt"] = json.dumps(salt).encode()
    if spec.collected:
        set_["stream"] = b"true"
    if spec.strip_usage or spec.collected:
        set_["stream_options"] = _USAGE_ASKED
        if body.fields.get("stream_options"):
            options = body.text_of("stream_options").encode()
            set_["stream_options"] = parse_object(options, max_depth=len(options)).edit({"include_usage": b"true"})
    return body.edit(set_, stripped_fields(body, trusted=trusted, priority_ok=priority_ok))


def stripped_fields(body: Body, *, trusted: bool, priority_ok: bool) -> frozenset[str]:
    """The members of this body that its engine must not see."""
    if not trusted:
        return _RISKY_OR_PRIORITY.intersection(body.fields)
    return _NO_FIELDS if priority_ok else _PRIORITY.intersection(body.fields)


def _generation(
    fields: Mapping[str, Any], headers: Mapping[str, str], model: str, prompt: Prompt, *, default_tokens: int | None
) -> CallSpec:
    stream = checks.boolean(fields, "stream") or False
    n = checks.integer(fields, "n", 1, MAX_CHOICES) or 1
    return _spec(
        fields,
        headers,
        model,
        prompt,
        kind=ModelKind.CHAT,
        stream=stream,
        include_usage=_include_usage(fields, stream=stream),
        n=n,
        max_output_tokens=_max_tokens(fields) or default_tokens,
    )


def _spec(
    fields: Mapping[str, Any],
    headers: Mapping[str, str],
    model: str,
    prompt: Prompt,
    *,
    kind: ModelKind,
    stream: bool = False,
    include_usage: bool = False,
    n: int = 1,
    max_output_tokens: int | None = None,
) -> CallSpec:
    if "metadata" in fields:
        checks.metadata(fields)
    asked_tier = checks.one_of(fields, "service_tier", _TIER_NAMES) if "service_tier" in fields else None
    return CallSpec(
        model=model,
        kind=kind,
        stream=stream,
        include_usage=include_usage,
        n=n * prompt.sequences,
        max_output_tokens=max_output_tokens,
        prompt_chars=prompt.chars,
        prompt_token_count=prompt.token_count,
        prefix_chunks=prompt.chunks,
        prefix_chunk_tokens=prompt.chunk_tokens,
        service_tier=SERVICE_TIERS[asked_tier or "default"],
        affinity_key=_affinity_key(fields, headers),
    )


def _model(fields: Mapping[str, Any]) -> str:
    if not _ADDRESS_FIELDS.isdisjoint(fields):
        name = min(_ADDRESS_FIELDS.intersection(fields))
        raise invalid_request(
            f"`{name}` is not accepted: the gateway alone decides where requests go. Remove it.", param=name
        )
    model = checks.string(fields, "model")
    if model is None:
        raise invalid_request("`model` is missing; GET /v1/models lists what is served.", param="model")
    if not model or len(model) > MAX_MODEL_CHARS:
        raise checks.out_of_range("model", f"a name of 1 to {MAX_MODEL_CHARS} characters")
    return model


def _sampling(fields: Mapping[str, Any]) -> None:
    for name, low, high in _SAMPLING:
        if name in fields:
            checks.number(fields, name, low, high)
    if "stop" in fields:
        checks.stop(fields, MAX_STOP)


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    """Both are checked; the newer name counts."""
    newer = checks.integer(fields, "max_completion_tokens", 1)
    older = checks.integer(fields, "max_tokens", 1)
    return older if newer is None else newer


def _include_usage(fields: Mapping[str, Any], *, stream: bool) -> bool:
    options = checks.mapping(fields, "stream_options")
    if options is None:
        return False
    if not stream:
        raise invalid_request(
            "`stream_options` needs `stream: true`; add it or remove the options.", param="stream_options"
        )
    asked = options.get("include_usage")
    if asked is not None and type(asked) is not bool:
        raise checks.wrong("stream_options.include_usage", "true or false", asked)
    return bool(asked)


def _affinity_key(fields: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    """What binds the calls of one conversation together, the strongest sign first; what is no string is no key."""
    for source, name in _AFFINITY:
        told = fields if source == "body" else headers
        if name in told and type(key := told[name]) is str and key:
            return key[:MAX_KEY_CHARS]
    return None
