"""Bodies that are wrong, over a real socket: each refused with an OpenAI error, nothing queued, no engine asked."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from backends.backend import ProbeResult
from backends.simulated.bodies import chat_text
from backends.simulated.tokens import expected_text
from config.schema import Config, DataPlane
from tests.support.asgi import chat
from tests.support.conditions import at_rest, until, until_at_rest
from tests.support.fake_engine import FakeEngine
from tests.support.gateways import Running, fake_config, listening
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import ask, connected, get, head, post

CHAT = "/v1/chat/completions"
MAX_BODY_BYTES = 4 * 2**20


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(params=list(DataPlane))
async def gateway(engine: FakeEngine, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    server = {"max_body_bytes": MAX_BODY_BYTES, "body_timeout_s": PATIENCE_S, "data_plane": request.param}
    config = fake_config({"a": engine}, server=server)
    async with listening(config, {"a": engine}) as running:
        yield running


@pytest.fixture(params=list(DataPlane))
async def hasty(engine: FakeEngine, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """One that does not wait for bodies."""
    config = fake_config({"a": engine}, server={"body_timeout_s": 0.3, "data_plane": request.param})
    async with listening(config, {"a": engine}) as running:
        yield running


async def refused(gateway: Running, engine: FakeEngine, body: object, *, status: int = 400) -> dict[str, Any]:
    """The error; and the engine was left alone, and the next request on the connection is served."""
    async with connected(gateway.url) as client:
        answer = await client.ask(post(CHAT, body))
        assert answer.status == status
        assert engine.calls == []
        assert at_rest(gateway)
        assert (await client.ask(get("/livez"))).status == 200
    return answer.error


async def test_invalid_json(gateway: Running, engine: FakeEngine) -> None:
    """A truncated body is a 400 that says where it breaks off."""
    error = await refused(gateway, engine, b'{"model": "m", "messages": [')
    assert error["type"] == "invalid_request_error"
    assert "line 1, column" in error["message"]


async def test_not_a_number(gateway: Running, engine: FakeEngine) -> None:
    """Python's JSON reads NaN and infinities, engines do not: refused by name."""
    for word in (b"NaN", b"Infinity", b"-Infinity"):
        error = await refused(gateway, engine, b'{"model": "m", "messages": [], "temperature": ' + word + b"}")
        assert word.decode() in error["message"]


async def test_duplicate_keys(gateway: Running, engine: FakeEngine) -> None:
    """A key said twice, escaped or not, could be read one way here and another in the engine."""
    for key in (b"model", b"mod\\u0065l"):
        error = await refused(gateway, engine, b'{"model": "m", "' + key + b'": "other", "messages": []}')
        assert error["param"] == "model"


async def test_depth_bomb(gateway: Running, engine: FakeEngine) -> None:
    """A million brackets neither crash nor stall the parser."""
    for bomb in (
        b"[" * 10**6,
        b'{"messages":' + b"[" * 10**6,
        b'{"a":' * 200_000,
        b'{"messages":' + b"[" * 65 + b"]" * 65 + b"}",
    ):
        assert (await refused(gateway, engine, bomb))["type"] == "invalid_request_error"


async def test_wrong_types(gateway: Running, engine: FakeEngine) -> None:
    """A field of a wrong type is refused by its name, never coerced."""
    wrong: list[tuple[object, str | None]] = [
        ([], None),
        ("text", None),
        ({"messages": []}, "model"),
        ({**chat(), "model": 7}, "model"),
        ({"model": "m", "messages": "Hello"}, "messages"),
        ({"model": "m", "messages": [7]}, "messages[0]"),
        (chat(stream="yes"), "stream"),
        (chat(stream=1), "stream"),
        (chat(max_tokens="10"), "max_tokens"),
        (chat(max_tokens=1.5), "max_tokens"),
        (chat(n=0), "n"),
        (chat(n=10**6), "n"),
        (chat(temperature="hot"), "temperature"),
        (chat(stop=[7]), "stop"),
    ]
    for body, param in wrong:
        assert (await refused(gateway, engine, body))["param"] == param


async def test_body_not_utf8(gateway: Running, engine: FakeEngine) -> None:
    """Latin-1 is refused, and the byte named."""
    error = await refused(gateway, engine, b'{"model": "m\xe9"}')
    assert "UTF-8 at byte 12" in error["message"]


async def test_absurd_max_tokens(gateway: Running, engine: FakeEngine) -> None:
    """No answer can have zero, a negative number of or 2^70 tokens."""
    for value in (0, -1, 2**70):
        assert (await refused(gateway, engine, chat(max_tokens=value)))["param"] == "max_tokens"


async def test_empty_messages(gateway: Running, engine: FakeEngine) -> None:
    """A conversation without a message asks for nothing."""
    assert (await refused(gateway, engine, {"model": "m", "messages": []}))["param"] == "messages"


async def test_prompt_longer_than_any_context(gateway: Running, engine: FakeEngine) -> None:
    """What no replica could hold is refused at once, with the code that clients test for."""
    error = await refused(gateway, engine, chat("word " * 20_000))
    assert error["code"] == "context_length_exceeded"
    assert "4096" in error["message"]


async def test_unknown_model(gateway: Running, engine: FakeEngine) -> None:
    """A model that nobody serves is a 404 that names what comes near."""
    error = await refused(gateway, engine, chat(model="M"), status=404)
    assert error["code"] == "model_not_found"
    assert "`m`" in error["message"]


