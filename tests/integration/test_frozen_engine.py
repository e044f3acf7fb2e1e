"""One of two engines over real HTTP freezes: its connections stand and say nothing, and the other one answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from openai import AsyncOpenAI
from starlette.types import ASGIApp, Receive, Scope, Send

from backends.simulated.bodies import chat_text
from backends.simulated.options import EngineOptions
from backends.simulated.server import create_engine_app
from backends.simulated.tokens import expected_text
from config.schema import Config
from tests.support.conditions import until, until_at_rest
from tests.support.gateways import Running, listening
from tests.support.patience import PATIENCE_S
from tests.support.servers import served

HELLO = [{"role": "user", "content": "Hello"}]
TOKENS = 8
TAUGHT = 25  # answers, before the predictions of a replica are worth something


class Freezing:
    """An engine's application; while `frozen`, whatever is asked is taken and left."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._moving = asyncio.Event()
        self._moving.set()
        self.left = 0

    @property
    def frozen(self) -> bool:
        return not self._moving.is_set()

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        (self._moving.clear if frozen else self._moving.set)()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.frozen:
            self.left += scope["method"] == "POST"
            await self._moving.wait()
        await self._app(scope, receive, send)


@asynccontextmanager
async def engine() -> AsyncIterator[tuple[Freezing, str]]:
    app = Freezing(create_engine_app(EngineOptions(kv_blocks=512, max_model_len=4096, speed=20)))
    async with served(app, graceful_s=1) as url:
        try:
            yield app, url
        finally:
            app.frozen = False


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Running, Freezing]]:
    """A gateway before `dear` and `cheap`, which it prefers and has learned to predict; and the cheap one's engine."""
    async with engine() as (cheap, cheap_url), engine() as (_, dear_url):
        urls = {"cheap": cheap_url, "dear": dear_url}
        replicas = [
            {
                "name": name,
                "url": url,
                "gpu": {"type": "H100-80G"},
                "cost": {"tier": "on_demand", "usd_per_hour": 1 if name == "cheap" else 9},
            }
            for name, url in urls.items()
        ]
        scheduling = {"hedge": {"floor_s": 0.3}}
        config = Config.model_validate(
            {
                "replicas": replicas,
                "scheduling": scheduling,
                "probe": {"unhealthy_after": 999},
                "health": {"enabled": False},
            }
        )
        async with listening(config) as running:
            async with sdk(running) as client:
                for _ in range(TAUGHT):
                    await ask(client, stream=True)
                    await ask(client, stream=False)
            yield running, cheap
            cheap.frozen = False
            await until_at_rest(running)


def sdk(running: Running) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=httpx.Timeout(60.0))


async def ask(client: AsyncOpenAI, *, stream: bool) -> str:
    extra = {"ignore_eos": True}
    model = (await client.models.list()).data[0].id
    if not stream:
        whole = await client.chat.completions.create(
            model=model,
            messages=HELLO,
            max_tokens=TOKENS,
            extra_body=extra,  # type: ignore[arg-type]
        )
        return whole.choices[0].message.content or ""
    chunks = await client.chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=TOKENS,
        stream=True,
        extra_body=extra,  # type: ignore[arg-type]
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])
async def test_a_frozen_engine_s_request_is_answered_by_the_other(stream: bool) -> None:
    """The SDK gets one whole answer; the frozen engine's connection is dropped, its lease given back, and the metrics say why."""
    whole = expected_text(chat_text(HELLO), TOKENS)
    async with two() as (running, cheap), sdk(running) as client:
        won = running.metric("penstock_hedges_total", outcome="won")
        cheap.frozen = True
        async with asyncio.timeout(PATIENCE_S):
            # A machine that is busy elsewhere may have taught that the cheap one is slow: then it is the second try that goes there.
            while running.metric("penstock_hedges_total", outcome="won") == won:
                assert await ask(client, stream=stream) == whole
        assert cheap.left >= 1
        assert running.metric("penstock_upstream_attempts_total", replica="cheap", outcome="hedged") >= 1
        await until(lambda: {state.running for state in running.gateway.scheduler.states(0.0)} == {0})


async def test_requests_that_follow_do_not_go_there() -> None:
    """Ten more, one after another: all are answered, nearly all without a detour."""
    whole = expected_text(chat_text(HELLO), TOKENS)
    async with two() as (running, cheap), sdk(running) as client:
        cheap.frozen = True
        assert [await ask(client, stream=True) for _ in range(10)] == [whole] * 10
        assert cheap.left < 5
        cheap.frozen = False
        await until_at_rest(running)
