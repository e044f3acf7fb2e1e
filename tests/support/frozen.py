"""Processes that stand still for a while."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """SIGSTOP now, SIGCONT at the end of the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
