"""All that one process shares with the other gateways of its fleet, where the configuration wants it; decides only under which name."""

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
from router.shared.fairness import SharedFairness

BookFactory = Callable[[SharedRedis], Book]


@dataclass(frozen=True, slots=True)
class Shared:
    """`leave` when all that ran has ended."""

    budgets: SharedBudgets

    def work(self) -> dict[str, Coroutine[None, None, None]]:
        """By name, what goes on as long as the gateway serves."""
        budgets = self.budgets
        return {"shared": budgets.run(), "shared-listen": budgets.listen(), "shared-tell": budgets.tell()}

    def refresh_gauges(self) -> None:
        """Before a scrape."""
        self.budgets.refresh_gauges()

    async def leave(self) -> None:
        await self.budgets.leave()


def build_shared(
    config: Config,
    book_factory: BookFactory,
    admission: Admission,
    farewells: Farewells,
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
    instance = uuid4().hex
    budgets = SharedBudgets(
        book_factory(redis), admission, farewells, metrics,
        name=identity, instance=instance, terms=terms_of(redis, workers),
    )  # fmt: skip
    budgets.topics += [SharedFairness(admission.scheduler.stake.service, instance)]
    return Shared(budgets)
