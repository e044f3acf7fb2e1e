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
from router.shared.limits import SharedLimits
from router.tenants.tenancy import Tenancy

BookFactory = Callable[[SharedRedis], Book]


@dataclass(frozen=True, slots=True)
class Shared:
    """`leave` when all that ran has ended."""

    budgets: SharedBudgets
    limits: SharedLimits | None = None  # of tenants; None: nobody is asked for a key

    def work(self) -> dict[str, Coroutine[None, None, None]]:
        """By name, what goes on as long as the gateway serves."""
        work = {"shared": self.budgets.run(), "shared-words": self.budgets.listen()}
        if self.limits is not None:
            work["shared-limits"] = self.limits.run()
        return work

    def document(self) -> dict[str, object]:
        """For `/readyz`."""
        limits = {} if self.limits is None else {"limits": self.limits.mode}
        return self.budgets.document() | limits

    def refresh_gauges(self) -> None:
        """Before a scrape."""
        self.budgets.refresh_gauges()

    async def leave(self) -> None:
        if self.limits is not None:
            await self.limits.leave()
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
    tenancy: Tenancy | None = None,
) -> Shared | None:
    """None: this gateway is alone. `identity`: of the process, unlike any other's; `workers`: of its gateway.

    The accounts of `tenancy` are what all gateways count together from now on.
    """
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
    if tenancy is None:
        return Shared(budgets)
    tenancy.accounts = limits = SharedLimits(book.limits(), redis, metrics, workers=workers)
    return Shared(budgets, limits)
