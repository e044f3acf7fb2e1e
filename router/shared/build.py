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
from router.shared.fairness import SharedFairness
from router.shared.learned import SharedLearned
from router.shared.limits import SharedLimits
from router.shared.prefixes import PrefixLine, SharedPrefixes
from router.shared.seal import Seal
from router.shared.suspicion import SharedSuspicion
from router.suspicion import Suspicion
from router.tenants.tenancy import Tenancy

BookFactory = Callable[[SharedRedis], Book]


@dataclass(frozen=True, slots=True)
class Shared:
    """`leave` when all that ran has ended."""

    budgets: SharedBudgets
    learned: SharedLearned
    prefixes: SharedPrefixes | None  # who holds which beginnings of prompts; None: each process believes its own
    limits: SharedLimits | None  # of tenants; None: nobody is asked for a key

    async def begin(self) -> None:
        """Before anything is placed; takes one call's time at most."""
        await self.learned.begin()

    def work(self) -> dict[str, Coroutine[None, None, None]]:
        """By name, what goes on as long as the gateway serves."""
        budgets = self.budgets
        work = {
            "shared": budgets.run(),
            "shared-listen": budgets.listen(),
            "shared-tell": budgets.tell(),
            "learned": self.learned.run(),
        }
        if self.prefixes is not None:
            work["shared-prefixes"] = self.prefixes.run()
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
        leaving = [self.budgets.leave(), self.learned.leave()]
        if self.prefixes is not None:
            leaving.append(self.prefixes.leave())
        if self.limits is not None:
            leaving.append(self.limits.leave())
        await asyncio.gather(*leaving)


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
    book, instance = book_factory(redis), uuid4().hex
    budgets = SharedBudgets(
        book, admission, farewells, metrics,
        name=identity, instance=instance, terms=terms_of(redis, workers),
    )  # fmt: skip
    learned = SharedLearned(book.shelf, admission.scheduler.experience, metrics, identity)
    fairness = SharedFairness(admission.scheduler.stake.service, instance)
    budgets.topics += [SharedSuspicion(suspicion, budgets.soon), learned, fairness]
    limits = None
    if tenancy is not None:
        tenancy.accounts = limits = SharedLimits(book.limits(), redis, metrics, workers=workers)
    return Shared(budgets, learned, _prefixes(config, book.prefixes(instance), admission, metrics), limits)


def _prefixes(config: Config, line: PrefixLine, admission: Admission, metrics: Metrics) -> SharedPrefixes | None:
    """Sealed where the fleet has a secret; else a digest has what whoever may read there could make of a guessed prompt, too."""
    if not config.redis.share_prefixes:
        return None
    pepper = config.auth.pepper
    return SharedPrefixes(
        line,
        admission.scheduler.prefixes,
        seal=None if pepper is None else Seal(pepper.encode(), f"prefixes {config.redis.prefix}"),
        on_failure=lambda error: metrics.redis_errors_total.labels(error.kind).inc(),
    )
