"""What is measured: a name, a command that serves on a port, and the running process with its CPU time and memory.

A peer is one more `Target`. CPU time and memory come from /proc; elsewhere they are None.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import yaml

from benchmarks.overhead.wire import MODEL

_START_S: Final = 60.0  # importing everything on a busy machine
_STOP_S: Final = 20.0
_ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How something that speaks OpenAI's API is started; ready when `ready_path` answers 200."""

    name: str
    command: tuple[str, ...]
    port: int
    ready_path: str


def fake_engine(chunks: int, gap_ms: float) -> Target:
    """What answers directly."""
    port = free_port()
    options = ("--port", str(port), "--chunks", str(chunks), "--gap-ms", str(gap_ms))
    command = (sys.executable, "-m", "benchmarks.overhead.engine", *options)
    return Target(name="direct", command=command, port=port, ready_path="/health")


def penstock(engine_port: int, folder: Path) -> Target:
    """The gateway before one engine that never lacks room; no log line a request, as peers are measured too."""
    port = free_port()
    config: Mapping[str, Any] = {
        "server": {"port": port},
        "log_level": "warning",
        "replicas": [
            {
                "name": "fake",
                "url": f"http://127.0.0.1:{engine_port}",
                "models": [MODEL],
                "gpu": {"type": "H100-80G"},
                "capacity": {
                    "max_num_seqs": 100_000,
                    "max_num_batched_tokens": 100_000_000,
                    "kv_blocks": 100_000_000,
                    "block_size": 16,
                },
            }
        ],
    }
    file = folder / "penstock.yaml"
    file.write_text(yaml.safe_dump(config))
    command = (str(Path(sys.executable).with_name("penstock")), "serve", "--config", str(file))
    return Target(name="penstock", command=command, port=port, ready_path="/readyz")


class Running:
    """A target's process; a context manager, ready when entered. Raises RuntimeError with its log if it does not start."""

    def __init__(self, target: Target, *, cores: frozenset[int], log: Path) -> None:
        self.target = target
        self._cores = cores
        self._log = log
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self.target.command, cwd=_ROOT, stdout=log, stderr=log)
        pin(self._process.pid, self._cores)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{self.target.port}{self.target.ready_path}", timeout=5).is_success:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        self._stop()
        raise RuntimeError(f"{self.target.name} did not start:\n{self._log.read_text('utf-8', 'replace')[-4000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @contextmanager
    def beside(self, other: frozenset[int]) -> Iterator[None]:
        """Meanwhile on these cores."""
        pin(self._process.pid, other)
        try:
            yield
        finally:
            pin(self._process.pid, self._cores)

    def cpu_s(self) -> float | None:
        """User and system time so far, all threads."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5), 14 and 15

    def memory_mb(self) -> tuple[float | None, float | None]:
        """(resident now, its peak so far)."""
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return None, None
        kilobytes = {
            name: int(value.split()[0])
            for name, _, value in (line.partition(":") for line in lines)
            if name in {"VmRSS", "VmHWM"}
        }
        return kilobytes["VmRSS"] / 1024, kilobytes["VmHWM"] / 1024

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def cores() -> tuple[frozenset[int], frozenset[int]]:
    """(for what is measured, for engine and load): the first core alone, and the others; empty sets where there is no choice."""
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(available) < 2:
        return frozenset(), frozenset()
    return frozenset(available[:1]), frozenset(available[1:])


def pin(pid: int, to: frozenset[int]) -> None:
    """0: this process. An empty set leaves it where it is."""
    if to:
        os.sched_setaffinity(pid, to)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
