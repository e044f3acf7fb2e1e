"""The keys that are kept in Redis, as this process knows them: all are read at the start, then every change is followed.

Decides what is in force while Redis is away, half there, or another than it was: whatever was good stays good, and what was revoked
or has ended stays so. Nobody takes a key out of the store, so that a key which is not there any more was lost there. What a request's key is
worth is looked up in memory; nothing here is asked by a request.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from metrics.catalog import Metrics
from router.shared.redis_line import Unreachable
from router.tenants.key_columns import ColumnsOf
from router.tenants.key_index import Found, KeyIndex
from router.tenants.key_reading import BadStore
from router.tenants.keys import BadRecord, KeyRecord
from router.tenants.keys_in_redis import Changes, KeyBook, id_in

log = logging.getLogger("penstock.keys")

_LOOK_S: Final = 0.4  # between two looks at the stamp: where no message comes, a change has come to all within a second
_AGAIN_S: Final = 5.0  # after a reading that gave nothing: it may be a large one
_STEP_RECORDS: Final = 300  # about a millisecond, between two of which the event loop runs
_STEP_CHANGES: Final = 50  # the same, one by one
_SPARE: Final = 1024  # room for keys that are made later
_SAID_OF_BAD: Final = 5
_OVER: Final = "revoked"  # of a record that cannot be used and need not be

_decoder: Final = msgspec.json.Decoder(KeyRecord)


class KeyFollower:
    """`begin`, then `run` and `listen` until cancelled. `wall_s`: Unix time. `changed`: after anything that a gauge may show."""

    def __init__(
        self,
        book: KeyBook,
        pepper: str | None,
        metrics: Metrics,
        *,
        wall_s: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._book = book
        self._columns = ColumnsOf(pepper)
        self._metrics = metrics
        self._wall_s = wall_s
        self._changed = changed
        self._index: KeyIndex | None = None
        self._stamp = ""  # of the last change that the index has
        self._count = 0  # of records in Redis then
        self._bad: dict[str, str] = {}  # records that cannot be used, by id, and why
        self._lost = 0  # keys in force that Redis has not any more
        self._silent: str | None = "not asked yet"  # why nothing was heard last
        self._heard_s: float | None = None
        self._said: str | None = None
        self._told = asyncio.Event()
        self._all_again = False

    @property
    def ready(self) -> bool:
        return self._index is not None

    @property
    def knows_all(self) -> bool:
        """Else a key that is not found may still be a good one."""
        return self._index is not None and self.trouble is None

    def __len__(self) -> int:
        return 0 if self._index is None else len(self._index)

    def find(self, digest: bytes) -> Found | None:
        return None if self._index is None else self._index.find(digest)

    @property
    def trouble(self) -> str | None:
        """Why what is in force may not be all that should be."""
        if self._silent is not None:
            return self._silent
        if self._lost:
            return f"{self._lost} keys are not there any more; restore them, or start the gateways again to let them go"
        if broken := [f"{id_}: {why}" for id_, why in self._bad.items() if why != _OVER]:
            some = "; ".join(broken[:_SAID_OF_BAD])
            return f"{len(broken)} records cannot be used; mend them, or revoke them and make those keys anew; with HDEL take out only what never was a key: {some}"
        return None

    def document(self) -> dict[str, object]:
        """For `/readyz`, which is open to all: no ids."""
        age_s = None if self._heard_s is None else asyncio.get_running_loop().time() - self._heard_s
        state = "unread" if self._index is None else "unreachable" if self._silent is not None else None
        state = state or ("lost_keys" if self._lost else "bad_records" if self.trouble else "ok")
        return {"state": state, "age_s": None if age_s is None else round(age_s, 3)}

    def read_again(self) -> None:
        """All, soon."""
        self._all_again = True
        self._told.set()

    async def begin(self) -> None:
        """One try."""
        await self._look()

    async def run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(await self._look()):
                    await self._told.wait()
            self._told.clear()

    async def listen(self) -> None:
        """To those who make changes; without it a change is seen at the next look."""
        while True:
            with suppress(Unreachable):
                await self._book.listen(self._told.set)
            await asyncio.sleep(_LOOK_S)

    async def aclose(self) -> None:
        await self._book.aclose()

    # -- the task ----------------------------------------------------------------------------------------------------

    async def _look(self) -> float:
        """Seconds until the next."""
        pause_s = _LOOK_S
        try:
            await self._sync()
            self._silent, self._heard_s = None, asyncio.get_running_loop().time()
        except Unreachable as error:
            self._metrics.redis_errors_total.labels(error.kind).inc()
            self._silent = f"Redis does not answer ({error})"
        except BadStore as error:
            self._silent, pause_s = str(error), _AGAIN_S
        self._say()
        self._changed()
        return pause_s

    async def _sync(self) -> None:
        """Raises Unreachable, BadStore."""
        index = self._index
        if index is None or self._all_again:
            await self._read_all()
            return
        before, bad = len(index), dict(self._bad)
        heard = await self._catch_up(self._stamp, index, self._bad)
        if heard.records is None:
            await self._read_all()
            return
        if heard.stamp != self._stamp:
            self._metrics.key_loads_total.labels("ok").inc()
        self._stamp = heard.stamp
        self._count += len(index) - before
        if bad != self._bad:
            self._count = heard.keys  # which of the bad ones are new is not known
            await _end(_over(self._bad) - _over(bad), index)
        if heard.keys != self._count:  # somebody wrote there past us
            await self._read_all()

    async def _catch_up(self, stamp: str, index: KeyIndex, bad: dict[str, str]) -> Changes:
        """All changes since then come into the index. The last answer: without records where not all could come, which then must be read."""
        while True:
            heard = await self._book.changes(stamp)
            if heard.records is None or not index.has_room:
                return heard._replace(records=None)
            await self._take_all(index, heard.records, bad)
            stamp = heard.stamp
            if heard.whole:
                return heard

    async def _read_all(self) -> None:
        """Into an index of its own, which takes the place of the one in force when it is whole."""
        self._all_again = False
        heard, old = await self._book.changes("-"), self._index
        known = 0 if old is None else len(old)
        index = KeyIndex(max(heard.keys + heard.keys // 4, known) + _SPARE)
        bad: dict[str, str] = {}
        await self._take_pages(index, bad, heard.stamp)
        heard = await self._catch_up(heard.stamp, index, bad)
        if heard.records is None:
            raise BadStore("keys in Redis have changed faster than they can be read; they are read again")
        if len(index) + len(index.doubles) + len(bad) < heard.keys:
            what = f"{heard.keys} keys are in Redis, and only {len(index)} could be read; they are read again"
            raise BadStore(what)
        if old is None and not len(index):
            make = "`penstock keys create --redis URL --tenant NAME` makes one"
            why = next((f"; {id_}: {why}" for id_, why in bad.items()), "")
            raise BadStore(f"no keys are in Redis that can be used; {make}{why}")
        await _end(_over(bad), index, *(() if old is None else (old,)))
        lost = 0
        for came in () if old is None else index.take_over(old, self._wall_s()):
            lost += came
            await asyncio.sleep(0)
        log.info("API keys read from Redis: %d", len(index))
        self._index, self._stamp, self._count, self._bad, self._lost = index, heard.stamp, heard.keys, bad, lost
        self._metrics.key_loads_total.labels("ok").inc()

    async def _take_pages(self, index: KeyIndex, bad: dict[str, str], stamp: str) -> None:
        """All, the next one on its way while one is taken. What changes meanwhile comes into the index in force as soon as ever."""
        loop, failed = asyncio.get_running_loop(), None
        follows_s = loop.time() + _LOOK_S
        async with asyncio.TaskGroup() as tasks:
            coming = tasks.create_task(self._page("0"))
            while not isinstance(found := await coming, Unreachable):
                cursor, page = found
                if self._index is not None and (self._told.is_set() or loop.time() >= follows_s):
                    self._told.clear()
                    follows_s = loop.time() + _LOOK_S
                    failed = await self._follow(stamp)
                    if failed is not None:
                        break
                if cursor != "0":
                    coming = tasks.create_task(self._page(cursor))
                await self._take_page(index, page, bad)
                if cursor == "0":
                    break
            else:
                failed = found
        if failed is not None:
            raise failed

    async def _page(self, cursor: str) -> tuple[str, bytes] | Unreachable:
        try:
            return await self._book.page(cursor)
        except Unreachable as error:  # a task group would wrap it
            return error

    async def _follow(self, stamp: str) -> Unreachable | None:
        """What has changed since then, in the index in force."""
        assert self._index is not None
        try:
            await self._catch_up(stamp, self._index, self._bad)
        except Unreachable as error:
            return error
        return None

    async def _take_page(self, index: KeyIndex, page: bytes, bad: dict[str, str]) -> None:
        try:
            records = _decoder.decode_lines(page)
        except (msgspec.DecodeError, UnicodeDecodeError):
            await self._take_all(index, page.split(b"\n"), bad)
            return
        for first in range(0, len(records), _STEP_RECORDS):
            some = records[first : first + _STEP_RECORDS]
            try:
                index.join(self._columns(some))
            except BadRecord:
                for record in some:
                    self._add(index, record, bad)
            await asyncio.sleep(0)

    async def _take_all(self, index: KeyIndex, lines: Sequence[bytes], bad: dict[str, str]) -> None:
        for number, line in enumerate(lines, 1):
            self._take(index, line, bad)
            if number % _STEP_CHANGES == 0:
                await asyncio.sleep(0)

    def _take(self, index: KeyIndex, line: bytes, bad: dict[str, str]) -> None:
        if not line:
            return
        try:
            record = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            bad[id_in(line)] = f"no record of a key ({error})"
            return
        self._add(index, record, bad)

    def _add(self, index: KeyIndex, record: KeyRecord, bad: dict[str, str]) -> None:
        try:
            index.join(self._columns([record]))
        except BadRecord as error:
            bad[record.id] = str(error) if record.revoked is None else _OVER
        else:
            bad.pop(record.id, None)

    def _say(self) -> None:
        """Once at each change."""
        trouble = self.trouble
        if trouble == self._said:
            return
        self._said = trouble
        if trouble is None:
            log.info("API keys in Redis are followed again")
            return
        self._metrics.key_loads_total.labels("failed").inc()
        left = (
            "until they are read those who show one are answered 503"
            if self._index is None
            else "those that were good stay so"
        )
        log.error("API keys in Redis: %s; %s", trouble, left)


def _over(bad: Mapping[str, str]) -> set[str]:
    return {id_ for id_, why in bad.items() if why == _OVER}


async def _end(ids: Collection[str], *indexes: KeyIndex) -> None:
    """Records that cannot be used, and say that they are revoked, may have been good before somebody broke them."""
    for index in indexes if ids else ():
        for _ in index.revoke(ids):
            await asyncio.sleep(0)
