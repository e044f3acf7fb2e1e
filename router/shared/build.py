"""The shared budgets of one process, where the configuration wants them; decides only under which name."""

from collections.abc import Callable
from uuid import uuid4

from config.schema import Config
from config.shared import SharedRedis
from metrics.catalog import Metrics
from router.admission import Admission
from router.farewell import Farewells
from router.shared.book_in_redis import Book
from router.shared.budgets import SharedBudgets, terms_of

BookFactory = Callable[[SharedRedis], Book]


def build_shared(
    config: Config,
    book_factory: BookFactory,
    admission: Admission,
    farewells: Farewells,
    metrics: Metrics,
    *,
    identity: str,
    workers: int,
) -> SharedBudgets | None:
    """None: this gateway is alone. `identity`: of the process, unlike any other's; `workers`: of its gateway."""
    redis = config.redis
    if not redis.enabled:
        return None
    if redis.name is not None:
        identity = "/".join([redis.name, *identity.split("/")[1:]])  # a worker's seat stays
    return SharedBudgets(
        book_factory(redis), admission, farewells, metrics,
        name=identity, instance=uuid4().hex, terms=terms_of(redis, workers),
    )  # fmt: skip
