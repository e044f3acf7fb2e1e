"""Workers of one gateway tell each other what they learned of prefix caches, over their supervisor."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from batching.prefix_belief import PrefixBelief
from batching.replica import Lifecycle
from batching.request import ReplicaId
from batching.scheduler import Scheduler
from config.schema import Queue, Scheduling, Usage
from router.shared.prefixes import SharedPrefixes
from router.usage_book import UsageBook
from router.workers.hub import Hub
from router.workers.link import Link, Orders, connect
from router.workers.prefixes import PrefixesOverHub
from tests.support.patience import PATIENCE_S
from tests.support.scheduling import profile

A = ReplicaId("a")
CHUNKS = tuple(range(2**63, 2**63 + 300))


def belief() -> PrefixBelief:
    built = Scheduler(Scheduling(), Queue())
    built.add_replica(profile("a"), Lifecycle.READY, 0.0)
    return built.prefixes


class _Deaf:
    """Whatever the supervisor orders."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


async def until_believed(who: PrefixBelief, wanted: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while who.matched(CHUNKS).get(A, 0) != wanted:
            await asyncio.sleep(0.01)


async def test_workers_believe_the_same(tmp_path: Path):
    """What one placed the other knows, and one that starts later; of an eviction all hear. Without a supervisor each goes on by itself."""
    hub = Hub(3, lambda _seat, _banner: None, UsageBook(Usage(), 0))
    path = tmp_path / "hub.sock"
    await hub.serve(path)
    believers, links = [belief() for _ in range(3)], list[Link]()
    async with asyncio.TaskGroup() as tasks:
        standing = []

        async def begin(seat: int) -> None:
            link = await connect(path, seat)
            links.append(link)
            standing.append(tasks.create_task(link.run(cast(Orders, _Deaf()))))
            standing.append(tasks.create_task(SharedPrefixes(PrefixesOverHub(link), believers[seat]).run()))

        await begin(0)
        await begin(1)
        believers[0].correct(A, held=CHUNKS)
        await until_believed(believers[1], 300)
        await begin(2)
        await until_believed(believers[2], 300)
        believers[2].correct(A, lost=CHUNKS[100:])
        await until_believed(believers[0], 100)
        await until_believed(believers[1], 100)
        await hub.close()
        believers[0].correct(A, held=CHUNKS[:200])
        assert believers[0].matched(CHUNKS) == {A: 200}
        for task in standing:
            task.cancel()
    for link in links:
        with suppress(OSError):
            await link.close()
