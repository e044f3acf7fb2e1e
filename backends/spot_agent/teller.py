"""Keeps one gateway up to date about this machine, however often it fails to answer."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from backends.backoff import Backoff
from backends.spot_agent.admin_client import AdminClient, AdminError, ReplicaView
from backends.spot_agent.dealings import Dealings, Step, is_operators_own, nothing_to_restore
from backends.spot_agent.notice import Notice
from backends.spot_agent.source import Wall

log = logging.getLogger("penstock.spot_agent")

_RETRY_S: Final = 0.25
_RETRY_MAX_S: Final = 5.0  # a gateway that comes back is told within a sixth of the shortest notice
_LOOK_S: Final = 0.5  # while it empties the replica: the machine may be given up this much after the last stream's end
_LOOK_AT_HINT_S: Final = 5.0  # only to find out that it was restarted


class Teller:
    """`run` until cancelled; `want` says what stands."""

    def __init__(self, admin: AdminClient, replica: str, wall: Wall, on_released: Callable[[], None]) -> None:
        self._admin = admin
        self._replica = replica
        self._wall = wall
        self._on_released = on_released
        self._dealings = Dealings()
        self._stands: Notice | None = None
        self._changed = asyncio.Event()
        self._backoff = Backoff(_RETRY_S, _RETRY_MAX_S)
        self._failure = ""
        self._requests: int | None = None
        self._overdue = ""

    @property
    def url(self) -> str:
        return self._admin.url

    @property
    def released(self) -> bool:
        """Whether this gateway has let go of the machine, for what stands now."""
        return self._stands is not None and self._stands.ends_service and self._dealings.released

    def want(self, stands: Notice | None) -> None:
        self._stands = stands
        self._changed.set()

    async def run(self) -> None:
        while True:
            self._changed.clear()
            pause_s = await self._step()
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _step(self) -> float | None:
        """Does what is due; returns seconds until the next, None: nothing is."""
        stands = self._stands
        step = self._dealings.next(stands, self._wall())
        try:
            match step:
                case Step.REST:
                    self._say_overdue(stands)
                    return None
                case Step.RESTORE:
                    await self._restore()
                case Step.TELL:
                    assert stands is not None
                    self._dealings.telling(stands)
                    self._heard(await self._admin.notice(self._replica, stands), told=True)
                case Step.LOOK:
                    self._heard(await self._admin.replica(self._replica), told=False)
        except AdminError as error:
            if step is Step.LOOK:
                self._dealings.failed()
            self._tell_once(str(error))
            return self._backoff.next_s()
        if self._failure:
            log.info("gateway %s: answers again", self.url)
            self._failure = ""
        self._backoff.reset()
        if step is Step.RESTORE:
            return 0.0
        return _LOOK_S if stands is not None and stands.ends_service else _LOOK_AT_HINT_S

    async def _restore(self) -> None:
        told = self._dealings.told
        assert told is not None
        try:
            if is_operators_own(told, await self._admin.replica(self._replica)):
                log.info("gateway %s: drained by somebody else, so left as it is", self.url)
            else:
                view = await self._admin.restore(self._replica)
                log.info("gateway %s: %s is %s again", self.url, self._replica, view.lifecycle)
        except AdminError as error:
            if not nothing_to_restore(error.status):
                raise
        self._dealings.restored()
        self._requests = None

    def _heard(self, view: ReplicaView, *, told: bool) -> None:
        was_released = self._dealings.released
        self._dealings.answered(view)
        if told:
            log.info("gateway %s: took the notice, %s is %s", self.url, self._replica, view.lifecycle)
        if view.requests != self._requests and not self._dealings.released:
            log.info("gateway %s: %d requests left", self.url, view.requests)
        self._requests = view.requests
        if self._dealings.released and not was_released:
            log.info("gateway %s: released %s", self.url, self._replica)
            self._on_released()

    def _say_overdue(self, stands: Notice | None) -> None:
        if stands is None or not stands.ends_service or self._dealings.released or stands.id == self._overdue:
            return
        self._overdue = stands.id
        left = "it did not take the notice" if not self._dealings.certain else f"{self._requests} requests left"
        log.warning("gateway %s: the deadline has passed: %s", self.url, left)

    def _tell_once(self, failure: str) -> None:
        if failure != self._failure:
            self._failure = failure
            log.warning("gateway %s; trying again", failure)
