"""API keys where they are kept in Redis: one call an operation. Turns values into scripts' arguments and answers into values.

Decides nothing about what a record says, or when to ask.
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Protocol
from zlib import crc32

import msgspec

from config.shared import RedisServer
from router.shared.redis_line import RedisLine
from router.tenants.key_scripts import CHANGES, GET, PAGE, PUT

_CHANGES_AT_ONCE: Final = 500
_PAGE_RECORDS: Final = 300  # a millisecond of Redis' time, and of ours
_CHANGES_KEPT: Final = 10_000  # a gateway that has missed more reads all keys again


class Changes(NamedTuple):
    """What has changed since a stamp. `keys` there are; `records` as they are now; None: it is not known any more, so read all. `whole`: there is no more."""

    stamp: str
    keys: int
    records: list[bytes] | None = None
    whole: bool = True


class Change(NamedTuple):
    """Of one key; empty `before`: there was none."""

    id: str
    before: bytes
    after: bytes


def id_in(line: bytes) -> str:
    """Of what is no record: its beginning would be, but may show a hash."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        found = msgspec.json.decode(line, type=dict[str, object]).get("id")
        if isinstance(found, str):
            return "".join(c if c.isprintable() else "?" for c in found[:32])
    return f"without an id ({crc32(line):08x})"


class KeyBook(Protocol):
    """Where the keys are; the tests have one without a Redis."""

    async def changes(self, since: str) -> Changes:
        """Raises Unreachable, as all of these."""
        ...

    async def page(self, cursor: str) -> tuple[str, bytes]:
        """(the next cursor, `0` after the last page; records, a line each). Begin with `0`. Some may come twice."""
        ...

    async def get(self, ids: Sequence[str]) -> list[bytes]:
        """Empty for what is not there."""
        ...

    async def put(self, changes: Sequence[Change]) -> bool:
        """All of them, or - where something was not as it is thought to be - none."""
        ...

    async def listen(self, called: Callable[[], None]) -> None:
        """Until it fails or is cancelled: `called` after each change."""
        ...

    async def aclose(self) -> None: ...


class KeysInRedis:
    """`KeyBook`, on a line of its own: pages are large."""

    def __init__(self, config: RedisServer) -> None:
        self._line = line = RedisLine(config)
        self._keys = [line.key("keys"), line.key("keys-log")]
        self._channel = line.key("keys-changed")

    async def changes(self, since: str) -> Changes:
        found = await self._line.asked(CHANGES, self._keys, (since, _CHANGES_AT_ONCE))
        stamp, count = found[0].decode(), int(found[1])
        if len(found) == 2:
            return Changes(stamp, count)
        return Changes(stamp, count, list(found[3]), bool(found[2]))

    async def page(self, cursor: str) -> tuple[str, bytes]:
        following, records = await self._line.asked(PAGE, self._keys[:1], (cursor, _PAGE_RECORDS))
        return following.decode(), records

    async def get(self, ids: Sequence[str]) -> list[bytes]:
        return list(await self._line.asked(GET, self._keys[:1], ids))

    async def put(self, changes: Sequence[Change]) -> bool:
        told = [part for change in changes for part in change]
        arguments = (secrets.token_hex(8), self._channel, _CHANGES_KEPT, *told)
        return bool(await self._line.asked(PUT, self._keys, arguments, waits=True))

    async def listen(self, called: Callable[[], None]) -> None:
        await self._line.listen({self._channel: lambda _: called()})

    async def aclose(self) -> None:
        await self._line.aclose()
