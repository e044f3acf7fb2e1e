"""The shelf where it lives: what gateways have learned, in Redis, over a line of its own. Decides nothing (`batching.shelf`)."""

from typing import Protocol

from batching.shelf import Kept
from config.shared import SharedRedis
from router.shared.redis_line import RedisLine
from router.shared.scripts import PUT, READ


class Shelf(Protocol):
    """The tests have one without a Redis."""

    async def put(self, name: str, body: bytes) -> None:
        """In place of what was there under this name. Raises Unreachable."""
        ...

    async def read(self) -> list[Kept]:
        """The latest first. Raises Unreachable."""
        ...

    async def aclose(self) -> None: ...


class ShelfInRedis:
    """`Shelf`."""

    def __init__(self, config: SharedRedis) -> None:
        self._line = RedisLine(config)
        self._keys = [self._line.key("learned")]

    async def put(self, name: str, body: bytes, *, now_ms: int | None = None) -> None:
        """`now_ms`: in tests, in place of Redis' own."""
        await self._line.asked(PUT, self._keys, (name, body, "" if now_ms is None else now_ms))

    async def read(self, *, now_ms: int | None = None) -> list[Kept]:
        found = await self._line.asked(READ, self._keys, ("" if now_ms is None else now_ms,))
        return [Kept(found[i].decode(), found[i + 1], found[i + 2]) for i in range(0, len(found), 3)]

    async def aclose(self) -> None:
        await self._line.aclose()
