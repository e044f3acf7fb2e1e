"""Both ways from a client's connection to the handler - its own connection, or ASGI - say the same, byte for byte."""

import re
from typing import Any

import pytest

from config.schema import DataPlane
from tests.support.asgi import chat
from tests.support.fake_engine import FakeEngine, Script, chunk, document, whole_stream
from tests.support.gateways import fake_config, listening
from tests.support.raw_http import Answer, connected, post

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
JSON = "application/json"
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}

# (what the client sends, how the engine answers); the engine's default is a whole stream.
CASES: dict[str, tuple[bytes, list[Script]]] = {
    "stream": (post(CHAT, chat(stream=True)), []),
    "stream with usage": (post(CHAT, chat(stream=True, stream_options={"include_usage": True})), []),
    "document": (post(CHAT, chat()), [Script([document()], content_type=JSON)]),
    "document in pieces": (post(CHAT, chat()), [Script([document()[:9], document()[9:]], content_type=JSON)]),
    "no model": (post(CHAT, {"messages": []}), []),
    "unknown model": (post(CHAT, chat(model="nobody")), []),
    "no JSON": (post(CHAT, b"{"), []),
    "empty body": (post(CHAT, b""), []),
    "engine refuses": (post(CHAT, chat()), [Script([b'{"error":{"message":"no"}}'], status=400, content_type=JSON)]),
    "stream without an end": (post(CHAT, chat(stream=True)), [Script([chunk("x")])]),
    "stream that breaks": (post(CHAT, chat(stream=True)), [Script([chunk("x")], fail=ConnectionError("gone"))]),
    "error inside a stream": (post(CHAT, chat(stream=True)), [Script([chunk("x"), b'data: {"error": "no"}\n\n'])]),
    "own request id": (post(CHAT, chat(stream=True), "x-request-id: mine"), []),
    "closing client": (post(CHAT, chat(stream=True), "connection: close"), []),
    "embedding without input": (post(EMBEDDINGS, {"model": "m"}), []),
    "completion": (post(COMPLETIONS, {"model": "m", "prompt": "a"}), [Script([document()], content_type=JSON)]),
}  # fmt: skip


async def said(plane: DataPlane, request: bytes, scripts: list[Script]) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; what differs between any two requests is made alike."""
    engine = FakeEngine(*scripts, default=lambda: Script(whole_stream()))
    config = fake_config({"a": engine}, server={"data_plane": plane}, upstream={"attempts": 1})
    async with listening(config, {"a": engine}) as gateway, connected(gateway.url) as client:
        answer: Answer = await client.ask(request)
    own: dict[str, Any] = {"date": "", "x-penstock-ttft-ms": "", "openai-processing-ms": "", "x-penstock-queue-ms": ""}
    headers = {name: own.get(name, value) for name, value in answer.headers.items()}
    made = re.compile(rb"req-[0-9a-f]{24}")
    if made.fullmatch(headers["x-request-id"].encode()):
        headers["x-request-id"] = "made"
    return answer.status, headers, made.sub(b"made", answer.body)


@pytest.mark.parametrize("case", CASES)
async def test_both_planes_say_the_same(case: str) -> None:
    """Status, header names and values, and every byte of the body."""
    request, scripts = CASES[case]
    first, second = [await said(plane, request, [*map(copied, scripts)]) for plane in DataPlane]
    assert first == second
    assert first[0] != 500


def copied(script: Script) -> Script:
    """A script is used up by its answer."""
    return Script(list(script.pieces), script.status, script.content_type, fail=script.fail)


async def test_requests_behind_one_another_are_answered_in_order() -> None:
    """Pipelined: the first goes over its connection, those behind it over ASGI, and none overtakes."""
    engine = FakeEngine(default=lambda: Script([document()], content_type=JSON))
    async with listening(fake_config({"a": engine}), {"a": engine}) as gateway, connected(gateway.url) as client:
        await client.send(b"".join(post(CHAT, chat(), f"x-request-id: {n}") for n in range(5)))
        answers = [await client.answer() for _ in range(5)]
    assert [answer.headers["x-request-id"] for answer in answers] == list("01234")
    assert {answer.status for answer in answers} == {200}
