"""Calls on an embedded simulated backend under virtual time, as tests make them."""

import json
from collections.abc import Mapping
from typing import Any

from backends.backend import EngineCall, EngineReply
from backends.simulated.backend import SimulatedBackend
from backends.simulated.options import EngineOptions
from config.schema import ModelKind
from tests.support.virtual_time import run_virtual

OPTIONS = EngineOptions(kv_blocks=256, max_model_len=1024)
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MODELS = {"sim-8b": ModelKind.CHAT, "sim-embed": ModelKind.EMBEDDING}
HELLO = [{"role": "user", "content": "Hello"}]


def backend(options: EngineOptions = OPTIONS) -> SimulatedBackend:
    return SimulatedBackend(options, MODELS, wall_clock=lambda: 1_795_474_295.9)


def call(path: str, fields: Mapping[str, object], request_id: str = "r1") -> EngineCall:
    return EngineCall(
        request_id=request_id,
        path=path,
        body=json.dumps(fields).encode(),
        stream=bool(fields.get("stream")),
    )


async def read(reply: EngineReply) -> bytes:
    return b"".join([piece async for piece in reply.body()])


def ask(path: str, fields: Mapping[str, object]) -> tuple[int, bytes]:
    """One call on a fresh backend, to its end."""

    async def main() -> tuple[int, bytes]:
        subject = backend()
        reply = await subject.send(call(path, fields))
        body = await read(reply)
        await reply.aclose()
        await subject.aclose()
        return reply.status, body

    return run_virtual(main())


def events(body: bytes) -> list[dict[str, Any]]:
    parts = body.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def answer(path: str, fields: Mapping[str, object]) -> dict[str, Any]:
    status, body = ask(path, fields)
    assert status == 200, body
    document: dict[str, Any] = json.loads(body)
    return document


def error(path: str, fields: Mapping[str, object]) -> dict[str, Any]:
    status, body = ask(path, fields)
    found: dict[str, Any] = json.loads(body)["error"]
    assert found["code"] == status >= 400
    return found
