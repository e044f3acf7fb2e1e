"""A fleet at work whose gateway has every kind of thing to tell: what the dashboards' panels show, provoked within half a minute."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
import zmq.asyncio
from redis.asyncio import Redis

from tests.support.engine_process import EngineProcess, replica
from tests.support.fault_proxy import Fault, FaultProxy, Plan
from tests.support.faults import at_token, cut, hang_before_head, status_500
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.kv_engine import KvEngine, kv_engine, replica_of
from tests.support.patience import PATIENCE_S
from tests.support.scrape import from_page

KEY = "the-operators-key-0123456789abcdef"
ADMIN = {"authorization": f"Bearer {KEY}"}
TENANT, LIMITED = "the-key-of-acme-0123456789abcdefgh", "the-key-of-small-0123456789abcdefg"
SYSTEM = "You are an assistant that answers in plain words, shortly, and says so where it does not know something. " * 8
_TAUGHT = 40  # answers, until predictions are worth something


class Scene:
    """A gateway in a process of its own; two engine processes behind proxies that break what the plan says; a simulated replica of another
    model, small enough to be flooded; an engine that tells its KV events.
    """

    def __init__(
        self,
        gateway: GatewayProcess,
        http: httpx.AsyncClient,
        engines: list[EngineProcess],
        plan: Plan,
        config: Path,
        shared: Redis,
    ) -> None:
        self.gateway = gateway
        self._http = http
        self._engines = engines
        self._plan = plan
        self._config = config
        self._redis = shared
        self._asked = 0

    async def ask(
        self, words: str, tokens: int = 8, *faults: Fault, headers: dict[str, str] | None = None, **more: Any
    ) -> int:
        """One request; its attempts meet these faults. The status, 0 where the stream broke."""
        self._asked += 1
        name = f"scene-{self._asked:05}-"
        self._plan.add(name, *faults)
        body = {
            "model": "sim-8b", "max_tokens": tokens, "ignore_eos": True, "stream": True,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": words}], **more,
        }  # fmt: skip
        try:
            answer = await self._http.post(
                "/v1/chat/completions", json=body, headers={"x-request-id": name, **(headers or {})}
            )
        except httpx.TransportError:
            return 0
        return answer.status_code

    async def admin(self, path: str, **document: Any) -> None:
        answer = await self._http.post(f"/admin/replicas/{path}", json=document, headers=ADMIN)
        assert answer.is_success, answer.text

    async def seen(self, name: str, within_s: float, **labels: str) -> bool:
        """Whether a figure becomes more than nothing."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + within_s
        while from_page((await self._http.get("/metrics")).text, f"penstock_{name}", **labels) <= 0:
            if loop.time() > end_s:
                return False
            await asyncio.sleep(0.1)
        return True

    async def ready(self) -> None:
        """Both of the large model's replicas: what comes next needs one to break, and one to go to."""
        for name in ("spot", "steady"):
            assert await self.seen("replica_up", PATIENCE_S, replica=name), (
                f"{name} does not come back; the gateway's log:\n{self.gateway.log[-4000:]}"
            )

    async def traffic(self, until_s: float) -> None:
        """Ordinary requests of all tiers, streamed and not, until this moment of the loop."""
        loop, number = asyncio.get_running_loop(), 0
        while loop.time() < until_s:
            number += 1
            tier = ("default", "priority", "flex")[number % 3]
            await asyncio.gather(
                *(
                    self.ask(f"{number} {i}", 20 + 10 * i, service_tier=tier, stream=i % 3 > 0, user=f"u{i}")
                    for i in range(6)
                )
            )
            await asyncio.sleep(0.2)

    async def flood(self) -> None:
        """More than the small model's queue takes: some wait, some are refused."""
        await asyncio.gather(
            *(
                self.ask(f"flood {i}", 60, model="sim-70b", service_tier=("default", "flex")[i % 2], max_tokens=60)
                for i in range(40)
            )
        )

    async def failures(self) -> None:
        """Engines that answer 500, twice: the retry budget is spent, and clients get 502; requests for nobody."""
        await asyncio.gather(*(self.ask(f"fails {i}", 8, status_500, status_500, status_500) for i in range(24)))
        await self.ask("nobody", model="no-such-model")

    async def cut_streams(self) -> None:
        """Some go on elsewhere; one has nowhere to go, as each of its engines breaks."""
        await self.ready()
        await asyncio.gather(*(self.ask(f"moves {i}", 60, at_token(20, cut)) for i in range(4)))
        await self.ask("ends", 60, *[at_token(3, cut)] * 20, n=2)

    async def overdue(self) -> None:
        """First tokens that do not come: another replica is asked, too."""
        await asyncio.gather(*(self.ask(f"late {i}", 8, hang_before_head) for i in range(4)))

    async def leaving(self) -> None:
        """A client that goes away in the middle, and one that comes again."""
        try:
            async with asyncio.timeout(0.3):
                await self.ask("never read to its end", 4000)
        except TimeoutError:
            pass
        await self.ask("again", 8, headers={"x-stainless-retry-count": "1"})

    async def notices(self) -> None:
        """One machine is reclaimed with work on it; another is drained; both come back."""
        await self.ready()
        async with asyncio.TaskGroup() as tasks:
            for i in range(4):
                tasks.create_task(self.ask(f"long {i}", 1500))
            await asyncio.sleep(0.3)
            await self.admin("spot/notice", provider="aws", kind="reclaim", deadline_unix_s=wall_s() + 5)
            await asyncio.sleep(3.5)
            await self.admin("spot/restore")
            await self.admin("steady/drain", deadline_s=3)
            await asyncio.sleep(2.5)
            await self.admin("steady/restore")

    async def freeze(self) -> None:
        """An engine stops in the middle of its streams, is found out, and comes back; again where it had none just then."""
        for _ in range(5):
            await self.ready()
            async with asyncio.TaskGroup() as tasks:
                streams = [tasks.create_task(self.ask(f"frozen {i}", 4000)) for i in range(12)]
                await self.seen("replica_running", PATIENCE_S, replica="spot")
                await asyncio.sleep(0.3)
                self._engines[0].freeze()
                found = await self.seen("replica_ejections_total", 12)
                self._engines[0].thaw()
                for stream in streams:
                    stream.cancel()
            if found:
                return
        raise AssertionError(f"a frozen engine was never found out; the gateway's log:\n{self.gateway.log[-4000:]}")

    async def cached(self, engine: KvEngine) -> None:
        """Prompts of the model whose engine tells what it caches; in between a gap, and a new beginning."""
        for i in range(12):
            words = f"{SYSTEM} {i % 4}"
            await self._http.post("/v1/completions", json={"model": "m", "prompt": words, "max_tokens": 1})
            if i == 6:
                await engine.clear()
                engine.publisher.number()  # nobody gets it,
                engine.publisher.forget_buffer()  # and nobody can ask for it
            await asyncio.sleep(0.2)

    async def operators(self) -> None:
        """A stranger at /admin; a configuration that is applied, and one that is not."""
        await self._http.get("/admin/replicas")
        for _ in range(4):
            await self.ask("limited", headers={"authorization": f"Bearer {LIMITED}"})
        good = self._config.read_text()
        self.gateway.signal(signal.SIGHUP)
        await asyncio.sleep(1.5)
        self._config.write_text("nonsense: 1\n")
        self.gateway.signal(signal.SIGHUP)
        await asyncio.sleep(1.5)
        self._config.write_text(good)

    async def slow_redis(self) -> None:
        """It answers nobody for a while: the gateway goes on with what it had."""
        await asyncio.sleep(3)
        await self._redis.client_pause(2500)

    async def play(self, engine: KvEngine, seconds: float) -> None:
        """All of it, beside ordinary traffic."""
        await asyncio.gather(*(self.ask(f"taught {i}", 8) for i in range(_TAUGHT)))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.traffic(asyncio.get_running_loop().time() + seconds))
            tasks.create_task(self.cached(engine))
            tasks.create_task(self.operators())
            tasks.create_task(self.slow_redis())
            await self.overdue()
            await self.cut_streams()
            await self.flood()
            await self.leaving()
            await self.notices()
            await self.freeze()
            await self.failures()


