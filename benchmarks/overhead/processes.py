"""Processes that are measured: started on chosen cores, watched through /proc with all their children, ended with everything they began."""

import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

_START_S: Final = 60.0  # importing everything on a busy machine
_STOP_S: Final = 20.0
_DEATH_S: Final = 5.0  # of a killed process
_ROOT: Final = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG: Final = 1
# Below the ports that Linux gives to outgoing connections: thousands of those come and go while a port waits to be listened on.
_PORTS: Final = range(20_000, 32_768)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How something that speaks OpenAI's API is started; ready when `ready_path` answers with success."""

    name: str
    command: tuple[str, ...]
    port: int
    ready_path: str


class Running:
    """A target's process; a context manager, ready when entered. Raises RuntimeError with its log if it does not start."""

    def __init__(self, target: Target, *, cores: frozenset[int], log: Path, stop_s: float = _STOP_S) -> None:
        self.target = target
        self._cores = cores
        self._log = log
        self._stop_s = stop_s
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self._process = started(self.target.command, cores=self._cores, log=self._log)
        deadline = time.monotonic() + _START_S
        with httpx.Client(timeout=5, trust_env=False) as client:
            while time.monotonic() < deadline and self.alive:
                with suppress(httpx.TransportError):
                    if client.get(f"http://127.0.0.1:{self.target.port}{self.target.ready_path}").is_success:
                        return self
                time.sleep(0.02)
        stop(self._process, self._stop_s)
        raise RuntimeError(f"{self.target.name} did not start:\n{self.log_end()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop(self._process, self._stop_s)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def log_end(self) -> str:
        return self._log.read_text("utf-8", "replace")[-4000:]

    def cpu_s(self) -> float:
        """User and system time so far: all threads, all children, those that have ended as well."""
        ticks = sum(sum(int(fields[n]) for n in (11, 12, 13, 14)) for _, fields in _session(self._process.pid))
        return ticks / os.sysconf("SC_CLK_TCK")  # utime, stime, cutime, cstime: proc(5), 14 to 17

    def memory_mb(self) -> float:
        """Resident now; what several processes share counts once for each."""
        pages = sum(int(fields[21]) for _, fields in _session(self._process.pid))
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def started(command: tuple[str, ...], *, cores: frozenset[int], log: Path) -> subprocess.Popen[bytes]:
    """In a session of its own, by which its children are found; told to end if we die without a word."""
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=_before(cores),  # noqa: PLW1509 (we have one thread, and taskset would not tell of our death)
        )


def stop(process: subprocess.Popen[bytes], within_s: float) -> None:
    """Politely, then not; its children always."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(within_s)
    until = time.monotonic() + _DEATH_S
    while (left := _alive(process.pid)) and time.monotonic() < until:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)  # a killed process is gone a little later, and so are its ports
    process.wait()


def cores() -> tuple[frozenset[int], frozenset[int]]:
    """(for what is measured, for engine and load): the first core alone, and the others; empty sets where there is no choice."""
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(available) < 2:
        return frozenset(), frozenset()
    return frozenset(available[:1]), frozenset(available[1:])


def free_port() -> int:
    """One that nobody listens on now."""
    for _ in range(100):
        port = random.choice(_PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port between {_PORTS[0]} and {_PORTS[-1]} is free")


def _before(to: frozenset[int]) -> Callable[[], None]:
    libc = ctypes.CDLL(None)

    def in_the_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if to:
            os.sched_setaffinity(0, to)

    return in_the_child


def _alive(leader: int) -> list[int]:
    return [pid for pid, fields in _session(leader) if fields[0] not in "ZX"]  # a zombie waits for its parent only


def _session(leader: int) -> Iterator[tuple[int, list[str]]]:
    """(pid, the fields of /proc/PID/stat after the name) of every process in the session."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it may have ended meanwhile
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == leader:
                    yield int(entry.name), fields
