"""All bodies together, over real sockets: a flood of large ones is refused before it is held, and what was held is given back."""

from collections.abc import AsyncIterator

import pytest

from config.schema import DataPlane
from tests.support.asgi import chat
from tests.support.conditions import until, until_at_rest
from tests.support.fake_engine import FakeEngine
from tests.support.gateways import Running, fake_config, listening
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import ask, connected, head, post

CHAT = "/v1/chat/completions"
BUDGET = 64 * 1024


@pytest.fixture(params=list(DataPlane))
async def gateway(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    engine = FakeEngine()
    config = fake_config(
        {"a": engine}, server={"max_held_body_bytes": BUDGET, "data_plane": request.param, "body_timeout_s": PATIENCE_S}
    )
    async with listening(config, {"a": engine}) as running:
        yield running


def held(gateway: Running) -> int:
    return gateway.gateway.bodies.held


async def test_a_body_that_does_not_fit_is_refused_before_it_comes(gateway: Running) -> None:
    """The head alone is answered: 503, why, and when to return; nothing of the body is asked for or held."""
    async with connected(gateway.url) as client:
        await client.send(head("POST", CHAT, f"content-length: {BUDGET + 1}"))
        answer = await client.answer()
    assert answer.status == 503
    assert answer.headers["x-penstock-dropped-reason"] == "body_bytes"
    assert 1 <= int(answer.headers["retry-after"]) <= 8
    assert answer.error["code"] == "engine_overloaded"
    assert held(gateway) == 0


async def test_many_that_would_fit_alone_are_refused_once_they_are_too_much(gateway: Running) -> None:
    """What is announced is not held against anybody; what has come is, and the part that is too much ends its own request."""
    half = b"x" * (BUDGET // 2 - 1)
    async with connected(gateway.url) as first, connected(gateway.url) as second, connected(gateway.url) as third:
        for client in (first, second, third):  # all of them announced while next to nothing was held
            await client.send(head("POST", CHAT, f"content-length: {BUDGET - 2}"), b"x")
        await until(lambda: held(gateway) == 3)
        await first.send(half)
        await until(lambda: held(gateway) == 3 + len(half))
        await second.send(half)
        answer = await second.answer()
        assert (answer.status, answer.headers["x-penstock-dropped-reason"]) == (503, "body_bytes")
        assert held(gateway) == 2 + len(half)
    await until(lambda: held(gateway) == 0)


async def test_what_was_held_is_given_back_however_a_request_ends(gateway: Running) -> None:
    """Answered, refused for its content, or hung up: nothing stays counted."""
    assert (await ask(gateway.url, post(CHAT, chat("hello", stream=True)))).status == 200
    assert (await ask(gateway.url, post(CHAT, b"{"))).status == 400
    async with connected(gateway.url) as client:
        await client.send(head("POST", CHAT, "content-length: 1000"), b"x" * 500)
        await until(lambda: held(gateway) == 500)
    await until(lambda: held(gateway) == 0)
    await until_at_rest(gateway)
    assert gateway.gateway.bodies.refused == 0


@pytest.mark.parametrize("plane", list(DataPlane))
async def test_a_body_that_is_overdue_is_not_held_any_more(plane: DataPlane) -> None:
    """The client that did not send the rest in time gets 408, and its part is let go."""
    engine = FakeEngine()
    config = fake_config({"a": engine}, server={"body_timeout_s": 0.2, "data_plane": plane})
    async with listening(config, {"a": engine}) as running, connected(running.url) as client:
        await client.send(head("POST", CHAT, "content-length: 1000"), b"x" * 500)
        assert (await client.answer()).status == 408
        assert held(running) == 0
