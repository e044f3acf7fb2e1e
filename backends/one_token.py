"""Asks an engine for one token of each of its models: the least that only a working engine can give.

A health page is answered by a process beside the engine; a token is not. An engine that refuses the question is believed: nothing
better can be asked of it.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Final

from backends.backend import Backend, EngineCall, ServedModel, UpstreamError
from config.schema import ModelKind

_MOST_MODELS: Final = 4  # asked at once, of a server with many: one is enough to find a whole machine frozen
_MOST_BYTES: Final = 4 * 2**20  # an embedding of some thousand numbers has 100 kB
_BUSY = frozenset({408, 425, 429})  # says nothing about whether it works
_FIRST: Final = -1_000_000  # vLLM's priority; lower goes first, and nobody's is lower


async def ask_one_token(
    backend: Backend, models: Sequence[ServedModel], *, timeout_s: float, first: bool = False
) -> str | None:
    """None: every model gave one. Else why not, for people; no addresses. `first`: the engine orders by `priority`.

    Over after `timeout_s`. Raises what a backend raises that keeps to no contract, as an ExceptionGroup.
    """
    asked = [model for model in models if model.parent is None][:_MOST_MODELS]
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(_ask(backend, model, first=first)) for model in asked]
    except TimeoutError:
        return f"no token within {timeout_s:.3g} s"
    return next((why for answer in answers if (why := answer.result()) is not None), None)


async def _ask(backend: Backend, model: ServedModel, *, first: bool) -> str | None:
    for path, question in _questions(model):
        fields = {"model": model.name, **question, **({"priority": _FIRST} if first else {})}
        try:
            status = await _status(backend, path, fields)
        except UpstreamError as error:
            return f"model {model.name} gave no token: {error.outcome}"
        if status < 400:
            return None
        if status >= 500 or status in _BUSY:
            return f"model {model.name} answered {status} to a request for one token"
    return None  # refused in every form


def _questions(model: ServedModel) -> tuple[tuple[str, dict[str, object]], ...]:
    if model.kind == ModelKind.EMBEDDING:
        return (("/v1/embeddings", {"input": "1"}),)
    bound: dict[str, object] = {"max_tokens": 1, "temperature": 0.0}
    return (
        ("/v1/completions", {"prompt": "1", **bound}),  # needs no chat template
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "1"}], **bound}),
    )


async def _status(backend: Backend, path: str, fields: dict[str, object]) -> int:
    """Of a whole answer."""
    call = EngineCall(request_id="penstock-one-token", path=path, body=json.dumps(fields).encode(), stream=False)
    reply = await backend.send(call)
    try:
        size = 0
        async for data in reply.body():
            size += len(data)
            if size > _MOST_BYTES:
                break
    finally:
        await reply.aclose()
    return reply.status
