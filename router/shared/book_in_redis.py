"""The shared book where it lives: one call to Redis a report, and one for each message that may be lost. Turns values into a script's arguments and its answer into values.

Decides nothing about time or shares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from batching.request import ReplicaId
from batching.shared_book import Entry, Record, Reply, Report, Status, Terms
from config.shared import SharedRedis
from router.shared.limits_in_redis import LimitLine, LimitsInRedis
from router.shared.prefixes import PrefixesInRedis, PrefixLine
from router.shared.redis_line import RedisLine
from router.shared.scripts import LEAVE, NOTE, PUBLISH, REPORT
from router.shared.shelf import Shelf, ShelfInRedis

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """An answer: about shares, and - where they are not those of `stamp` - all notices."""

    reply: Reply
    stamp: bytes = b""
    notices: dict[bytes, bytes] | None = None


class Book(Protocol):
    """Where the shared book is; the tests have one without a Redis."""

    @property
    def shelf(self) -> Shelf:
        """What gateways have learned; on a line of its own."""
        ...

    async def report(self, report: Report, stamp: bytes) -> Heard:
        """Raises Unreachable."""
        ...

    async def leave(self, name: str, instance: str) -> None:
        """Raises Unreachable."""
        ...

    async def note(self, replica: str, before: int, body: bytes, left_ms: int | None) -> int:
        """Write what stands against a replica, if what stood was number `before` (0: nothing); empty `body`: nothing any more.

        Returns the number that stands now, negative if it was another. Raises Unreachable.
        """
        ...

    async def tell(self, message: bytes) -> None:
        """To all who listen, once; it may be lost. Raises Unreachable."""
        ...

    async def listen(self, called: Callable[[str], None], told: Callable[[bytes], None]) -> None:
        """Until it fails or is cancelled: `called` with the name of each holder that says it is short, `told` with each message.

        Raises Unreachable.
        """
        ...

    def prefixes(self, holder: str) -> PrefixLine:
        """A line for digests of prefix caches, which never holds the book up; `holder` is unlike any other process."""
        ...

    def limits(self) -> LimitLine:
        """The book of tenants' limits beside it, on a line of its own."""
        ...

    async def aclose(self) -> None: ...


class BookInRedis:
    """`Book`, on a line of its own."""

    def __init__(self, config: SharedRedis) -> None:
        self._config = config
        self._line = line = RedisLine(config)
        self.shelf = ShelfInRedis(config)
        self._keys = [line.key(name) for name in ("book", "words", "notices")]
        self._channel, self._news = line.key("short"), line.key("running")
        self._telling = RedisLine(config)  # no report waits behind it

    async def report(self, report: Report, stamp: bytes, *, now_ms: int | None = None, server: str = "") -> Heard:
        """`now_ms` and `server`: in tests, in place of Redis' own."""
        arguments = (
            report.name, report.instance, report.number, *report.terms, _encode(report.wishes), _encode(report.known),
            report.join.value, report.words, stamp, "" if now_ms is None else now_ms, server,
            self._channel if report.short else "",
        )  # fmt: skip
        return _heard(await self._line.asked(REPORT, self._keys, arguments, waits=True))

    async def leave(self, name: str, instance: str) -> None:
        await self._line.asked(LEAVE, self._keys[:2], (name, instance))

    async def note(self, replica: str, before: int, body: bytes, left_ms: int | None) -> int:
        arguments = (replica, before, body, "" if left_ms is None else left_ms)
        return int(await self._line.asked(NOTE, self._keys[2:], arguments, waits=True))

    async def tell(self, message: bytes) -> None:
        await self._telling.asked(PUBLISH, (), (self._news, message))

    async def listen(self, called: Callable[[str], None], told: Callable[[bytes], None]) -> None:
        await self._line.listen({self._channel: lambda name: called(name.decode()), self._news: told})

    def prefixes(self, holder: str) -> PrefixLine:
        return PrefixesInRedis(self._config, holder)

    def limits(self) -> LimitLine:
        return LimitsInRedis(self._config)

    async def aclose(self) -> None:
        await self._line.aclose()
        await self._telling.aclose()


def _heard(found: list[Any]) -> Heard:
    status = Status(found[0].decode())
    if status is not Status.OK:
        return Heard(reply=Reply(status=status))
    _, now_ms, frozen, bounds, others, stamp, notices = found
    records = {others[i].decode(): _record(others[i + 1], others[i + 2]) for i in range(0, len(others), 3)}
    reply = Reply(
        status=status,
        now_ms=now_ms,
        frozen=bool(frozen),
        bounds={ReplicaId(bounds[i].decode()): bounds[i + 1] for i in range(0, len(bounds), 2)},
        others=records,
    )
    told = None if notices is None else {notices[i]: notices[i + 1] for i in range(0, len(notices), 2)}
    return Heard(reply=reply, stamp=stamp, notices=told)


def _record(packed: bytes, words: bytes) -> Record:
    instance, number, heard_ms, lease_ms, settle_ms, forget_ms, static, lapsed, suspect, entries = _decode(packed)
    return Record(
        instance=instance,
        number=number,
        heard_ms=heard_ms,
        terms=Terms(lease_ms, settle_ms, forget_ms, static),
        # Lua's empty table is a list.
        entries={ReplicaId(replica): Entry(*entry) for replica, entry in dict(entries).items()},
        lapsed=bool(lapsed),
        suspect=bool(suspect),
        words=words,
    )
