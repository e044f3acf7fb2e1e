"""Engines that know how much they were ever given, gateways as processes of their own, and clients that never rest."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from backends.simulated.options import EngineOptions
from backends.simulated.sequence import EngineSequence
from backends.simulated.server import _api, _app
from tests.support.asgi import chat
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import ask, get, post
from tests.support.scrape import from_page
from tests.support.servers import served

CHAT = "/v1/chat/completions"
SEQUENCES = 16  # that a replica is declared to run; the engine itself would take more, and remembers how many it got


@dataclass
class WatchedEngine:
    """A simulated engine in this process; `most` are the sequences that it ever had at once."""

    url: str = ""
    most: int = 0
    added: int = 0
    running: Callable[[], int] = int

    async def until_it_fills(self) -> None:
        """The moment in which it is given work again, after many have ended at once: whoever places is in the middle of it."""
        async with asyncio.timeout(PATIENCE_S):
            while self.running() > SEQUENCES // 2:
                await asyncio.sleep(0)
            added = self.added
            while self.added == added:
                await asyncio.sleep(0)


@asynccontextmanager
async def watched_engine(**options: object) -> AsyncIterator[WatchedEngine]:
    """Behind HTTP, for any number of gateways."""
    found = WatchedEngine()
    values: dict[str, object] = {"model": "m", "max_num_seqs": 256, "max_model_len": 8192, **options}
    api = _api(EngineOptions(**values))  # type: ignore[arg-type]
    engine = api.runner.engine
    add = engine.add

    def counted(sequence: EngineSequence, now: float) -> None:
        add(sequence, now)
        found.added += 1
        found.most = max(found.most, found.running())

    found.running = lambda: len(engine._sequences) - len(engine._finishing)
    engine.add = counted  # type: ignore[method-assign]
    async with served(_app(api)) as found.url:
        yield found


def configuration(path: Path, engines: Sequence[WatchedEngine], redis: dict[str, object], **more: object) -> Path:
    """A file for one gateway; `more` are other sections of it."""
    replicas = [
        {
            "name": f"e{i}", "url": engine.url, "models": ["m"], "gpu": {"type": "H100-80G"},
            "capacity": {"max_num_seqs": SEQUENCES},
        }
        for i, engine in enumerate(engines)
    ]  # fmt: skip
    # Nobody is late, so that nobody is refused or made to wait for others: what a slow machine makes of overload is not looked at.
    patient = {"hedge": {"enabled": False}, "objectives": {"ttft_s": 600, "tpot_s": 60}}
    # Nor does anybody give up what only takes its time.
    waits = {
        "queue": {"max_wait_s": 600}, "upstream": {"connect_timeout_s": 60}, "health": {"enabled": False},
        "probe": {"interval_s": 0.5, "timeout_s": 30},
    }  # fmt: skip
    path.write_text(json.dumps({"replicas": replicas, "redis": redis, "scheduling": patient, **waits, **more}))
    return path


@asynccontextmanager
async def gateways(
    folder: Path, engines: Sequence[WatchedEngine], redis: Sequence[dict[str, object]], **more: object
) -> AsyncIterator[list[GatewayProcess]]:
    """One for each of `redis`, a section each."""
    async with AsyncExitStack() as stack:
        paths = [configuration(folder / f"g{i}.yaml", engines, section, **more) for i, section in enumerate(redis)]
        found = await asyncio.gather(*(stack.enter_async_context(serving(path)) for path in paths))
        for gateway in found:
            await until_mode(gateway, "redis")
        yield found


async def shared_of(gateway: GatewayProcess) -> dict[str, object]:
    found: dict[str, object] = (await ask(gateway.url, get("/readyz"))).json()["shared"]
    return found


async def share_of(gateway: GatewayProcess, replica: str = "e0") -> float:
    text = (await ask(gateway.url, get("/metrics"))).body.decode()
    return from_page(text, "penstock_replica_share_ratio", replica=replica)


async def until_mode(gateway: GatewayProcess, *modes: str, gateways: int | None = None) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (found := await shared_of(gateway))["mode"] not in modes or gateways not in {None, found["gateways"]}:
            await asyncio.sleep(0.05)


async def until_shares_sum_to(gateways: Sequence[GatewayProcess], least: float, most: float = 1.0) -> None:
    """Of the first replica. They are asked one after the other, and what one gives another may be counted twice, or not at all."""
    async with asyncio.timeout(PATIENCE_S):
        while not least <= sum([await share_of(gateway) for gateway in gateways]) <= most:
            await asyncio.sleep(0.05)


async def until_share(gateway: GatewayProcess, least: float) -> float:
    """Until it has so much of the first replica; how long that took, in seconds."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with asyncio.timeout(PATIENCE_S):
        while await share_of(gateway) < least:
            await asyncio.sleep(0.02)
    return loop.time() - began_s


@dataclass
class Load:
    """Clients in a closed loop; what they got."""

    served: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    ended: bool = False

    async def until_served(self, more: int, *urls: str) -> None:
        """Until each of these got so many answers more than now."""
        wanted = {url: self.served.get(url, 0) + more for url in urls}
        async with asyncio.timeout(PATIENCE_S):
            while any(self.served.get(url, 0) < number for url, number in wanted.items()):
                await asyncio.sleep(0.05)

    async def client(self, url: str, tokens: int) -> None:
        """One request after the other, until `ended`."""
        body = chat("Hello", stream=True, max_tokens=tokens, ignore_eos=True)
        while not self.ended:
            try:
                answer = await ask(url, post(CHAT, body))
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.failures.append(f"{url}: {error!r}")
                await asyncio.sleep(0.1)
                continue
            if answer.status == 200 and answer.body.endswith(b"data: [DONE]\n\n") and b'"error"' not in answer.body:
                self.served[url] = self.served.get(url, 0) + 1
            else:
                self.failures.append(f"{url}: {answer.status} {answer.body[-200:]!r}")
                await asyncio.sleep(0.1)


@asynccontextmanager
async def load(clients: dict[str, int], tokens: int = 60) -> AsyncIterator[Load]:
    """So many clients at each URL, to the end of the block; the requests under way then are waited for."""
    found = Load()
    async with asyncio.TaskGroup() as tasks:
        for url, number in clients.items():
            for _ in range(number):
                tasks.create_task(found.client(url, tokens))
        try:
            yield found
        finally:
            found.ended = True
