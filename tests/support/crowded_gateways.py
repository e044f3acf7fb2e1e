"""Several whole gateways in front of full replicas, in virtual time, and tenants that want all they can get: what each was served."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.support.asgi import Call, chat
from tests.support.fake_book import FakeBook, Store
from tests.support.fake_engine import FakeEngine, Script, whole_stream
from tests.support.gateways import Running, gateway_over
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
    from_s: float = 0.0  # after the gateways are settled
    until_s: float = 1e9


@dataclass
class Crowded:
    """What came of it: output tokens of each tenant, by the second in which they came."""

    served: dict[str, Counter[int]] = field(default_factory=dict)
    failed: int = 0

    def between(self, tenant: str, from_s: float, until_s: float) -> int:
        return sum(n for second, n in self.served.get(tenant, Counter()).items() if from_s <= second < until_s)


def crowd(
    demands: Sequence[Demand],
    *,
    gateways: int,
    replicas: int,
    seconds: float,
    prepare: Callable[[Running], None] = lambda _: None,
) -> Crowded:
    """So many gateways over so many replicas; `prepare` is called with each before anybody comes."""
    return run_virtual(_crowd(demands, gateways, replicas, seconds, prepare))


async def _crowd(
    demands: Sequence[Demand], gateways: int, replicas: int, seconds: float, prepare: Callable[[Running], None]
) -> Crowded:
    found, random = Crowded(), Random(7)
    engines = {f"e{i}": FakeEngine(default=lambda: _answer(random)) for i in range(replicas)}
    async with AsyncExitStack() as stack:
        all_: list[Running] = []
        store = Store()
        for i in range(gateways):
            all_.append(await stack.enter_async_context(_gateway(store, f"g{i}", engines, demands, gateways)))
            prepare(all_[-1])
        await asyncio.sleep(SETTLE_S)
        end_s = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as tasks:
            for demand in demands:
                for gateway, clients in demand.clients.items():
                    for _ in range(clients):
                        tasks.create_task(_client(all_[gateway], demand, found, end_s - seconds, end_s))
    return found


@asynccontextmanager
async def _gateway(
    store: Store, name: str, engines: Mapping[str, FakeEngine], demands: Sequence[Demand], gateways: int
) -> AsyncIterator[Running]:
    keys = [inline(demand.tenant) for demand in demands]
    tenants = [{"name": demand.tenant, "weight": demand.weight} for demand in demands]
    redis: dict[str, Any] = {"redis": {"url": "redis://book", "name": name}} if gateways > 1 else {}
    capacity = {"max_num_seqs": SEQUENCES, "kv_blocks": 65_536}
    config = asking(engines, *keys, tenants=tenants, capacity=capacity, scheduling=PATIENT, **redis)
    async with gateway_over(engines, config, book=FakeBook(store)) as running:
        yield running


def _answer(random: Random) -> Script:
    """Some ten tokens in about half a second: never at the same time as others."""
    return Script(whole_stream(10, prompt=20), gap_s=random.uniform(0.02, 0.06))


async def _client(running: Running, demand: Demand, found: Crowded, began_s: float, end_s: float) -> None:
    loop = asyncio.get_running_loop()
    body = json.dumps(chat("word " * 20, stream=True, max_tokens=10)).encode()
    await asyncio.sleep(demand.from_s)
    while loop.time() < min(end_s, began_s + demand.until_s):
        call = Call(running.app, CHAT, body, headers=[bearer(key_for(demand.tenant))])
        await call.run()
        if call.status != 200 or not call.complete:
            found.failed += 1
            await asyncio.sleep(0.1)
            continue
        for at_s, data in call.chunks:
            if words := data.count(b'"content":"w') + data.count(b'"content": "w'):
                found.served.setdefault(demand.tenant, Counter())[int(at_s - began_s)] += words
