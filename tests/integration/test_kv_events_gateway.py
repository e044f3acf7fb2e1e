"""A whole gateway before an engine that tells its KV events: what is believed follows what the engine really holds."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import zmq.asyncio

import router.kv_prompts
import router.kv_watch
from batching.request import ReplicaId
from config.schema import Config
from router.openai.body import parse_object
from router.openai.request import read_call
from tests.support.conditions import until
from tests.support.gateways import Running, listening
from tests.support.kv_engine import MODEL, KvEngine, kv_engine, replica_of
from tests.support.patience import PATIENCE_S

R = ReplicaId("r")
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


def text(name: str, chunks: int) -> str:
    """So many chunks of 256 characters, which no other name's text begins with."""
    return "".join(f"{name} {n:07d} ".ljust(16, ".") for n in range(16 * chunks))


def prompt(name: str, chunks: int = 4) -> dict[str, Any]:
    return {"model": MODEL, "prompt": text(name, chunks)}


@pytest.fixture
def context() -> Iterator[zmq.asyncio.Context]:
    context = zmq.asyncio.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture(autouse=True)
def no_long_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our publisher sends at once."""
    monkeypatch.setattr(router.kv_prompts, "SETTLE_S", 0.05)


class Bench:
    """A gateway, its one engine, and a client."""

    def __init__(self, running: Running, engine: KvEngine, http: httpx.AsyncClient) -> None:
        self.running = running
        self.engine = engine
        self._http = http

    async def ask(self, body: dict[str, Any], path: str = COMPLETION) -> httpx.Response:
        return await self._http.post(f"{self.running.url}{path}", json=body, timeout=PATIENCE_S)

    def believed(self, body: dict[str, Any], path: str = COMPLETION) -> int:
        """Leading chunks of this prompt that the replica is believed to hold."""
        spec = read_call(path, parse_object(httpx.Request("POST", "http://h", json=body).content, max_depth=64))
        return self.running.gateway.scheduler.prefixes.matched(spec.prefix_chunks).get(R, 0)

    def prompts(self, outcome: str) -> float:
        return self.running.metric("penstock_kv_event_prompts_total", replica="r", outcome=outcome)

    async def learned(self, body: dict[str, Any], path: str = COMPLETION) -> None:
        """Asks, and waits until the prompt's tokens are known."""
        mapped = self.prompts("mapped")
        assert (await self.ask(body, path)).status_code == 200
        await until(lambda: self.prompts("mapped") == mapped + 1)


@asynccontextmanager
async def bench(context: zmq.asyncio.Context, blocks: int = 64, **more: Any) -> AsyncIterator[Bench]:
    async with kv_engine(context, blocks) as engine, httpx.AsyncClient(trust_env=False) as http:
        config = Config.model_validate({"replicas": [replica_of(engine, **more)]})
        async with listening(config) as running:
            if more.get("kv_events", True) is not None:
                await engine.publisher.joined()
                await engine.publisher.first_replay()
            yield Bench(running, engine, http)


async def test_belief_follows_the_engine(context: zmq.asyncio.Context) -> None:
    """Believed once served, lost with its blocks, believed again when anybody's traffic brings them back, gone with a clear."""
    async with bench(context) as b:
        await b.learned(prompt("a"))
        assert b.believed(prompt("a")) == 4
        await b.engine.run(prompt("other", 16))
        await until(lambda: b.believed(prompt("a")) == 0)
        await b.engine.run(prompt("a"))
        await until(lambda: b.believed(prompt("a")) == 4)
        assert b.running.metric("penstock_replica_kv_believed_blocks", replica="r") == 64
        await b.engine.clear()
        await until(lambda: b.believed(prompt("a")) == 0)
        assert b.running.metric("penstock_replica_kv_believed_blocks", replica="r") == 0
        assert b.running.metric("penstock_kv_events_total", type="cleared") == 1


async def test_a_part_goes_first(context: zmq.asyncio.Context) -> None:
    """An engine evicts a prompt from its end: the beginning stays believed."""
    async with bench(context, blocks=24) as b:
        await b.learned(prompt("a"))
        await b.engine.run(prompt("other", 4))  # 16 blocks of 24
        await until(lambda: b.believed(prompt("a")) == 2)


async def test_chats_are_joined_by_their_template(context: zmq.asyncio.Context) -> None:
    """The engine's own tokens of the whole conversation, with what its template adds."""
    body = {
        "model": MODEL,
        "messages": [{"role": "system", "content": text("s", 2)}, {"role": "user", "content": text("u", 2)}],
    }
    async with bench(context) as b:
        await b.learned({**body, "temperature": 0.5}, CHAT)
        assert b.engine.asked == [body]
        assert b.believed(body, CHAT) == 4
        await b.engine.run(prompt("other", 16))
        await until(lambda: b.believed(body, CHAT) == 0)


