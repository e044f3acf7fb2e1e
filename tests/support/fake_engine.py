"""A backend played from a script: each send takes the next behaviour. A small real implementation of the protocol, not a mock."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backends.backend import EngineCall, ProbeResult, PulledReply, ServedModel


def sse(payload: object) -> bytes:
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"


def chunk(
    content: str | None = None, *, finish: str | None = None, role: str | None = None, index: int = 0, **extra: Any
) -> bytes:
    """One chat chunk as vLLM writes it."""
    delta = {**({"role": role} if role else {}), **({"content": content} if content is not None else {})}
    return sse(
        {
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}], **extra,
        }
    )  # fmt: skip


def usage_chunk(prompt: int, completion: int, cached: int = 0) -> bytes:
    usage = {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip
    return sse(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [],
            "usage": usage,
        }
    )


DONE = b"data: [DONE]\n\n"


def whole_stream(tokens: int = 3, prompt: int = 5) -> list[bytes]:
    """Role, `tokens` words, finish, usage, [DONE]."""
    words = [chunk(f"w{i} ", finish="stop" if i == tokens - 1 else None) for i in range(tokens)]
    return [chunk("", role="assistant"), *words, usage_chunk(prompt, tokens), DONE]


def document(text: str = "hello", prompt: int = 5, completion: int = 2) -> bytes:
    """A non-streaming chat answer."""
    return json.dumps(
        {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        }
    ).encode()  # fmt: skip


@dataclass
class Script:
    """One answer: pieces go out `gap_s` apart; `fail` ends them; `hang` never does; `error` is raised instead of an answer."""

    pieces: list[bytes] = field(default_factory=list)
    status: int = 200
    content_type: str = "text/event-stream; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    gap_s: float = 0.0
    head_s: float = 0.0
    fail: Exception | None = None
    hang: bool = False
    error: Exception | None = None


class FakeReply(PulledReply):
    def __init__(self, script: Script, engine: "FakeEngine") -> None:
        self.status = script.status
        self.content_type = script.content_type
        self.headers = script.headers
        self._script = script
        self._engine = engine
        self._closed = False

    async def body(self) -> AsyncIterator[bytes]:
        for piece in self._script.pieces:
            if self._script.gap_s:
                await asyncio.sleep(self._script.gap_s)
            yield piece
        self._script.pieces = []
        if self._script.hang:
            await asyncio.get_running_loop().create_future()
        if self._script.fail is not None:
            raise self._script.fail

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._engine.running -= 1
            self._engine.closed += 1


class FakeEngine:
    """Plays `scripts` in turn, then `default()` for ever; keeps what it was sent."""

    def __init__(
        self,
        *scripts: Script,
        default: Callable[[], Script] | None = None,
        models: tuple[ServedModel, ...] = (ServedModel(name="m"),),
        **probe: Any,
    ) -> None:
        self.scripts = list(scripts)
        self.default = default or (lambda: Script(whole_stream()))
        self.calls: list[EngineCall] = []
        self.running = 0
        self.max_running = 0
        self.closed = 0
        self.found = ProbeResult(ready=True, models=models, **probe)

    async def send(self, call: EngineCall) -> FakeReply:
        self.calls.append(call)
        script = self.scripts.pop(0) if self.scripts else self.default()
        call.may_go()
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        try:
            if script.head_s:
                await asyncio.sleep(script.head_s)
            if script.error is not None:
                raise script.error  # noqa: TRY301
        except BaseException:
            self.running -= 1
            self.closed += 1
            raise
        return FakeReply(script, self)

    async def probe(self) -> ProbeResult:
        return self.found

    async def aclose(self) -> None:
        pass
