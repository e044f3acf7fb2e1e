"""A bar on the terminal while a run goes on; nothing where nobody looks."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from router.simulation.run import Life, Watcher

_SHOWN: Final = 500  # moves of the bar: finer than a terminal is wide, coarse enough to cost nothing


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Called with how many of `total` are done; draws on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - slow to load, and most runs have no terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


class Ended(Watcher):
    """Counts the requests that have ended and tells `show`, now and then."""

    def __init__(self, total: int, show: Callable[[int], None]) -> None:
        self._ended = 0
        self._every = max(1, total // _SHOWN)
        self._show = show

    def ended(self, number: int, life: Life, now: float) -> None:  # noqa: ARG002
        self._ended += 1
        if self._ended % self._every == 0:
            self._show(self._ended)
