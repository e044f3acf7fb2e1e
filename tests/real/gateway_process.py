"""A gateway as an operator starts it: `penstock serve --config FILE` in a process of its own."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest
import yaml

from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port
from tests.support.scrape import metric

PENSTOCK = Path(sys.executable).with_name("penstock")
_ROOT = Path(__file__).resolve().parents[2]
# Engines that share a few cores with everything else may get none for seconds; they are not down for that.
_PATIENCE = {"probe": {"timeout_s": 10}, "upstream": {"connect_timeout_s": 10}}


class GatewayProcess:
    """A context manager; ready when entered."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._config = folder / "penstock.yaml"
        sections = {**_PATIENCE, "server": {"port": self.port}}
        merged = {name: {**section, **config.get(name, {})} for name, section in sections.items()}
        self._config.write_text(yaml.safe_dump({**config, **merged}))
        self._log = folder / "gateway.log"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [PENSTOCK, "serve", "--config", str(self._config)], stdout=log, stderr=log,
                env={"PYTHONPATH": str(_ROOT)},  # this checkout's code, whichever one is installed
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).is_success:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self._process.kill()
        pytest.fail(f"the gateway is not ready; its log:\n{self._log.read_text('utf-8', 'replace')[-4000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def metric(self, name: str, **labels: str) -> float:
        return metric(f"{self.url}/metrics", name, **labels)


def vllm_replica(name: str, server: Any, **more: Any) -> dict[str, Any]:
    """A replica entry for a real vLLM; what the engine cannot tell is declared."""
    return {
        "name": name,
        "backend": "vllm",
        "url": server.url,
        "capacity": {"max_num_seqs": 32, "max_num_batched_tokens": 2048},
        **more,
    }


def until(condition: Any, what: str, timeout_s: float = PATIENCE_S) -> None:
    """Waits for a condition of the outside world; fails naming it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"not within {timeout_s} s: {what}")
