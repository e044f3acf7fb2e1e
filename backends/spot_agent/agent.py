"""The agent: from what all sources say to what all gateways are told, and from their release to the cloud's."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from backends.spot_agent.admin_client import AdminClient, AdminError
from backends.spot_agent.metadata import MetadataError
from backends.spot_agent.notice import Notice, gravest
from backends.spot_agent.source import NoticeSource, Wall, standing
from backends.spot_agent.teller import Teller

log = logging.getLogger("penstock.spot_agent")

_HASTEN_TRIES: Final = 3  # it only makes the cloud faster; the machine goes anyway
_HASTEN_RETRY_S: Final = 0.5
_INTRODUCTION_S: Final = 2.0


class Agent:
    """Of one replica. Gateways are strangers to each other, so each must take the notice and let go for itself."""

    def __init__(
        self, sources: Sequence[NoticeSource], gateways: Sequence[AdminClient], *, replica: str, wall: Wall
    ) -> None:
        self._sources = sources
        self._gateways = gateways
        self._replica = replica
        self._wall = wall
        self._tellers = [Teller(gateway, replica, wall, self._on_released) for gateway in gateways]
        self._standing: dict[str, tuple[Notice, ...]] = {}
        self._told: Notice | None = None
        self._released = asyncio.Event()
        self._hastened: set[str] = set()

    async def run(self, *, until_released: bool) -> None:
        """Without end; or, `until_released`, until all gateways have let go of the machine."""
        async with asyncio.TaskGroup() as tasks:
            children = [tasks.create_task(self._introduce(gateway)) for gateway in self._gateways]
            children += [tasks.create_task(teller.run()) for teller in self._tellers]
            children += [tasks.create_task(self._watch(source)) for source in self._sources]
            while True:
                await self._released.wait()
                self._released.clear()
                if await self._let_go() and until_released:
                    break
            for child in children:
                child.cancel()

    async def _introduce(self, gateway: AdminClient) -> None:
        """A wrong name or key is told now, and not when the machine is going."""
        try:
            async with asyncio.timeout(_INTRODUCTION_S):
                view = await gateway.replica(self._replica)
        except AdminError as error:
            log.warning("gateway %s; a notice would be tried again until it is taken", error)
        except TimeoutError:
            log.warning("gateway %s: no answer yet; a notice would be tried again until it is taken", gateway.url)
        else:
            log.info("gateway %s: knows %s, which is %s", gateway.url, self._replica, view.lifecycle)

    async def _watch(self, source: NoticeSource) -> None:
        log.info("watching %s", source.name)
        async for notices in standing(source):
            if notices != self._standing.get(source.name, ()):
                self._standing[source.name] = notices
                self._decide()

    def _decide(self) -> None:
        stands = gravest(notice for notices in self._standing.values() for notice in notices)
        if stands == self._told:
            return
        if stands is None:
            log.info("the notice was withdrawn")
        else:
            log.warning("%s: %s", stands.what, self._left(stands))
        self._told = stands
        for teller in self._tellers:
            teller.want(stands)

    def _left(self, notice: Notice) -> str:
        if notice.deadline_unix_s is None:
            return f"{notice.kind}, no deadline"
        return f"{notice.kind}, {max(0.0, notice.deadline_unix_s - self._wall()):.0f} s left"

    def _on_released(self) -> None:
        if all(teller.released for teller in self._tellers):
            self._released.set()

    async def _let_go(self) -> bool:
        """Whether all have released it still; if so, the cloud is told where it waits for that."""
        if not all(teller.released for teller in self._tellers):
            return False  # another notice came in between
        log.info("released by %s: the machine may go", _count(len(self._tellers)))
        for source in self._sources:
            fresh = [n for n in self._standing.get(source.name, ()) if n.ends_service and n.id not in self._hastened]
            if fresh and await _hasten(source, fresh):
                self._hastened.update(notice.id for notice in fresh)
        return True


async def _hasten(source: NoticeSource, notices: Sequence[Notice]) -> bool:
    for left in reversed(range(_HASTEN_TRIES)):
        try:
            await source.hasten(notices)
        except MetadataError as error:
            log.warning("%s: %s%s", source.name, error, "; trying again" if left else "; the cloud will not wait less")
            await asyncio.sleep(_HASTEN_RETRY_S if left else 0)
        else:
            return True
    return False


def _count(gateways: int) -> str:
    return "the gateway" if gateways == 1 else f"all {gateways} gateways"
