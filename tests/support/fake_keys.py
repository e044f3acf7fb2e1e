"""API keys as Redis keeps them, without a Redis: what `router.tenants.key_scripts` says in Lua, and as unreachable as a test likes."""

import asyncio
from collections.abc import Callable, Sequence

from router.shared.redis_line import Unreachable
from router.tenants.keys_in_redis import Change, Changes


class FakeKeys:
    """`KeyBook`. Only the loop's time passes; a page has `page_records`, and after each `between` is called."""

    def __init__(self, *, page_records: int = 10, at_once: int = 500) -> None:
        self.records: dict[str, bytes] = {}
        self.head = ""
        self.log: list[tuple[str, tuple[str, ...]]] = []
        self.reachable = True
        self.messages = True
        self.between: Callable[[], None] = lambda: None
        self.page_s = 0.0  # that a page takes
        self.tags = 0
        self._page_records = page_records
        self._at_once = at_once
        self._called: list[Callable[[], None]] = []

    def lose_everything(self) -> None:
        self.records, self.head, self.log = {}, "", []

    def saved(self) -> tuple[dict[str, bytes], str, list[tuple[str, tuple[str, ...]]]]:
        return dict(self.records), self.head, list(self.log)

    def restore(self, saved: tuple[dict[str, bytes], str, list[tuple[str, tuple[str, ...]]]]) -> None:
        self.records, self.head, self.log = dict(saved[0]), saved[1], list(saved[2])

    async def changes(self, since: str) -> Changes:
        await self._way()
        return self.changes_now(since)

    def changes_now(self, since: str) -> Changes:
        keys = len(self.records)
        if self.head == since:
            return Changes(self.head, keys, [])
        stamps = [stamp for stamp, _ in self.log]
        if not self.head or since not in stamps or stamps[-1] != self.head:
            return Changes(self.head, keys)
        found: list[bytes] = []
        stamp = since
        for later, ids in self.log[stamps.index(since) + 1 :]:
            stamp = later
            found += [self.records.get(id_, b"") for id_ in ids]
            if len(found) >= self._at_once:
                break
        return Changes(stamp, keys, found, stamp == self.head)

    async def page(self, cursor: str) -> tuple[str, bytes]:
        await self._way()
        await asyncio.sleep(self.page_s)
        first = int(cursor)
        some = list(self.records.values())[first : first + self._page_records]
        following = first + self._page_records
        self.between()
        return (str(following) if following < len(self.records) else "0"), b"\n".join(some)

    async def get(self, ids: Sequence[str]) -> list[bytes]:
        await self._way()
        return [self.records.get(id_, b"") for id_ in ids]

    async def put(self, changes: Sequence[Change]) -> bool:
        await self._way()
        return self.put_now(changes)

    def put_now(self, changes: Sequence[Change]) -> bool:
        if any(self.records.get(change.id, b"") != change.before for change in changes):
            return False
        if not self.head:
            self.log = []
        self.tags += 1
        self.head = f"{int(self.head.partition(':')[0] or 0) + 1}:{self.tags}"
        self.log.append((self.head, tuple(change.id for change in changes)))
        self.records |= {change.id: change.after for change in changes}
        if self.messages and self.reachable:
            for called in self._called:
                called()
        return True

    async def listen(self, called: Callable[[], None]) -> None:
        await self._way()
        self._called.append(called)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._called.remove(called)

    async def aclose(self) -> None:
        pass

    async def _way(self) -> None:
        await asyncio.sleep(0.001 if self.reachable else 0.5)
        if not self.reachable:
            raise Unreachable("timeout", "no answer within 0.5 s")
