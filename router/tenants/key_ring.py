"""The keys in Redis as `penstock keys` writes them: one change at a time, which all gateways hear of.

Two commands at once take turns by trying again: what is written replaces just what was read.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from router.shared.redis_line import Unreachable
from router.tenants.key_changes import KeysError, Unconfirmed, made, revoked, rotated
from router.tenants.keys import KeyRecord, new_id
from router.tenants.keys_in_redis import Change, KeyBook, id_in

log = logging.getLogger("penstock.keys")

_TRIES: Final = 50
_AT_ONCE: Final = 200
T = TypeVar("T")
_encode: Final = msgspec.json.encode
_FEW: Final = "not so many replicas have it as auth.keys_redis.wait_replicas wants"


class KeyRing:
    """`book` is made in each call's own loop. `now`: of the calendar, with its zone. All raise KeysError; what makes a key, Unconfirmed, too."""

    def __init__(self, book: Callable[[], KeyBook], pepper: bytes | None, now: Callable[[], datetime]) -> None:
        self._book = book
        self._pepper = pepper
        self._now = now

    def records(self) -> list[KeyRecord]:
        """All, by the time they were made at; what is no record is told."""

        async def read(book: KeyBook) -> list[KeyRecord]:
            found: dict[str, KeyRecord] = {}
            bad: set[str] = set()
            cursor = ""
            while cursor != "0":
                cursor, page = await book.page(cursor or "0")
                for line in filter(None, page.split(b"\n")):
                    record = _record(line)
                    if record is None:
                        bad.add(id_in(line))
                    else:
                        found[record.id] = record
            for id_ in sorted(bad):
                log.warning(
                    "%s: no record of a key, so it is not listed; mend it, or, if it never was a key, take it out with HDEL",
                    id_,
                )
            return sorted(found.values(), key=lambda record: (str(record.created), record.id))

        return self._with_book(read)

    def create(self, record: KeyRecord) -> tuple[str, KeyRecord]:
        """A new key, told only now, and its record: as given, with an id and a hash."""
        key, record = made(msgspec.structs.replace(record, created=self._now()), self._pepper)

        async def write(book: KeyBook) -> KeyRecord | None:
            mine = msgspec.structs.replace(record, id=new_id())
            await book.get([mine.id])  # where nobody answers nothing is begun
            try:
                return mine if await book.put([Change(mine.id, b"", _encode(mine))]) else None
            except Unreachable as error:
                raise Unconfirmed(await _why_unsure(book, mine.id, error), key, mine) from None

        return key, self._tried(write)

    def revoke(self, id_: str) -> KeyRecord:
        """All gateways that hear Redis know within a second. A key that is revoked already stays so."""

        async def write(book: KeyBook) -> KeyRecord | None:
            before, record = await _found(book, id_)
            after = revoked(record, self._now())
            return after if after is record or await book.put([Change(id_, before, _encode(after))]) else None

        return self._tried(write)

    def rotate(self, id_: str, overlap: timedelta) -> tuple[str, KeyRecord, KeyRecord]:
        """A new key for the same, the new record, and the old one, which is good for `overlap` more."""

        async def write(book: KeyBook) -> tuple[str, KeyRecord, KeyRecord] | None:
            before, old = await _found(book, id_)
            key, fresh, ended = rotated(old, new_id(), overlap, self._now(), self._pepper)
            changes = [Change(id_, before, _encode(ended)), Change(fresh.id, b"", _encode(fresh))]
            try:
                return (key, fresh, ended) if await book.put(changes) else None
            except Unreachable as error:
                raise Unconfirmed(await _why_unsure(book, fresh.id, error, id_), key, fresh, ended) from None

        return self._tried(write)

    def bring(self, records: Sequence[KeyRecord]) -> int:
        """Those that are not there yet come there, as they are; how many."""

        async def write(book: KeyBook) -> int:
            brought, left = 0, iter(records)
            while some := list(islice(left, _AT_ONCE)):
                there = await book.get([record.id for record in some])
                _refuse_others(some, there)
                new = [record for record, found in zip(some, there, strict=True) if not found]
                if new and not await book.put([Change(record.id, b"", _encode(record)) for record in new]):
                    raise KeysError("somebody else writes there just now; do it again")
                brought += len(new)
            return brought

        return self._with_book(write)

    def _tried(self, write: Callable[[KeyBook], Coroutine[Any, Any, T | None]]) -> T:
        async def again(book: KeyBook) -> T:
            for _ in range(_TRIES):
                found = await write(book)
                if found is not None:
                    return found
            raise KeysError("somebody else writes there all the time; do it again")

        return self._with_book(again)

    def _with_book(self, work: Callable[[KeyBook], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            book = self._book()
            try:
                return await work(book)
            finally:
                await book.aclose()

        try:
            return asyncio.run(run())
        except Unreachable as error:
            told = f": {_FEW}; it is written, though" if error.kind == "replicas" else ""
            raise KeysError(f"Redis: {error}{told}") from None


def _refuse_others(records: Sequence[KeyRecord], there: Sequence[bytes]) -> None:
    for record, found in zip(records, there, strict=True):
        other = _record(found)
        if other is not None and (other.sha256, other.hmac) != (record.sha256, record.hmac):
            raise KeysError(f"another key is called {record.id} there; give this one another `id`")


async def _found(book: KeyBook, id_: str) -> tuple[bytes, KeyRecord]:
    """(as it stands there, what it says)."""
    (before,) = await book.get([id_])
    if not id_ or not before:
        raise KeysError(f"no key is called {id_!r} in Redis; `penstock keys list` shows them")
    record = _record(before)
    if record is None:
        raise KeysError(f"{id_}: no record of a key; nothing is written over it; mend it first")
    return before, record


async def _why_unsure(book: KeyBook, id_: str, error: Unreachable, old: str | None = None) -> str:
    """Of a new key that is written. Raises KeysError where it is not, or nobody can say; the key is lost then."""
    try:
        (there,) = await book.get([id_])
    except Unreachable:
        again = "make another" if old is None else f"rotate {old} again, which may have got its end"
        what = f"{id_} may be written all the same; if `penstock keys list` shows it, revoke it, since nobody knows that key, and {again}"
        raise KeysError(f"Redis: {error}: {what}") from None
    if not there:
        raise KeysError(
            f"Redis: {error}: nothing is written; do it again, and revoke {id_} if `penstock keys list` shows it later"
        ) from None
    return f"Redis: {error}: {_FEW if error.kind == 'replicas' else 'it was not confirmed'}; it is written, though: look with `penstock keys list` later on"


def _record(line: bytes) -> KeyRecord | None:
    try:
        return msgspec.json.decode(line, type=KeyRecord)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
