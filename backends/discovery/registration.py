"""Engines that say themselves that they are there, and say it again before their time is up."""

import asyncio
from dataclasses import dataclass
from typing import Final

from backends.discovery.found import Found, Tell
from config.replica import ReplicaConfig

SOURCE: Final = "registration"


class Full(Exception):
    """There are as many as there may be."""


@dataclass(frozen=True, slots=True)
class Registered:
    """One engine, until `ends_s` on the loop's clock."""

    replica: ReplicaConfig
    ends_s: float


class Registrations:
    """The table, and the source that tells of it."""

    def __init__(self, ttl_s: float, most: int) -> None:
        self.name = SOURCE
        self.ttl_s = ttl_s
        self._most = most
        self._known: dict[str, Registered] = {}
        self._changed = asyncio.Event()

    def put(self, replica: ReplicaConfig, now: float) -> None:
        """New, renewed or changed. Raises Full."""
        if replica.name not in self._known and len(self._known) >= self._most:
            raise Full
        self._known[replica.name] = Registered(replica, now + self.ttl_s)
        self._changed.set()

    def drop(self, name: str) -> bool:
        """Whether it was there."""
        if self._known.pop(name, None) is None:
            return False
        self._changed.set()
        return True

    def known(self, now: float) -> list[Registered]:
        """Those whose time is not up, by name."""
        return [self._known[name] for name in sorted(self._known) if self._known[name].ends_s > now]

    async def run(self, tell: Tell) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            known = self.known(loop.time())
            self._known = {one.replica.name: one for one in known}
            tell([Found(one.replica) for one in known])
            next_end_s = min((one.ends_s for one in known), default=None)
            try:
                async with asyncio.timeout_at(next_end_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
