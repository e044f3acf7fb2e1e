"""The shared book of limits without a Redis: kept in this process, some milliseconds away, unreachable or half deaf as a test likes."""

import asyncio
from collections.abc import Sequence

from router.shared.redis_line import Unreachable
from router.tenants.shared_limit_book import Call, Reply, SharedLimitBook

_EPOCH_MS = 1_764_000_000_000  # of the book's clock at 0.0 of the loop's


class LimitStore:
    """What Redis would keep; every process of a test has a `FakeLimitLine` on it."""

    def __init__(self) -> None:
        self.book = SharedLimitBook()
        self.server = 1

    def lose_everything(self) -> None:
        """Dollars, too."""
        self.book = SharedLimitBook()
        self.server += 1


class FakeLimitLine:
    """`LimitLine`. Out of reach, a call takes its whole time-out."""

    def __init__(self, store: LimitStore, *, latency_s: float = 0.001, timeout_s: float = 0.5) -> None:
        self.store = store
        self.reachable = True
        self.answers = True  # False: calls arrive, answers do not
        self.calls = 0
        self.latency_s = latency_s
        self._timeout_s = timeout_s

    async def call(self, call: Call) -> Reply:
        self.calls += 1
        await self._way(self.reachable)
        now_ms = _EPOCH_MS + int(asyncio.get_running_loop().time() * 1000)
        reply = self.store.book.call(now_ms, f"server-{self.store.server}", call)
        await self._way(self.reachable and self.answers)
        return reply

    async def leave(self, instance: str, tenants: Sequence[tuple[str, str]]) -> None:
        await self._way(self.reachable)
        self.store.book.leave(instance, tenants)

    async def aclose(self) -> None:
        pass

    async def _way(self, free: bool) -> None:
        await asyncio.sleep(self.latency_s if free else self._timeout_s)
        if not free:
            raise Unreachable("timeout", f"no answer within {self._timeout_s:g} s")
