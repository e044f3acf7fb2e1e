"""Two attempts at one answer: the first that has something for the client wins, the other is cancelled.

The first attempt runs in the request's own task, the second - if the scheduler places one - in a task of the race. Decides who has
won, once; what an attempt does and which leases there are is told by `router.attempt`. At most one second attempt a race.
"""

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from backends.backend import Backend, EngineReply
from batching.request import NOWHERE, ReplicaId
from batching.ticket import Placed
from router.openai.documents import Document


class Superseded(Exception):
    """The second attempt has something for the client, and the first had nothing yet."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A second attempt with something for the client. Whoever takes it owns the lease and the reply."""

    placed: Placed
    backend: Backend
    reply: EngineReply  # gives what was read once more
    document: Document | None  # of an answer that is not streamed: all of it


class Second(Protocol):
    """How a second attempt is made, for whoever races: of one request."""

    async def open(self, placed: Placed) -> Opened | None:
        """Gives back itself what it does not return."""
        ...

    async def discard(self, opened: Opened) -> None: ...

    def give_back(self, placed: Placed) -> None:
        """The lease; again if need be."""

    def count(self, outcome: str) -> None: ...


class Race:
    """`async with race:` around the first attempt, which must `claim` before it passes anything on; at the end, `close`."""

    __slots__ = (
        "_cancelled_before", "_cancelled_first", "_claimed", "_first", "_opened", "_over", "_placed", "_second", "_task", "superseded",
    )  # fmt: skip

    def __init__(self, second: Second) -> None:
        self._second = second
        self._first: asyncio.Task[Any] | None = None  # while the first attempt runs
        self._cancelled_before = 0  # requests to cancel that were there when it began
        self._cancelled_first = False
        self._task: asyncio.Task[None] | None = None
        self._placed: Placed | None = None
        self._opened: Opened | None = None
        self._over = False  # no second is wanted (any more)
        self._claimed = False
        self.superseded = False

    @property
    def tried(self) -> frozenset[ReplicaId]:
        """Where the second went."""
        return NOWHERE if self._placed is None else frozenset({self._placed.lease.replica})

    def offer(self, placed: Placed) -> None:
        """The scheduler has placed a second attempt."""
        if self._over or self._task is not None:
            self._second.give_back(placed)
            return
        self._placed = placed
        self._task = asyncio.get_running_loop().create_task(self._run(placed), name="hedge")

    def claim(self) -> None:
        """The first attempt has something for the client; raises `Superseded` if the second had it before."""
        if self.superseded:
            raise Superseded
        self._over = self._claimed = True
        self._call_off()

    async def rescued(self) -> bool:
        """The first attempt has failed: whether a second one is under way and will have something."""
        if self._task is None:
            return False
        await asyncio.wait({self._task})
        return self.superseded

    def take(self) -> Opened:
        """The winner; the caller owns it."""
        assert self._opened is not None, "the second has not won"
        opened, self._opened = self._opened, None
        return opened

    async def close(self) -> None:
        """Nothing of a second attempt is left behind, unless it was taken."""
        self._over = True
        if self._task is None:
            return
        self._call_off()
        try:
            if self._opened is not None:
                await self._second.discard(self.take())
            await asyncio.wait({self._task})
        finally:
            self._second.count(self._outcome())

    async def __aenter__(self) -> Self:
        first = self._first = asyncio.current_task()
        assert first is not None
        self._cancelled_before = first.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        first, self._first = self._first, None
        assert first is not None
        # A cancellation that is the race's own ends here; somebody else's beside it goes on, as with asyncio.Timeout.
        if self._cancelled_first and first.uncancel() <= self._cancelled_before and kind is asyncio.CancelledError:
            raise Superseded from None

    async def _run(self, placed: Placed) -> None:
        opened = await self._second.open(placed)
        if opened is None:
            return
        self._opened, self.superseded, self._over = opened, True, True
        if self._first is not None:
            self._cancelled_first = True
            self._first.cancel()  # wherever it waits

    def _call_off(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            assert self._placed is not None
            self._second.give_back(self._placed)  # a task that is cancelled before it begins gives nothing back

    def _outcome(self) -> str:
        if self.superseded:
            return "won"
        if self._task is not None and self._task.done() and not self._task.cancelled():
            return "failed"
        return "lost" if self._claimed else "cancelled"