def wall_s() -> float:
    """Unix time."""
    return datetime.now(UTC).timestamp()


@asynccontextmanager
async def scene(folder: Path, redis_url: str) -> AsyncIterator[tuple[Scene, KvEngine]]:
    """Ready."""
    plan = Plan()
    async with AsyncExitStack() as stack:
        engines = [stack.enter_context(EngineProcess(seed=seed, speed=4.0)) for seed in (1, 2)]
        with_events = await stack.enter_async_context(kv_engine(stack.enter_context(zmq.asyncio.Context())))
        for engine in engines:
            await engine.ready()
        spot, steady = [
            await stack.enter_async_context(FaultProxy(name, engine.url, plan))
            for name, engine in zip(("spot", "steady"), engines, strict=True)
        ]
        config = folder / "penstock.yaml"
        config.write_text(yaml.safe_dump(_config(folder, spot.url, steady.url, with_events, redis_url)))
        gateway = await stack.enter_async_context(serving(config))
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=gateway.url,
                headers={"authorization": f"Bearer {TENANT}"},
                timeout=PATIENCE_S,
                limits=httpx.Limits(max_connections=None),
                trust_env=False,
            )
        )
        async with asyncio.timeout(PATIENCE_S):
            while not (await http.get("/readyz")).is_success:
                await asyncio.sleep(0.1)
        shared = await stack.enter_async_context(Redis.from_url(redis_url))
        yield Scene(gateway, http, engines, plan, config, shared), with_events


def _config(folder: Path, spot: str, steady: str, with_events: KvEngine, redis_url: str) -> dict[str, Any]:
    small = {
        "name": "small", "backend": "simulated", "models": ["sim-70b"], "gpu": {"type": "A100-80G", "count": 4},
        "cost": {"tier": "reserved", "usd_per_hour": 6.0, "on_demand_usd_per_hour": 9.0}, "simulated": {"shape": "70b"},
        "capacity": {"max_num_seqs": 2, "max_num_batched_tokens": 2048, "kv_blocks": 512, "block_size": 16, "max_model_len": 8192},
    }  # fmt: skip
    cheap = replica("spot", spot, tier="spot", usd_per_hour=1.0)
    cheap["cost"]["on_demand_usd_per_hour"] = 3.0
    return {
        "server": {"admin_key": KEY},
        "redis": {"url": redis_url},
        "auth": {"secret_keys": f"acme={TENANT} small={LIMITED}"},
        "tenants": [{"name": "acme"}, {"name": "small", "limits": {"requests_per_minute": 2}}],
        "replicas": [
            cheap,
            replica("steady", steady, usd_per_hour=1.2),
            small,
            replica_of(
                with_events, name="told", gpu={"type": "L4-24G"}, cost={"tier": "reserved", "usd_per_hour": 0.5}
            ),
        ],
        "queue": {"max_requests": 24, "max_wait_s": 6},
        "upstream": {"connect_timeout_s": 5.0},
        "probe": {"interval_s": 0.3, "timeout_s": 15},  # what is frozen is to be doubted before its probes say so
        "discovery": {"registration": {"enabled": True}},
        "health": {"longest_pause_s": 2},
        "decisions": {"file": str(folder / "decisions.jsonl")},
        "log_level": "warning",
    }
