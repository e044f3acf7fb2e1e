"""Several whole gateways in front of full replicas, in virtual time, and tenants that want all they can get: what each was served."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.support.asgi import Call, chat
from tests.support.fake_book import FakeBook, Store
from tests.support.fake_engine import FakeEngine, Script, whole_stream
from tests.support.gateways import Running, gateway_over
from tests.support.lines_in_memory import sharing_as_workers
from tests.support.tenants import asking, bearer, inline, key_for
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"
SEQUENCES = 16  # that a replica runs at once
SETTLE_S = 4.0  # a new book gives nothing for a lease and what comes after it
PATIENT = {"hedge": {"enabled": False}, "objectives": {"ttft_s": 600, "tpot_s": 60}}  # nobody is late or refused


@dataclass(frozen=True, slots=True)
class Demand:
    """Clients of one tenant at each gateway that it uses, each with its next request as soon as the last is answered."""

    tenant: str
    clients: Mapping[int, int]  # by gateway
    weight: float = 1.0
    from_s: float = 0.0  # after the gateways have settled


@dataclass
class Crowded:
    """What came of it: output tokens of each tenant, by the second in which they came."""

    served: dict[str, Counter[int]] = field(default_factory=dict)
    failed: int = 0
    most: int = 0  # requests that an engine ever had

    def between(self, tenant: str, from_s: float, until_s: float) -> int:
        return sum(n for second, n in self.served.get(tenant, Counter()).items() if from_s <= second < until_s)

    def total(self, from_s: float, until_s: float) -> int:
        return sum(self.between(tenant, from_s, until_s) for tenant in self.served)


def crowd(
    demands: Sequence[Demand],
    *,
    gateways: int = 0,
    workers: int = 0,
    replicas: int = 2,
    seconds: float = 20.0,
    deaf: bool = False,
) -> Crowded:
    """So many gateways over a book, or workers over a hub; `deaf`: to what others have served."""
    return run_virtual(_crowd(demands, gateways, workers, replicas, seconds, deaf))


async def _crowd(
    demands: Sequence[Demand], gateways: int, workers: int, replicas: int, seconds: float, deaf: bool
) -> Crowded:
    found, random, store = Crowded(), Random(7), Store()
    engines = {f"e{i}": FakeEngine(default=lambda: _answer(random)) for i in range(replicas)}
    async with AsyncExitStack() as stack:
        all_: list[Running] = []
        for i in range(gateways or workers):
            redis = {"url": "redis://book", "name": f"g{i}"} if gateways > 1 else None
            all_.append(await stack.enter_async_context(_gateway(store, redis, engines, demands)))
            if deaf:
                all_[-1].gateway.scheduler.stake.service.hear = lambda _words, _now: None  # type: ignore[method-assign]
        if workers:
            await stack.enter_async_context(sharing_as_workers(all_))
        await asyncio.sleep(SETTLE_S)
        began_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            for demand in demands:
                for gateway, clients in demand.clients.items():
                    for _ in range(clients):
                        tasks.create_task(_client(all_[gateway], demand, found, began_s, began_s + seconds))
    found.most = max(engine.max_running for engine in engines.values())
    return found


@asynccontextmanager
async def _gateway(
    store: Store, redis: dict[str, Any] | None, engines: Mapping[str, FakeEngine], demands: Sequence[Demand]
) -> AsyncIterator[Running]:
    keys = [inline(demand.tenant) for demand in demands]
    tenants = [{"name": demand.tenant, "weight": demand.weight} for demand in demands]
    sections: dict[str, Any] = {"tenants": tenants, "scheduling": PATIENT, "redis": redis or {}}
    config = asking(engines, *keys, capacity={"max_num_seqs": SEQUENCES, "kv_blocks": 65_536}, **sections)
    async with gateway_over(engines, config, book=FakeBook(store)) as running:
        yield running


def _answer(random: Random) -> Script:
    """Four tokens in about half a second: never at the same time as others."""
    return Script(whole_stream(4, prompt=25), gap_s=random.uniform(0.05, 0.1))


async def _client(running: Running, demand: Demand, found: Crowded, began_s: float, end_s: float) -> None:
    loop = asyncio.get_running_loop()
    body = json.dumps(chat("word " * 20, stream=True, max_tokens=4)).encode()
    await asyncio.sleep(demand.from_s)
    while loop.time() < end_s:
        call = Call(running.app, CHAT, body, headers=[bearer(key_for(demand.tenant))])
        await call.run()
        if call.status != 200 or not call.complete:
            found.failed += 1
            await asyncio.sleep(0.1)
            continue
        for at_s, data in call.chunks:
            if words := data.count(b'"content": "w'):
                found.served.setdefault(demand.tenant, Counter())[int(at_s - began_s)] += words
