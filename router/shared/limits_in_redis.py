"""The book of tenants' limits where it lives: one call to Redis for some tenants. Turns claims into a script's arguments and its answer into values.

Decides nothing about time or limits.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from config.shared import SharedRedis
from router.shared.limit_scripts import CLAIM, LEAVE
from router.shared.redis_line import RedisLine
from router.tenants.shared_limit_book import Call, Grant, Reply, Status, Told

_encode: Final = msgspec.msgpack.Encoder().encode


class LimitLine(Protocol):
    """Where the book is; the tests have one without a Redis."""

    async def call(self, call: Call) -> Reply:
        """Raises Unreachable; nobody knows then whether it was heard."""
        ...

    async def leave(self, instance: str, tenants: Sequence[tuple[str, str]]) -> None:
        """Of (tenant, month). Raises Unreachable."""
        ...

    async def aclose(self) -> None: ...


class LimitsInRedis:
    """`LimitLine`, and a line of its own: a report of budgets never waits behind it."""

    def __init__(self, config: SharedRedis) -> None:
        self._line = line = RedisLine(config)
        self._common = [line.key("limits"), line.key("limit-processes")]

    async def call(self, call: Call, *, now_ms: int | None = None, server: str = "") -> Reply:
        """`now_ms` and `server`: in tests, in place of Redis' own."""
        keys = [*self._common]
        for tenant, month, _ in call.claims:
            keys += self._of(tenant, month)
        arguments = (
            call.instance, call.number, call.epoch, *call.terms, _encode([claim for _, _, claim in call.claims]),
            "" if now_ms is None else now_ms, server,
        )  # fmt: skip
        found = await self._line.asked(CLAIM, keys, arguments)
        status = Status(found[0].decode())
        if status is Status.STALE:
            return Reply(status)
        _, epoch, now_ms, frozen, grants = found
        return Reply(status, epoch.decode(), now_ms, bool(frozen), tuple(map(_grant, grants)))

    async def leave(self, instance: str, tenants: Sequence[tuple[str, str]]) -> None:
        keys = [self._common[1]]
        for tenant, month in tenants:
            keys += self._of(tenant, month)
        await self._line.asked(LEAVE, keys, (instance,))

    async def aclose(self) -> None:
        await self._line.aclose()

    def _of(self, tenant: str, month: str) -> tuple[str, str]:
        return self._line.key(f"limit:{tenant}"), self._line.key(f"usd:{month}:{tenant}")


def _grant(numbers: Sequence[int]) -> Grant:
    requests, tokens, places, *told, usd = numbers
    return Grant(requests, tokens, places, Told(*told[:3]), Told(*told[3:]), usd)
