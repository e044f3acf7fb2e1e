"""All that one process shares with the other gateways of its fleet, where the configuration wants it; decides only under which name."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from uuid import uuid4

from config.schema import Config
from config.shared import SharedRedis
from metrics.catalog import Metrics
from router.admission import Admission
from router.farewell import Farewells
from router.shared.book_in_redis import Book
from router.shared.budgets import SharedBudgets, terms_of
from router.shared.learned import SharedLearned
from router.shared.suspicion import SharedSuspicion
from router.suspicion import Suspicion

BookFactory = Callable[[SharedRedis], Book]


@dataclass(frozen=True, slots=True)
class Shared:
    """`leave` when all that ran has ended."""

    budgets: SharedBudgets
    learned: SharedLearned

    async def begin(self) -> None:
        """Before anything is placed; takes one call's time at most."""
        await self.learned.begin()

    def work(self) -> dict[str, Coroutine[None, None, None]]:
        """By name, what goes on as long as the gateway serves."""
        return {"shared": self.budgets.run(), "shared-words": self.budgets.listen(), "learned": self.learned.run()}

    def refresh_gauges(self) -> None:
        """Before a scrape."""
        self.budgets.refresh_gauges()

    async def leave(self) -> None:
        await asyncio.gather(self.budgets.leave(), self.learned.leave())


def build_shared(
    config: Config,
    book_factory: BookFactory,
    admission: Admission,
    farewells: Farewells,
    suspicion: Suspicion,
    metrics: Metrics,
    *,
    identity: str,
    workers: int,
) -> Shared | None:
    """None: this gateway is alone. `identity`: of the process, unlike any other's; `workers`: of its gateway."""
    redis = config.redis
    if not redis.enabled:
        return None
    if redis.name is not None:
        identity = "/".join([redis.name, *identity.split("/")[1:]])  # a worker's seat stays
    book = book_factory(redis)
    budgets = SharedBudgets(
        book, admission, farewells, metrics,
        name=identity, instance=uuid4().hex, terms=terms_of(redis, workers),
    )  # fmt: skip
    learned = SharedLearned(book.shelf, admission.scheduler.experience, metrics, identity)
    budgets.topics += [SharedSuspicion(suspicion, budgets.soon), learned]
    return Shared(budgets, learned)
