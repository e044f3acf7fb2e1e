"""All keys in force, wherever they are kept: in a file or the configuration, in Redis, or in both.

A store that cannot be read changes nothing: the last good keys stay in force, loudly. While it is so a key that is not among them may
still be a good one, so that `knows_all` is false and nobody is told that his key is wrong. Nothing here waits for a store while a
request does.
"""

import asyncio
from datetime import UTC, datetime

from config.tenants import Auth
from metrics.catalog import Metrics
from router.tenants.key_follower import KeyFollower
from router.tenants.key_index import REVOKED, Found
from router.tenants.keys import digest_of
from router.tenants.keys_in_redis import KeyBook, KeysInRedis
from router.tenants.local_keys import LocalKeys


class KeyStore:
    """`load` or `begin` first, then `watch`; until good keys were read, nobody is known."""

    def __init__(self, auth: Auth, metrics: Metrics, book: KeyBook | None = None) -> None:
        """`book`: in the place of a Redis."""
        self._pepper = None if auth.pepper is None else auth.pepper.encode()
        self._metrics = metrics
        self._local = LocalKeys(auth, metrics, self._show)
        if book is None and auth.keys_redis.enabled:
            book = KeysInRedis(auth.keys_redis)
        self._followed: KeyFollower | None = None
        if book is not None:
            self._followed = KeyFollower(book, auth.pepper, metrics, wall_s=_wall_s, changed=self._show)

    @property
    def ready(self) -> bool:
        """Whether the keys of every source were read once."""
        return self._local.ready and (self._followed is None or self._followed.ready)

    @property
    def knows_all(self) -> bool:
        return self._local.knows_all and (self._followed is None or self._followed.knows_all)

    def find(self, key: bytes) -> Found | None:
        """None: not among those in force. What is kept in two places is good while both say so."""
        digest = digest_of(key, self._pepper)
        local = self._local.find(digest)
        if self._followed is None:
            return local
        followed = self._followed.find(digest)
        if local is None or followed is None:
            return local or followed
        return min(local, followed, key=lambda found: (not found.mask & REVOKED, found.ends_s))

    def problem(self) -> str | None:
        """Why callers cannot be told apart."""
        if self._followed is None or self._followed.ready:
            return None
        return f"API keys in Redis: {self._followed.trouble}"

    def document(self) -> dict[str, object] | None:
        """Of what is kept in Redis, for `/readyz`."""
        return None if self._followed is None else self._followed.document()

    def load(self) -> None:
        """What is on this machine, at once, however long it takes; raises BadStore, and then nothing has changed."""
        self._local.load()

    def read_again(self) -> None:
        """Soon, whether or not anything seems to have changed."""
        self._local.read_again()
        if self._followed is not None:
            self._followed.read_again()

    async def begin(self) -> None:
        """Read what was not read yet. What cannot be read is said, and tried again by `watch`."""
        await self._local.begin()
        if self._followed is not None:
            await self._followed.begin()

    async def watch(self) -> None:
        """Until cancelled."""
        if self._followed is None:
            await self._local.watch()
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._local.watch(), name="keys-local")
                tasks.create_task(self._followed.run(), name="keys-followed")
                tasks.create_task(self._followed.listen(), name="keys-heard")
        finally:
            await self._followed.aclose()

    def _show(self) -> None:
        count = len(self._local) + (0 if self._followed is None else len(self._followed))
        self._metrics.keys.set(count)
        self._metrics.keys_stale.set(not self.knows_all)


def _wall_s() -> float:
    """Keys begin and end by the calendar."""
    return datetime.now(UTC).timestamp()