async def test_huge_body_with_a_length(gateway: Running, engine: FakeEngine) -> None:
    """A body that says it is too large is refused before it is read, and the connection closed."""
    async with connected(gateway.url) as client:
        await client.send(head("POST", CHAT, f"content-length: {MAX_BODY_BYTES + 1}"))
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert answer.headers["connection"] == "close"
        await client.send_until_refused(b"x" * 65536, 1 + MAX_BODY_BYTES // 65536)
        assert await client.until_closed() == b""
    await still_serves(gateway, engine)


async def test_huge_body_in_chunks(gateway: Running, engine: FakeEngine) -> None:
    """A body without a length is cut off where it becomes too large; its sender still reads why."""
    async with connected(gateway.url) as client:
        await client.send(head("POST", CHAT, "transfer-encoding: chunked"))
        await client.send_until_refused(b"10000\r\n" + b"x" * 65536 + b"\r\n", 2 * MAX_BODY_BYTES // 65536)
        await client.send(b"0\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert await client.until_closed() == b""
    await still_serves(gateway, engine)


async def test_huge_body_from_a_client_that_sends_all_before_it_reads(gateway: Running, engine: FakeEngine) -> None:
    """The refusal reaches httpx, and so OpenAI's SDK, which see a reset where a server closes on what they still send."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        answer = await client.post(gateway.url + CHAT, content=b"x" * 4 * MAX_BODY_BYTES)
    assert answer.status_code == 413
    await still_serves(gateway, engine)


async def test_body_that_never_ends(hasty: Running, engine: FakeEngine) -> None:
    """A body that does not arrive in time is a 408, and its connection is closed."""
    async with connected(hasty.url) as client:
        await client.send(head("POST", CHAT, "content-length: 1000"), b'{"model"')
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert await client.until_closed() == b""
    await still_serves(hasty, engine)


async def test_client_that_leaves_in_its_body(gateway: Running, engine: FakeEngine) -> None:
    """A client that hangs up half-way through its body leaves nothing behind."""
    async with connected(gateway.url) as client:
        await client.send(head("POST", CHAT, "content-length: 1000"), b'{"model"')
    await still_serves(gateway, engine)


async def still_serves(gateway: Running, engine: FakeEngine) -> None:
    await until_at_rest(gateway)
    assert engine.calls == []
    assert (await ask(gateway.url, post(CHAT, chat(stream=True)))).events()[-1] == "[DONE]"


async def test_model_without_a_replica() -> None:
    """A configured model whose only replica never came up is a 503 with a time to come back."""
    engine = FakeEngine()
    engine.found = ProbeResult(ready=False, detail="starting")
    config = Config.model_validate(
        {
            "replicas": [{"name": "a", "url": "http://127.0.0.1:1", "models": ["m"]}],
            "probe": {"interval_s": 0.02, "unhealthy_after": 1},
        }
    )
    async with listening(config, {"a": engine}) as gateway:
        await until(lambda: "down" in {state.lifecycle for state in gateway.gateway.scheduler.states(0.0)})
        answer = await ask(gateway.url, post(CHAT, chat()))
        assert (answer.status, answer.error["code"]) == (503, "no_capacity")
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        ready = await ask(gateway.url, get("/readyz"))
        assert (ready.status, ready.json()["status"]) == (503, "not_ready")


async def test_every_replica_down() -> None:
    """When all replicas have gone, requests are sent away at once with a time to come back, and the model stays listed."""
    engines = {"a": FakeEngine(), "b": FakeEngine()}
    config = fake_config(engines, probe={"interval_s": 0.02, "unhealthy_after": 2})
    async with listening(config, engines) as gateway:
        for engine in engines.values():
            engine.found = ProbeResult(ready=False, detail="gone")
        await until(lambda: {state.lifecycle for state in gateway.gateway.scheduler.states(0.0)} == {"down"})
        answer = await ask(gateway.url, post(CHAT, chat(stream=True)))
        assert (answer.status, answer.error["code"]) == (503, "no_capacity")
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert [row["id"] for row in (await ask(gateway.url, get("/v1/models"))).json()["data"]] == ["m"]


async def test_two_choices_in_one_stream() -> None:
    """`n: 2` gives two interleaved choices, each whole and in order, and one [DONE]."""
    config = Config.model_validate(
        {"replicas": [{"name": "sim", "backend": "simulated", "models": ["m"], "simulated": {"speed": 50}}]}
    )
    body = chat("Tell me", n=2, stream=True, max_tokens=20, ignore_eos=True)
    async with listening(config) as gateway:
        answer = await ask(gateway.url, post(CHAT, body))
        await until_at_rest(gateway)
    assert answer.events()[-1] == "[DONE]"
    choices = [choice for event in answer.events()[:-1] for choice in event["choices"]]
    for index in range(2):
        mine = [choice for choice in choices if choice["index"] == index]
        text = "".join(choice["delta"].get("content") or "" for choice in mine)
        assert text == expected_text(chat_text(body["messages"]), 20, index=index)
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["length"]


async def test_answer_longer_than_the_context() -> None:
    """`max_tokens` beyond the context is the engine's 400 in OpenAI's words, and costs nothing."""
    config = Config.model_validate({"replicas": [{"name": "sim", "backend": "simulated", "models": ["m"]}]})
    async with listening(config) as gateway:
        answer = await ask(gateway.url, post(CHAT, chat(max_tokens=2**31 - 1)))
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        await until_at_rest(gateway)
