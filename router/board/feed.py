"""One document a second for all who watch: made once, encoded once, given to each; nothing is made while nobody does.

Decides when to look and what a viewer gets that does not keep up: nothing but the next whole document. What is looked at, and how
bytes reach a client, are others' business.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

import msgspec

from router.board.changes import changes
from router.board.document import Live
from router.board.pulse import until_next
from router.openai.errors import draining, too_many_viewers

log = logging.getLogger("penstock")

MOST_VIEWERS: Final = 100  # of one process: each costs a write a second, and a forgotten browser tab is one
RETRY_MS: Final = 2000  # until a browser comes back to a gateway that was restarted
Look = Callable[[Live | None], Awaitable[Live]]


class Viewer:
    """One who watches; `with` it. Never has more than one event waiting."""

    def __init__(self, feed: "Feed") -> None:
        self._feed = feed
        self._waiting: bytes | None = None
        self._behind = True  # what it knows is not what the next event begins from
        self._wake = asyncio.Event()

    async def next(self) -> bytes | None:
        """The next event: whole at first, then what has changed; None: there will be no more."""
        while not self._feed.over:
            if self._behind:
                await self._feed.begin()
                # No await from here on: the next event begins from this one.
                self._behind, self._waiting = False, None
                return self._feed.whole()
            if self._waiting is not None:
                event, self._waiting = self._waiting, None
                return event
            self._wake.clear()
            await self._wake.wait()
        return None

    def give(self, event: bytes) -> None:
        """Kept if it has taken the one before; else it gets the whole once it comes for more."""
        if self._behind:
            return
        if self._waiting is None:
            self._waiting = event
        else:
            self._waiting, self._behind = None, True
        self._wake.set()

    def end(self) -> None:
        self._wake.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feed.leave(self)


class Feed:
    """`run` inside the gateway's task group."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._viewers: set[Viewer] = set()
        self._state: Live | None = None  # what viewers know by now; None: nobody watches
        self._encoded: bytes | None = None  # the same as an event
        self._looking = asyncio.Lock()
        self._watched = asyncio.Event()
        self.over = False

    def __len__(self) -> int:
        return len(self._viewers)

    async def run(self) -> None:
        """A look at each whole second, as long as somebody watches; until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._watched.wait()
            await asyncio.sleep(until_next(loop.time()))
            if not self._viewers:
                self._watched.clear()
            elif self._state is not None:  # else who watches has not begun yet
                try:
                    await self._go_on(self._state)
                except Exception:  # an error of ours costs a picture, not the gateway
                    log.exception("the board could not be brought up to date")

    def join(self) -> Viewer:
        """Raises ApiError where too many watch already, or the gateway is about to end."""
        if self.over:
            raise draining()
        if len(self._viewers) >= MOST_VIEWERS:
            raise too_many_viewers(MOST_VIEWERS)
        viewer = Viewer(self)
        self._viewers.add(viewer)
        self._watched.set()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers:
            self._state = self._encoded = None

    def end(self) -> None:
        """Every stream ends now; nobody may join."""
        self.over = True
        for viewer in self._viewers:
            viewer.end()

    async def document(self) -> Live:
        """The whole, for who looks once."""
        return await self._look(None) if self._state is None else self._state

    async def begin(self) -> None:
        """There is a whole document; at once, but for the first viewer."""
        async with self._looking:
            if self._state is None:
                self._state, self._encoded = await self._look(None), None

    def whole(self) -> bytes:
        """After `begin`; made once for all who need it."""
        assert self._state is not None
        if self._encoded is None:
            self._encoded = b"retry: %d\n" % RETRY_MS + event(self._state)
        return self._encoded

    async def _go_on(self, before: Live) -> None:
        async with self._looking:
            after = await self._look(before)
            if self._state is not before:
                return  # who watched has left; whoever has come since begins anew
            self._state, self._encoded = after, None
        told = event(changes(before, after))
        for viewer in self._viewers:
            viewer.give(told)

    def __repr__(self) -> str:
        return f"<Feed {len(self._viewers)} viewers{', over' if self.over else ''}>"


def event(live: Live) -> bytes:
    """As server-sent events have it; JSON has no line breaks."""
    return b"event: live\ndata: " + msgspec.json.encode(live) + b"\n\n"