async def test_prompts_of_ids_need_no_question(context: zmq.asyncio.Context) -> None:
    """The client has sent the tokens."""
    async with bench(context) as b:
        ids = {"model": MODEL, "prompt": list(range(1, 257))}
        await b.learned(ids)
        assert (b.believed(ids), b.engine.asked) == (4, [])
        await b.engine.clear()
        await until(lambda: b.believed(ids) == 0)


async def test_a_known_prompt_is_not_asked_about_again(context: zmq.asyncio.Context) -> None:
    """Nor is a shorter one with the same beginning; a longer one is."""
    async with bench(context) as b:
        await b.learned(prompt("a"))
        await b.ask(prompt("a"))
        await b.ask(prompt("a", 2))
        await b.learned(prompt("a", 5))
        assert [len(asked["prompt"]) for asked in b.engine.asked] == [4 * 256, 5 * 256]


async def test_a_placement_that_came_to_nothing_is_taken_back(context: zmq.asyncio.Context) -> None:
    """The engine refused the request: nothing of it is cached, and after a moment nothing believed."""
    async with bench(context) as b:
        await b.learned(prompt("a"))
        await b.engine.run(prompt("other", 16))
        await until(lambda: b.believed(prompt("a")) == 0)
        b.engine.fails = True
        assert (await b.ask(prompt("a"))).status_code == 400
        await until(lambda: b.believed(prompt("a")) == 0)


async def test_what_was_missed_without_remedy_is_forgotten(context: zmq.asyncio.Context) -> None:
    """A gap that no replay fills ends all belief in that replica; new placements and events begin it anew."""
    async with bench(context) as b:
        await b.learned(prompt("a"))
        for _ in range(3):
            b.engine.publisher.number()
        b.engine.publisher.forget_buffer()
        await b.engine.run(prompt("new"))
        await until(lambda: b.believed(prompt("a")) == 0)
        assert b.running.metric("penstock_kv_event_resyncs_total", reason="lost") == 1
        assert b.running.metric("penstock_kv_event_gaps_total", outcome="lost") == 1
        await b.learned(prompt("new"))
        assert b.believed(prompt("new")) == 4


@pytest.mark.parametrize(
    ("status", "more", "outcome"), [(500, 0, "failed"), (404, 0, "failed"), (200, 1, "mismatched")]
)
async def test_answers_of_no_use(context: zmq.asyncio.Context, status: int, more: int, outcome: str) -> None:
    """A prompt whose tokens cannot be had, or are not those that the engine read, is believed in as without events."""
    async with bench(context) as b:
        b.engine.tokenize_status, b.engine.more_tokens = status, more
        await b.ask(prompt("a"))
        await until(lambda: b.prompts(outcome) == 1)
        await b.engine.run(prompt("other", 16))
        assert b.believed(prompt("a")) == 4
        assert (await b.ask(prompt("b"))).status_code == 200


async def test_reload_switches_listening(context: zmq.asyncio.Context) -> None:
    """Without `kv_events` nothing is heard any more; with it, all is heard again from the start; the backend stays the same."""
    async with bench(context) as b:
        gateway = b.running.gateway
        backend = gateway.backends[R]
        await b.learned(prompt("a"))
        gateway.reload(Config.model_validate({"replicas": [replica_of(b.engine, kv_events=None)]}))
        await b.engine.clear()
        assert b.running.metric("penstock_replica_kv_believed_blocks") == 0
        assert b.believed(prompt("a")) == 4
        gateway.reload(Config.model_validate({"replicas": [replica_of(b.engine)]}))
        await until(lambda: b.believed(prompt("a")) == 0)
        assert gateway.backends[R] is backend


async def test_an_error_of_ours_costs_only_what_was_known(
    context: zmq.asyncio.Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Events that cannot be taken in end neither the gateway nor listening: all is heard again from the start."""
    monkeypatch.setattr(router.kv_watch, "_AGAIN_S", 0.01)
    async with bench(context) as b:
        await b.learned(prompt("a"))
        belief = b.running.gateway.kv_watch.belief  # type: ignore[union-attr]
        take, broken = belief.removed, [True]

        def breaks_once(*args: Any) -> Any:
            if broken.pop() if broken else False:
                raise RuntimeError("a bug")
            return take(*args)

        monkeypatch.setattr(belief, "removed", breaks_once)
        await b.engine.run(prompt("other", 16))
        await until(lambda: b.running.metric("penstock_kv_event_resyncs_total", reason="lost") == 1)
        await until(lambda: b.running.metric("penstock_replica_kv_believed_blocks") == 64)
        assert b.believed(prompt("a")) == 0
        assert "a bug" in caplog.text
        assert (await b.ask(prompt("b"))).status_code == 200


async def test_off_changes_nothing(context: zmq.asyncio.Context) -> None:
    """Without `kv_events` the engine is asked nothing and belief is what was placed."""
    async with bench(context, kv_events=None) as b:
        await b.ask(prompt("a"))
        await b.engine.clear()
        assert b.believed(prompt("a")) == 4
        assert (b.engine.asked, b.engine.publisher.replays) == ([], [])
        assert b.running.metric("penstock_kv_events_total") == 0
