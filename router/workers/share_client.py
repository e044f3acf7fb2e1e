"""When a worker reports what it has of each replica, pays for it and served: once a second, and sooner when somebody waits or others do.

Where the book is kept is the desk's business: here it is the supervisor, over its line.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol
from uuid import uuid4

from batching.payers import Payer, Paying
from batching.request import ReplicaId
from batching.share_holder import Holding
from batching.shares import Claim, HolderId, Running, Share
from router.admission import Admission
from router.telling import pause_s

_REPORT_S: Final = 1.0
_UNEASY_S: Final = 0.05  # while somebody waits, or others for what is in use here


class ShareDesk(Protocol):
    """Where the book of shares is kept, seen from a holder. Answers come by `ShareClient.take`, asked for or not."""

    live: int  # holders

    def tell_running(self, running: Mapping[ReplicaId, Running]) -> None:
        """What has changed of what runs; never waits, and may be lost."""
        ...

    def report(
        self, number: int, claims: Mapping[ReplicaId, Claim], payers: Mapping[ReplicaId, Payer], service: bytes
    ) -> None:
        """Hand in a report; never waits, and may be lost."""
        ...


class ShareClient:
    """Owns two timers. `begin` inside the loop."""

    def __init__(self, admission: Admission, desk: ShareDesk) -> None:
        self._admission = admission
        self._desk = desk
        self._instance = uuid4().hex
        self._holding = Holding(admission.scheduler.stake)
        self._paying = Paying(admission.scheduler.stake)
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._due_s = 0.0  # when it fires; uvloop's handle of what is due at once cannot say
        self._reported_s = 0.0
        self._pause_s = _UNEASY_S
        self._on_first: Callable[[], None] | None = None

    def begin(self, on_first: Callable[[], None]) -> None:
        """`on_first`: called at the first answer."""
        self._on_first = on_first
        self._admission.on_waiting = self._hurry
        self._report()
        self._tell()

    def close(self) -> None:
        for timer in (self._timer, self._telling):
            if timer is not None:
                timer.cancel()

    def take(self, number: int, shares: Mapping[ReplicaId, Share], paying: Mapping[ReplicaId, int]) -> None:
        """An answer of the desk."""
        now = asyncio.get_running_loop().time()
        lower = self._paying.take(number, paying, now)
        if self._holding.take(number, shares, now) or lower:
            self._report()
        self._admission.soon()
        if self._on_first is not None:
            first, self._on_first = self._on_first, None
            first()

    def hear(self, service: Mapping[HolderId, bytes]) -> None:
        """What other workers have served."""
        if service:
            self._admission.scheduler.stake.service.hear(service.values(), asyncio.get_running_loop().time())

    def beside(self, others: Mapping[ReplicaId, Running]) -> None:
        """What other workers have running by now."""
        self._holding.hear(others, asyncio.get_running_loop().time())
        self._admission.soon()

    def _tell(self) -> None:
        """The others what has changed here; again and again."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        if running := self._holding.running():
            self._desk.tell_running(running)
        self._telling = loop.call_later(pause_s(self._desk.live, cost_s=loop.time() - began_s), self._tell)

    def _hurry(self) -> None:
        """Somebody waits; whether for want of a share, the report will tell."""
        due_s = self._reported_s + self._pause_s
        if self._timer is not None and due_s < self._due_s:
            self._timer.cancel()
            self._due_s = due_s
            self._timer = asyncio.get_running_loop().call_at(due_s, self._report)

    def _report(self) -> None:
        loop = asyncio.get_running_loop()
        self._reported_s = loop.time()
        number, claims = self._holding.report()
        service = self._admission.scheduler.stake.service.tell(self._instance, self._reported_s)
        self._desk.report(number, claims, self._paying.report(number), service)
        # A large fleet takes a while to reckon: no more than a twentieth of the time is spent on it.
        self._pause_s = max(_UNEASY_S, 20 * (loop.time() - self._reported_s))
        if self._timer is not None:
            self._timer.cancel()
        uneasy = self._holding.short or self._holding.owing
        self._due_s = self._reported_s + (self._pause_s if uneasy else _REPORT_S)
        self._timer = loop.call_at(self._due_s, self._report)
