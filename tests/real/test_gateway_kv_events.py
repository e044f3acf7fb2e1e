"""KV events of a real vLLM with a tiny cache, behind a real gateway: belief is compared with what the engine says it had cached."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import zmq
import zmq.asyncio

from batching.request import ReplicaId
from config.schema import Config
from router.openai.body import parse_object
from router.openai.request import read_call
from tests.real.gateway_process import vllm_replica
from tests.real.vllm_server import MODEL, VllmServer
from tests.support.gateways import Running, listening
from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port

pytestmark = pytest.mark.real

R = ReplicaId("r")
CHAT = "/v1/chat/completions"
_BLOCKS = 64  # of 32 tokens: two prompts of 900 tokens


class TellingEngine:
    """A vLLM that publishes its KV events, and where."""

    def __init__(self, server: VllmServer) -> None:
        self.server = server
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.replay_endpoint = f"tcp://127.0.0.1:{free_port()}"

    def start(self) -> None:
        config = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.endpoint.replace("127.0.0.1", "*"),
            "replay_endpoint": self.replay_endpoint.replace("127.0.0.1", "*"),
            "topic": "kv-events",
        }
        self.server.start("--kv-events-config", json.dumps(config)).wait_ready().warm()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TellingEngine]:
    folder = tmp_path_factory.mktemp("vllm")
    engine = TellingEngine(VllmServer(folder / "vllm.log", blocks=_BLOCKS, max_model_len=1024))
    try:
        engine.start()
        yield engine
    finally:
        engine.server.stop()


def chat(name: str, repeats: int = 24) -> dict[str, Any]:
    """A conversation whose beginning no other name's has: about 5 chunks of text, 600 tokens."""
    system = " ".join(f"{name} {n}: the {name} gateway meters tokens onto machines." for n in range(repeats))
    messages = [{"role": "system", "content": system}, {"role": "user", "content": f"And {name}?"}]
    return {"model": MODEL, "messages": messages, "max_tokens": 2, "temperature": 0}


