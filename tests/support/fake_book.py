"""The shared book without a Redis: kept in this process, some milliseconds away, and as unreachable as a test likes."""

import asyncio
import hashlib
from collections.abc import Callable

import msgspec

from batching.prefix_log import PrefixLog, Told
from batching.shared_book import Report, SharedBook
from batching.shelf import Kept
from batching.shelf import Shelf as PureShelf
from router.shared.book_in_redis import Heard
from router.shared.redis_line import Unreachable
from tests.support.fake_limits import FakeLimitLine, LimitStore

_EPOCH_MS = 1_764_000_000_000  # of the book's clock at 0.0 of the loop's


class Store:
    """What Redis would keep; every gateway of a test has a `FakeBook` on it."""

    def __init__(self) -> None:
        self.book = SharedBook()
        self.limits = LimitStore()
        self.server = 1
        self.notices: dict[bytes, bytes] = {}
        self.reports = 0
        self.prefixes = PrefixLog()
        self.learned = PureShelf()
        self.called: dict[str, Callable[[str], None]] = {}  # what listeners are called by
        self.told: dict[str, Callable[[bytes], None]] = {}

    def lose_everything(self) -> None:
        self.book, self.notices, self.prefixes = SharedBook(), {}, PrefixLog()
        self.server += 1

    @staticmethod
    def now_ms() -> int:
        return _EPOCH_MS + int(asyncio.get_running_loop().time() * 1000)


class FakeShelf:
    """`Shelf`, as far away as its book."""

    def __init__(self, book: "FakeBook") -> None:
        self._book = book

    async def put(self, name: str, body: bytes) -> None:
        await self._book.way()
        self._book.store.learned.put(Store.now_ms(), name, body)

    async def read(self) -> list[Kept]:
        await self._book.way()
        return self._book.store.learned.read(Store.now_ms())

    async def aclose(self) -> None:
        pass


class FakeBook:
    """`Book`. Out of reach, a call takes its whole time-out."""

    def __init__(self, store: Store, *, latency_s: float = 0.001, timeout_s: float = 0.5) -> None:
        self.store = store
        self.shelf = FakeShelf(self)
        self.reachable = True
        self.latency_s = latency_s
        self._timeout_s = timeout_s

    async def report(self, report: Report, stamp: bytes) -> Heard:
        await self.way()
        store = self.store
        store.reports += 1
        reply = store.book.report(store.now_ms(), f"server-{store.server}", report)
        if report.short:
            for called in self.store.called.values():
                asyncio.get_running_loop().call_later(self.latency_s, called, report.name)
        await self.way()
        now = store.notices.get(b"", b"")
        return Heard(reply=reply, stamp=now, notices=None if now == stamp else dict(store.notices))

    async def leave(self, name: str, instance: str) -> None:
        await self.way()
        self.store.book.leave(name, instance)

    async def note(self, replica: str, before: int, body: bytes, left_ms: int | None) -> int:
        await self.way()
        notices, now_ms = self.store.notices, self.store.now_ms()
        stood = notices.get(replica.encode())
        number: int = 0 if stood is None else msgspec.msgpack.decode(stood)[0]
        if number != before:
            return -1 - number
        number = max(number + 1, now_ms)
        notices[replica.encode()] = msgspec.msgpack.encode((number, body, 0 if left_ms is None else now_ms + left_ms))
        notices[b""] = f"{now_ms}:{hashlib.sha256(f'{replica}{number}'.encode()).hexdigest()}".encode()
        return number

    async def tell(self, message: bytes) -> None:
        await self.way()
        for told in self.store.told.values():
            asyncio.get_running_loop().call_later(self.latency_s, told, message)
        await self.way()

    async def listen(self, called: Callable[[str], None], told: Callable[[bytes], None]) -> None:
        me, store = str(id(self)), self.store
        store.called[me] = lambda name: called(name) if self.reachable else None
        store.told[me] = lambda message: told(message) if self.reachable else None
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            del store.called[me], store.told[me]

    def prefixes(self, holder: str) -> "FakePrefixes":
        return FakePrefixes(self, holder)

    def limits(self) -> FakeLimitLine:
        return FakeLimitLine(self.store.limits)

    async def aclose(self) -> None:
        pass

    async def way(self) -> None:
        """There or back. Raises Unreachable."""
        await asyncio.sleep(self.latency_s if self.reachable else self._timeout_s)
        if not self.reachable:
            raise Unreachable("timeout", f"no answer within {self._timeout_s:g} s")


class FakePrefixes:
    """`PrefixLine`, as far away as its book."""

    def __init__(self, book: FakeBook, holder: str) -> None:
        self._book = book
        self._holder = holder

    async def exchange(self, digest: bytes, after: int) -> Told:
        await self._book.way()
        store = self._book.store
        told = store.prefixes.exchange(store.now_ms(), self._holder, digest, after)
        await self._book.way()
        return told

    async def aclose(self) -> None:
        pass
