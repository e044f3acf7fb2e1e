"""An event loop whose clock jumps: waiting takes no time, and every asyncio timeout obeys it.

`select(timeout)` first takes what is ready now; if nothing is, it moves `loop.time()` on by the timeout instead of sleeping.
Real sockets may be registered, but virtual timers win over them; use real loops for real sockets (tests/integration).
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_THREAD_GRACE_S = (
    5.0  # real seconds granted to an executor's thread: asyncio cannot tell a busy thread from an idle one
)


class Deadlock(RuntimeError):
    """Nothing is ready, no timer is set and no socket could wake the loop: some task waits for ever."""


class _JumpingSelector(selectors.DefaultSelector):
    """Moves its clock on by the timeout instead of sleeping."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.threads_may_wake = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events:
            return events
        if timeout is not None:
            self.now_s += max(timeout, 0.0)
            return events
        if len(self.get_map()) > 1:  # the loop's self-pipe is the one that is always there
            return super().select(None)
        if self.threads_may_wake and (events := super().select(_THREAD_GRACE_S)):
            return events
        raise Deadlock(f"at virtual {self.now_s:.6f}s nothing is ready, scheduled or connected")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at 0.0 seconds; `time()` moves only when every task waits."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], R], *args: *Ts) -> asyncio.Future[R]:
        self._jumping.threads_may_wake = True
        return super().run_in_executor(executor, func, *args)


def run_virtual(main: Coroutine[Any, Any, R]) -> R:
    """`asyncio.run` under virtual time: runs `main`, cancels what it left behind, closes the loop."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