class Bench:
    """The gateway, and the engine beside it."""

    def __init__(self, running: Running, engine: TellingEngine, http: httpx.AsyncClient) -> None:
        self._running = running
        self._engine = engine
        self._http = http

    async def ask(self, body: dict[str, Any]) -> int:
        """Through the gateway; how many prompt tokens the engine found in its cache."""
        return await self._post(f"{self._running.url}{CHAT}", body)

    async def ask_engine(self, body: dict[str, Any]) -> int:
        """Past the gateway, as other traffic."""
        return await self._post(f"{self._engine.server.url}{CHAT}", body)

    async def fill(self) -> None:
        """Other traffic until nothing older is left in the cache."""
        for name in ("red", "green", "blue", "grey"):
            await self.ask_engine(chat(name))

    async def clear(self) -> None:
        """The engine tells it with its next step."""
        (await self._http.post(f"{self._engine.server.url}/reset_prefix_cache", timeout=PATIENCE_S)).raise_for_status()
        await self._http.post(
            f"{self._engine.server.url}/v1/completions",
            json={"model": MODEL, "prompt": "x", "max_tokens": 1},
            timeout=PATIENCE_S,
        )

    def chunks(self, body: dict[str, Any]) -> tuple[int, ...]:
        return read_call(CHAT, parse_object(json.dumps(body).encode(), max_depth=64)).prefix_chunks

    def believed(self, body: dict[str, Any]) -> int:
        return self._running.gateway.scheduler.prefixes.matched(self.chunks(body)).get(R, 0)

    def metric(self, name: str, **labels: str) -> float:
        return self._running.metric(f"penstock_{name}", **labels)

    async def learned(self, body: dict[str, Any]) -> int:
        """Asked, and its tokens are known."""
        mapped = self.metric("kv_event_prompts_total", outcome="mapped")
        cached = await self.ask(body)
        await until(lambda: self.metric("kv_event_prompts_total", outcome="mapped") > mapped, "the prompt is mapped")
        return cached

    async def _post(self, url: str, body: dict[str, Any]) -> int:
        answer = await self._http.post(url, json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


async def until(condition: Callable[[], bool], what: str) -> None:
    """A real engine's clock is the wall's."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {PATIENCE_S} s: {what}")


@asynccontextmanager
async def bench(engine: TellingEngine, endpoint: str | None = None) -> AsyncIterator[Bench]:
    """A gateway of its own on an engine that has nothing cached."""
    events = {"endpoint": endpoint or engine.endpoint, "replay_endpoint": engine.replay_endpoint, "topic": "kv-events"}
    config = Config.model_validate({"replicas": [vllm_replica("r", engine.server, kv_events=events)]})
    async with httpx.AsyncClient(trust_env=False) as http, listening(config) as running:
        bench = Bench(running, engine, http)
        await bench.clear()
        await until(lambda: bench.metric("kv_events_total", type="cleared") > 0, "events are heard")
        yield bench


async def test_a_prefix_is_believed_and_goes_with_its_blocks(engine: TellingEngine) -> None:
    """Served once it is held, and cached when asked again; evicted by other traffic it is not believed, nor cached any more."""
    async with bench(engine) as b:
        body = chat("amber")
        assert await b.learned(body) == 0
        assert b.believed(body) == len(b.chunks(body)) >= 4
        assert await b.ask(body) >= 512
        assert b.believed(body) == len(b.chunks(body))
        await b.fill()
        await until(lambda: b.believed(body) == 0, "the prefix is not believed any more")
        assert b.metric("kv_events_total", type="removed") > 0
        assert await b.ask_engine(body) == 0


async def test_other_traffic_brings_belief_back(engine: TellingEngine) -> None:
    """Blocks that are stored for somebody else's request are as good as ours; shared beginnings count."""
    async with bench(engine) as b:
        body = chat("ochre")
        await b.learned(body)
        await b.fill()
        await until(lambda: b.believed(body) == 0, "the prefix is not believed any more")
        await b.ask_engine(body)
        await until(lambda: b.believed(body) == len(b.chunks(body)), "the prefix is believed again")
        assert b.metric("replica_kv_believed_blocks", replica="r") <= _BLOCKS


async def test_a_clear_ends_all_belief(engine: TellingEngine) -> None:
    """What /reset_prefix_cache empties is forgotten."""
    async with bench(engine) as b:
        body = chat("coral")
        await b.learned(body)
        assert b.believed(body) > 0
        await b.clear()
        await until(lambda: b.believed(body) == 0, "the prefix is not believed any more")
        assert await b.ask_engine(body) == 0


async def test_a_late_gateway_asks_for_what_was_before(engine: TellingEngine) -> None:
    """The engine's own replay tells a new gateway all blocks since the engine began."""
    async with bench(engine) as first:
        await first.ask_engine(chat("jade"))
    events = {"endpoint": engine.endpoint, "replay_endpoint": engine.replay_endpoint, "topic": "kv-events"}
    config = Config.model_validate({"replicas": [vllm_replica("r", engine.server, kv_events=events)]})
    async with httpx.AsyncClient(trust_env=False) as http, listening(config) as running:
        late = Bench(running, engine, http)
        await until(lambda: late.metric("replica_kv_believed_blocks") > 0, "the replay tells blocks")
        assert await late.learned(chat("jade")) >= 512
        assert late.believed(chat("jade")) == len(late.chunks(chat("jade")))
        await late.fill()
        await until(lambda: late.believed(chat("jade")) == 0, "the prefix is not believed any more")


async def test_what_the_network_loses_the_engine_repeats(engine: TellingEngine) -> None:
    """Batches lost on the way are asked for: evictions among them end belief as if they had been heard."""
    context = zmq.asyncio.Context()
    async with asyncio.TaskGroup() as tasks:
        lossy = _LossyLine(context, engine.endpoint)
        carrying = tasks.create_task(lossy.carry())
        async with bench(engine, lossy.endpoint) as b:
            body = chat("pearl")
            await b.learned(body)
            lossy.broken = True
            await b.fill()
            await until(lambda: lossy.lost > 0, "batches are lost")
            assert b.believed(body) > 0
            lossy.broken = False
            await b.ask_engine(chat("onyx"))
            await until(lambda: b.believed(body) == 0, "the evictions are known")
            assert b.metric("kv_event_gaps_total", outcome="replayed") == 1
            assert b.metric("kv_event_resyncs_total") == 0
        carrying.cancel()
    context.destroy(linger=0)


async def test_an_engine_that_was_restarted_holds_nothing(engine: TellingEngine) -> None:
    """Its process is killed and a new one takes its place: that is noticed before its first request, and the new one is heard."""
    async with bench(engine) as b:
        body = chat("topaz")
        await b.learned(body)
        engine.server.kill()
        engine.server.stop()
        await asyncio.to_thread(engine.start)
        await until(lambda: b.metric("replica_up") == 1, "the replica is ready again")
        await until(lambda: b.metric("kv_event_resyncs_total", reason="restarted") == 1, "the restart is noticed")
        assert b.believed(body) == 0
        assert b.metric("replica_kv_believed_blocks") == 0
        assert await b.ask(body) == 0
        # The placement alone makes it believed; that the new engine is heard shows in its blocks, and in their eviction.
        await until(lambda: b.metric("replica_kv_believed_blocks") > 0, "the new engine's blocks are heard of")
        assert b.believed(body) == len(b.chunks(body))
        await b.fill()
        await until(lambda: b.believed(body) == 0, "the new engine's evictions are heard of")


class _LossyLine:
    """Carries a publisher's batches to one subscriber; while `broken`, loses them."""

    def __init__(self, context: zmq.asyncio.Context, upstream: str) -> None:
        self._from = context.socket(zmq.SUB)
        self._from.connect(upstream)
        self._from.subscribe(b"")
        self._to = context.socket(zmq.PUB)
        self._to.bind("tcp://127.0.0.1:*")
        self.endpoint = self._to.getsockopt_string(zmq.LAST_ENDPOINT)
        self.broken = False
        self.lost = 0

    async def carry(self) -> None:
        while True:
            frames = await self._from.recv_multipart()
            if self.broken:
                self.lost += 1
            else:
                await self._to.send_multipart(frames)
