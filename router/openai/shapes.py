"""The wire shapes, for the OpenAPI document: what clients may send and will get.

Documentation that a test keeps in step with `router.openai.request`; no request is ever validated with it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**32 - 1)]], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]
Inputs = Texts | TokenIds | Annotated[list[TokenIds], Field(min_length=1, max_length=2048)]
ServiceTierName = Literal["auto", "default", "scale", "flex", "priority", "fast", "ultrafast"]
MaxTokens = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class Open(BaseModel):
    """An object that may carry more than is described here: unknown fields pass through to the engine and back."""

    model_config = ConfigDict(extra="allow")


class StreamOptions(Open):
    """Only with `stream: true`."""

    include_usage: bool | None = Field(
        None, description="send one more chunk, the last before `[DONE]`, with the usage"
    )


class _Call(Open):
    model: str = Field(min_length=1, max_length=256, description="a served name; `GET /v1/models` lists them")
    service_tier: ServiceTierName | None = Field(
        None,
        description="`priority`, `fast` and `ultrafast` go first; `flex` goes last, to the cheapest machines, and is refused with "
        "429 `resource_unavailable` when there is no room; the rest is the default",
    )
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16, description="up to 16 pairs, passed through"
    )
    prompt_cache_key: str | None = Field(None, description="calls with the same key are kept on the same replica")
    safety_identifier: str | None = Field(None, description="who is asking; also keeps a user's calls together")
    user: str | None = Field(None, description="older name of `safety_identifier`")


class _Generation(_Call):
    stream: bool | None = Field(None, strict=True, description="answer as server-sent events")
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=8, strict=True, description="how many choices")
    max_tokens: MaxTokens | None = Field(
        None, description="longest answer, in tokens; also bounds what is reserved for it"
    )
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    priority: int | None = Field(
        None, description="vLLM's own priority; passed on only for trusted clients and engines that order by it"
    )


class Message(Open):
    """One turn of the conversation."""

    role: str = Field(min_length=1, description="`system`, `developer`, `user`, `assistant`, `tool`, ...")
    content: str | list[str | dict[str, Any]] | None = Field(
        None,
        description="text, or parts such as `{type: text, text: ...}` and `{type: image_url, image_url: {url: ...}}`",
    )


class ChatCompletionRequest(_Generation):
    """`POST /v1/chat/completions`. Fields not listed (tools, response_format, top_k, ...) pass through to the engine."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: MaxTokens | None = Field(
        None, description="newer name of `max_tokens`; counts where both are given"
    )
    logprobs: bool | None = Field(None, strict=True)
    top_logprobs: int | None = Field(None, ge=0, le=20, strict=True)
    tools: list[dict[str, Any]] | None = Field(None, max_length=1024)


class CompletionRequest(_Generation):
    """`POST /v1/completions`."""

    prompt: Inputs = Field(
        description="text, texts, token ids, or lists of token ids; each prompt has `n` choices of its own"
    )
    logprobs: int | None = Field(None, ge=0, le=20, strict=True)
    best_of: int | None = Field(None, ge=1, le=8, strict=True)


class EmbeddingRequest(_Call):
    """`POST /v1/embeddings`."""

    input: Inputs = Field(description="text, texts, token ids, or lists of token ids")
    dimensions: int | None = Field(None, ge=1, strict=True)
    encoding_format: str | None = Field(None, description="`float` or `base64`")


class PromptTokensDetails(Open):
    cached_tokens: int | None = Field(None, description="found in the replica's prefix cache")


class CompletionTokensDetails(Open):
    reasoning_tokens: int | None = None


class UsageObject(Open):
    """Tokens as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int | None = None
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class AnswerMessage(Open):
    role: Literal["assistant"]
    content: str | None = Field(None, description="null where the model called tools instead")
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(Open):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason | str


class ChatCompletion(Open):
    """The answer to a chat completion without `stream`."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Unix seconds")
    model: str
    choices: list[ChatChoice]
    usage: UsageObject | None = None
    service_tier: str | None = None


class TextChoice(Open):
    index: int
    text: str
    finish_reason: FinishReason | str


class Completion(Open):
    """The answer to a text completion without `stream`."""

    id: str
    object: Literal["text_completion"]
    created: int = Field(description="Unix seconds")
    model: str
    choices: list[TextChoice]
    usage: UsageObject | None = None


class Embedding(Open):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or base64 of little-endian float32")


class EmbeddingList(Open):
    """The answer to an embeddings request."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: UsageObject | None = None


class ErrorBody(BaseModel):
    """What went wrong and what to change."""

    message: str
    type: str = Field(description="`invalid_request_error`, `rate_limit_error` or `server_error`")
    param: str | None = Field(description="the request field at fault")
    code: str | None = Field(
        description="for programs: `model_not_found`, `context_length_exceeded`, `engine_overloaded`, ..."
    )


class ErrorResponse(BaseModel):
    """Every answer that is not a success; in a stream, the same object as the data of one event."""

    error: ErrorBody


class Model(Open):
    """One served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: str = Field(description="`chat` or `embedding`")
    replicas: int = Field(description="how many replicas are known to serve it")
    max_model_len: int | None = Field(description="longest prompt and answer together, in tokens; null: unknown")
    context_length: int | None = Field(description="the same, under the name other clients read")


class ModelList(Open):
    """All served models."""

    object: Literal["list"]
    data: list[Model]
