"""`penstock top` on a terminal: draws a frame at each event, says when the gateway is away, ends at q or Ctrl-C.

Decides when to draw; what a frame shows is `router.board.frame`'s, where documents come from `router.board.watching`'s.
"""

import asyncio
import os
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Final

from rich.console import Console
from rich.live import Live as Screen

from router.board.document import Live
from router.board.frame import View, frame
from router.board.replica_table import Sort
from router.board.watching import Away, Watching

_SORTS: Final[dict[str, Sort]] = {"n": "name", "k": "kv", "p": "price", "t": "tokens"}
_MOST_KEYS: Final = 64
_KEYS: Final = "q quits   sort: n name, k KV, p price, t tokens"


def view_of(console: Console, sort: Sort, *, live: bool = False, warning: str = "") -> View:
    """What this terminal can show."""
    return View(
        width=console.width,
        height=console.height if live else None,
        sort=sort,
        ascii=not console.encoding.lower().startswith("utf"),
        footer=f"{_KEYS}   now by {sort}" if live else "",
        warning=warning,
    )


def show_once(console: Console, document: Live, sort: Sort) -> None:
    """One frame, as long as it gets."""
    console.print(frame(document, view_of(console, sort)))


class Top:
    """`run` once."""

    def __init__(self, watching: Watching, console: Console, sort: Sort) -> None:
        self._watching = watching
        self._console = console
        self._sort = sort
        self._known: Live | None = None
        self._away = ""
        self._ended = False

    async def run(self) -> None:
        """Until q is pressed; raises AdminError where the gateway refuses or was never there."""
        task: asyncio.Task[None] | None = asyncio.current_task()
        assert task is not None
        with Screen(console=self._console, screen=True, auto_refresh=False) as screen:

            def pressed(key: str) -> None:
                if key == "q":
                    self._ended = True
                    task.cancel()
                elif key in _SORTS:
                    self._sort = _SORTS[key]
                    self._draw(screen)

            with _keys(pressed):
                try:
                    await self._follow(screen)
                except asyncio.CancelledError:
                    if not self._ended:  # it was Ctrl-C
                        raise
                    task.uncancel()

    async def _follow(self, screen: Screen) -> None:
        events: AsyncIterator[Live | Away]
        async with aclosing(self._watching.follow()) as events:  # type: ignore[type-var]  # it is a generator
            async for event in events:
                if isinstance(event, Away):
                    self._away = f"{self._watching.url} is away: {event.why}; trying again. This is the last it said"
                else:
                    self._known, self._away = event, ""
                self._draw(screen)

    def _draw(self, screen: Screen) -> None:
        if self._known is not None:
            view = view_of(self._console, self._sort, live=True, warning=self._away)
            screen.update(frame(self._known, view), refresh=True)


@contextmanager
def _keys(pressed: Callable[[str], None]) -> Iterator[None]:
    """Single keys as they are pressed; Ctrl-C stays what it is."""
    if not sys.stdin.isatty():
        yield
        return
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)

    def read() -> None:
        for key in os.read(descriptor, _MOST_KEYS).decode(errors="replace"):  # not by sys.stdin, which would keep some
            pressed(key)

    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
