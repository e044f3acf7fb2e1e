"""The keys of the file and of the configuration, and how they stay true to the file: read again when it changes, or when somebody says so.

A file that cannot be read changes nothing: the last good keys stay in force, loudly.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from config.tenants import Auth
from metrics.catalog import Metrics
from router.tenants.key_index import Found, KeyIndex
from router.tenants.key_reading import BadStore, Reading

log = logging.getLogger("penstock.keys")

_LOOK_S: Final = 1.0
_AGAIN_LOOKS: Final = 10  # a file that could not be read is tried again, even where nothing shows that it has changed

Look = tuple[int, ...]  # what a file's change shows in


class LocalKeys:
    """`load` or `begin` first, then `watch`; until good keys were read, nobody is known. `changed`: after anything that a gauge may show."""

    def __init__(self, auth: Auth, metrics: Metrics, changed: Callable[[], None]) -> None:
        self._auth = auth
        self._metrics = metrics
        self._changed = changed
        self._index: KeyIndex | None = None
        self._seen: Look | None = None  # of the file as it was last read
        self._failed: str | None = None  # why that gave nothing
        self._again = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether any keys are in force."""
        return self._index is not None

    @property
    def knows_all(self) -> bool:
        return self._index is not None and self._failed is None

    def __len__(self) -> int:
        return 0 if self._index is None else len(self._index)

    def find(self, digest: bytes) -> Found | None:
        return None if self._index is None else self._index.find(digest)

    def load(self) -> None:
        """At once, however long it takes; raises BadStore, and then nothing has changed."""
        seen = self._look()
        self._take(Reading(self._auth).whole(), seen)

    def read_again(self) -> None:
        """Soon, whether or not anything seems to have changed."""
        self._again.set()

    async def begin(self) -> None:
        """Read what was not read yet. One that cannot be read is said, and read again when it has changed."""
        if self._index is None:
            await self._reload(self._look())

    async def watch(self) -> None:
        """Until cancelled."""
        before, looks = self._seen, 0
        while True:
            told = await self._told()
            now = self._look()
            looks = looks + 1 if self._failed is not None else 0
            # A writer that does not put the file there whole is given the time: two looks must agree.
            if told or (now == before and (now != self._seen or looks >= _AGAIN_LOOKS)):
                await self._reload(now)
                looks = 0
            before = now

    async def _told(self) -> bool:
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._again.wait()
        except TimeoutError:
            return False
        self._again.clear()
        return True

    async def _reload(self, seen: Look | None) -> None:
        reading = Reading(self._auth)
        try:
            for _ in reading.steps():
                await asyncio.sleep(0)
        except BadStore as error:
            self._refuse(str(error), seen)
            return
        if self._look() == seen:  # else it changed under us, and is looked at again
            self._take(reading.index, seen)

    def _take(self, index: KeyIndex, seen: Look | None) -> None:
        if self._index is not None or self._failed is not None:
            log.info("API keys read: %d", len(index))
        self._index, self._seen, self._failed = index, seen, None
        self._metrics.key_loads_total.labels("ok").inc()
        self._changed()

    def _refuse(self, why: str, seen: Look | None) -> None:
        said, self._seen, self._failed = why == self._failed, seen, why
        left = (
            "nobody can be told apart, and all are answered 503"
            if self._index is None
            else "the last good ones stay in force"
        )
        if not said:
            log.error("API keys cannot be read; %s: %s", left, why)
        self._metrics.key_loads_total.labels("failed").inc()
        self._changed()

    def _look(self) -> Look | None:
        if self._auth.keys_file is None:
            return None
        try:
            found = Path(self._auth.keys_file).stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
