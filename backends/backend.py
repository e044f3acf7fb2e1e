"""The seam between the gateway and an engine: one call out, OpenAI-shaped bytes back, closing cancels.

Every backend (vLLM over HTTP, Triton over gRPC, simulated) passes `tests/conformance/test_backend_contract.py`.
"""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol


def _may_go() -> None:
    """Nothing is in the way."""


@dataclass(frozen=True, kw_only=True)  # no slots: `fields` is kept where it is first asked for
class EngineCall:
    """One request as it goes to an engine.

    `body` is the OpenAI JSON body, edited already (usage asked for, risky fields cut). `path` is `/v1/chat/completions`,
    `/v1/completions` or `/v1/embeddings`. `may_go` is called right before the first byte goes, after any wait for a connection (gRPC: before its channel has it, embeddings before their batch): what it raises comes out of `send`,
    and the engine sees nothing.
    """

    request_id: str
    path: str
    body: bytes
    stream: bool
    headers: Mapping[str, str] = field(default_factory=dict)  # already cleaned; W3C trace context and the like
    may_go: Callable[[], None] = _may_go

    @cached_property
    def fields(self) -> Mapping[str, Any]:
        """`body`, parsed, for backends that must re-shape it: they see no more than an engine that takes it as it is."""
        fields: dict[str, Any] = json.loads(self.body)
        return fields


class Sink(Protocol):
    """Where an answer's bytes go as they come."""

    @property
    def full(self) -> bool:
        """It has more than it should keep: nothing is fed until it has called back."""

    @property
    def closed(self) -> bool:
        """It has all it needs."""

    def feed(self, data: bytes, now: float) -> bool:
        """Whether it takes more at once; else it is `full` or `closed`. `now`: seconds, on the loop's clock.

        What this raises ends the pouring and comes out of `pour`.
        """

    def feed_frames(self, data: bytes, now: float) -> int:
        """So many bytes of `data`, which are still framed as HTTP/1.1's chunks, are taken as they are: whole chunks; 0: `feed` the bodies.

        It may be `full` after that.
        """

    def when_room(self, resume: Callable[[], None]) -> None:
        """Called once, as soon as `full` is false again."""


class EngineReply(Protocol):
    """An engine's answer: a status, and a body of OpenAI-shaped bytes.

    For a stream, `body()` yields SSE bytes cut anywhere (the relay finds the events) and ends when the engine ends; for the rest it
    yields one JSON document in any number of pieces. `pour` does the same without a reader between: it returns when the body has
    ended or the sink is closed, and whether nothing is left; `body()` gives the rest. Errors of the engine arrive as a status >= 400 with an OpenAI error object, or,
    once the stream runs, as an in-stream `data: {"error": ...}` event; a broken connection raises `StreamCut`.
    `aclose` may be called at any time, more than once, from `finally`; it stops the engine's work.
    """

    status: int
    content_type: str

    @property
    def headers(self) -> Mapping[str, str]:
        """Lower-case names; retry-after and the like."""
        ...

    def body(self) -> AsyncIterator[bytes]: ...

    async def pour(self, sink: Sink) -> bool: ...

    async def aclose(self) -> None: ...


class PulledReply(ABC):
    """A reply whose body is read piece by piece: pouring is reading, and writing, in turn."""

    @abstractmethod
    def body(self) -> AsyncIterator[bytes]: ...

    async def pour(self, sink: Sink) -> bool:
        now = asyncio.get_running_loop().time
        async for data in self.body():
            if sink.feed(data, now()):
                continue
            if sink.closed:
                return False
            if sink.full:
                room = asyncio.Event()
                sink.when_room(room.set)
                await room.wait()
        return True


class Backend(Protocol):
    """One replica's engine.

    `send` raises an `UpstreamError` where no answer came; cancelling the task that awaits it cancels the work upstream.
    """

    async def send(self, call: EngineCall) -> EngineReply: ...

    async def probe(self) -> "ProbeResult": ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model (or LoRA adapter) that an engine says it serves."""

    name: str
    kind: str = "chat"  # config.schema.ModelKind's values
    max_model_len: int | None = None
    parent: str | None = None  # a LoRA adapter's base


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What one look at an engine found. None and empty: it did not say."""

    ready: bool
    detail: str = ""  # why not ready, for people; no addresses
    asleep: bool = False
    models: tuple[ServedModel, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)  # names of `backends.engine_metrics.Figure`
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_blocks: int | None = None
    block_size: int | None = None


class UpstreamError(Exception):
    """No answer, or no more of it, from an engine. `outcome` is a metric label.

    UpstreamError
    +-- ConnectFailed    refused, unreachable, TLS: nothing was sent
    +-- FirstByteTimeout accepted and never answered
    +-- ClosedEarly      closed before the first byte of an answer
    +-- StreamCut        broke off, stalled or became unreadable after the first byte
    """

    outcome = "error"


class ConnectFailed(UpstreamError):
    """`late`: it took too long."""

    outcome = "connect_error"

    def __init__(self, reason: str = "", *, late: bool = False) -> None:
        super().__init__(reason)
        self.late = late


class FirstByteTimeout(UpstreamError):
    outcome = "timeout"


class ClosedEarly(UpstreamError):
    outcome = "closed"


class StreamCut(UpstreamError):
    outcome = "stream_cut"
