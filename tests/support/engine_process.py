"""`penstock engine` as a process of its own on a port of its own: it can be killed, frozen, and started again where it was."""

import asyncio
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port
from tests.support.scrape import metric

_PENSTOCK = Path(sys.executable).with_name("penstock")
_ROOT = Path(__file__).resolve().parents[2]
GPU = "H100-80G"  # `penstock engine`'s own default


class EngineProcess:
    """One engine; a context manager that ends it, frozen or not. Starting returns at once, `ready` waits."""

    def __init__(self, *options: str, seed: int = 0, speed: float = 20.0, gpu: str = GPU) -> None:
        """`speed`: times the GPU's; an H100's token takes some 0.4 ms at 20, so that the machine decides."""
        self.port = free_port()
        self._options = ("--seed", str(seed), "--speed", str(speed), "--gpu", gpu, "--max-model-len", "8192", *options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Also again, on the same port, once it has ended."""
        assert not self.running
        self._process = subprocess.Popen(
            [_PENSTOCK, "engine", "--port", str(self.port), *self._options],
            # This checkout's code, whichever one is installed; no streams to leak into pytest's.
            env={"PYTHONPATH": str(_ROOT)}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return self

    async def ready(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await asyncio.to_thread(_answers, f"{self.url}/health"):
                assert self.running, "the engine ended instead of listening"
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        """As a machine that is taken away: nothing is said to anybody, the kernel closes the sockets."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """As an engine that is told to go: it ends its streams with vLLM's error event."""
        self._signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Its sockets stand, its kernel still accepts, nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    async def figure(self, name: str, **labels: str) -> float:
        """One of its metrics, such as `vllm:num_requests_running`."""
        return await asyncio.to_thread(partial(metric, f"{self.url}/metrics", name, **labels))

    async def aborted(self) -> float:
        """Requests that it gave up because nobody waited any more."""
        return await self.figure("vllm:request_success_total", finished_reason="abort")

    async def until_idle(self) -> None:
        """Until nothing runs or waits in it: whoever left has been noticed."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.figure("vllm:num_requests_running") or await self.figure("vllm:num_requests_waiting"):
                await asyncio.sleep(0.02)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


def replica(name: str, url: str, *, tier: str = "on_demand", usd_per_hour: float = 1.0, **more: Any) -> dict[str, Any]:
    """A replica's configuration."""
    cost = {"tier": tier, "usd_per_hour": usd_per_hour}
    return {"name": name, "url": url, "gpu": {"type": GPU}, "cost": cost, **more}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
