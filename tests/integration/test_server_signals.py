"""The gateway's process: SIGTERM drains, a second one does not wait, a deadline is said aloud, an address in use is explained."""

import json
import signal
import socket
from pathlib import Path

import pytest

from backends.simulated.bodies import chat_text
from backends.simulated.tokens import expected_text
from tests.support.asgi import chat
from tests.support.gateway_process import serving, started
from tests.support.raw_http import RawClient, ask, connected, get, post

CHAT = "/v1/chat/completions"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """One simulated replica at a usual pace: some 10 ms a token."""
    return write(tmp_path, drain_timeout_s=60)


def write(folder: Path, **server: object) -> Path:
    path = folder / "penstock.yaml"
    replicas = [{"name": "sim", "backend": "simulated", "models": ["m"], "gpu": {"type": "A100-80G"}}]
    path.write_text(json.dumps({"server": server, "replicas": replicas}))
    return path


def story(tokens: int) -> bytes:
    return post(CHAT, chat("Hello", stream=True, max_tokens=tokens, ignore_eos=True))


def told(events: list[dict[str, list[dict[str, dict[str, str]]]]]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


async def begun(client: RawClient, *requests: bytes) -> bytes:
    """Sends, and returns the first bytes of the first answer's body."""
    await client.send(*requests)
    await client.head()
    return await client.chunk()


async def test_sigterm_lets_streams_finish(config: Path) -> None:
    """After SIGTERM: streams end whole, whoever comes is told 503 and when to come back, and the exit code is 0."""
    async with serving(config) as gateway, connected(gateway.url) as streaming, connected(gateway.url) as asking:
        first = await begun(streaming, story(600))
        # Behind a stream, so that its connection is kept: idle ones are closed.
        other = await begun(asking, story(200), get("/readyz"))
        gateway.signal(signal.SIGTERM)
        await gateway.until_log("draining: 2 requests in flight")
        other += await asking.rest_of_chunks()
        ready = await asking.answer()
        assert ready.status == 503
        assert ready.json()["problems"][0].startswith("draining")
        assert (await ask(gateway.url, get("/readyz"))).status == 503
        refused = await ask(gateway.url, story(5))
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
        body = first + await streaming.rest_of_chunks()
        assert body.endswith(b"data: [DONE]\n\n")
        events = [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: {")]
        assert told(events) == expected_text(chat_text([{"role": "user", "content": "Hello"}]), 600)
        assert await streaming.until_closed() == b""
        assert await gateway.exit_code() == 0
    assert "Traceback" not in gateway.log
    assert "ERROR" not in gateway.log


async def test_second_sigterm_does_not_wait(config: Path) -> None:
    """Whoever asks twice means it: streams are cut, with an error event, and the process ends, without a traceback."""
    async with serving(config) as gateway, connected(gateway.url) as client:
        await begun(client, story(20_000))
        gateway.signal(signal.SIGTERM)
        await gateway.until_log("draining: 1 requests in flight")
        gateway.signal(signal.SIGTERM)
        said = await client.rest_of_chunks()
        assert b'"code":"draining"' in said
        assert b"[DONE]" not in said
        assert await gateway.exit_code() == 0
    assert "Traceback" not in gateway.log


async def test_drain_deadline_is_said_aloud(tmp_path: Path) -> None:
    """A stream that outlives `drain_timeout_s` ends with an error event, a document with a 503: no bare close."""
    async with (
        serving(write(tmp_path, drain_timeout_s=0.3)) as gateway,
        connected(gateway.url) as streaming,
        connected(gateway.url) as waiting,
    ):
        first = await begun(streaming, story(20_000))
        await waiting.send(post(CHAT, chat("Hello", max_tokens=20_000, ignore_eos=True)))
        # Served in their order: once this is answered, the request before it has been read.
        assert (await ask(gateway.url, get("/livez"))).status == 200
        gateway.signal(signal.SIGTERM)
        body = first + await streaming.rest_of_chunks()
        last = json.loads(body.decode().rstrip("\n").rsplit("\n", 1)[1].removeprefix("data: "))
        assert last["error"]["code"] == "draining"
        assert b"[DONE]" not in body
        answer = await waiting.answer()
        assert (answer.status, answer.error["code"]) == (503, "draining")
        assert int(answer.headers["retry-after"]) >= 1
        assert await gateway.exit_code() == 0
    assert "Traceback" not in gateway.log


async def test_port_in_use(config: Path) -> None:
    """An address in use ends the process with 1 and a sentence that names the address and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with started("--config", str(config), "--port", str(port)) as gateway:
            assert await gateway.exit_code() == 1
            await gateway.until_log("choose another port with --port")
    assert f"127.0.0.1:{port} is in use" in gateway.log
    assert "Traceback" not in gateway.log
