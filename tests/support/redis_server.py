"""A redis-server of a test's own: it can be killed, frozen, and started again where it was, empty or as it had saved itself."""

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import redis

from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port


class RedisProcess:
    """On a port of its own; `options` as on the command line."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns once it answers."""
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.fail("no redis-server on PATH; run `make engines`")
        command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        log = (self._folder / f"redis-{self.port}.log").open("ab")
        with log:
            self._process = subprocess.Popen([*command, *self._options], stdout=log, stderr=log)
        deadline_s = time.monotonic() + PATIENCE_S
        with redis.Redis(port=self.port) as client:
            while time.monotonic() < deadline_s:
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    return
                time.sleep(0.02)
        pytest.fail("redis-server did not answer")

    def say(self, *command: str) -> None:
        """As with redis-cli."""
        with redis.Redis(port=self.port) as client:
            client.execute_command(*command)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Connections stand, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
