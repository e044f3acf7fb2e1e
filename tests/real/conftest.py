"""The real engines, started once a session. A missing one fails the tests that need it: skipped is not tested."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.real.triton_server import TritonServer
from tests.real.vllm_server import VllmServer
from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port
from tests.support.redis_server import RedisProcess

# Two engines start in 40 to 75 s on two idle cores; a busy machine takes a multiple. The first test of a session waits for them.
_TIMEOUT_S = 1200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("real") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


@pytest.fixture(scope="session")
def vllm_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VllmServer, VllmServer]]:
    """Two replicas of the tiny model, 512 blocks of 32 tokens, 32 sequences, 2,048 tokens of context; warmed."""
    folder = tmp_path_factory.mktemp("vllm")
    first, second = VllmServer(folder / "first.log"), VllmServer(folder / "second.log")
    with contextlib.ExitStack() as stack:
        for server in (first, second):
            stack.callback(server.stop)
            server.start()
        for server in (first, second):
            server.wait_ready().warm()
        yield first, second


@pytest.fixture(scope="session")
def triton() -> Iterator[TritonServer]:
    """Triton with `textgen` and `embed` loaded."""
    with TritonServer() as server:
        yield server


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A redis-server of our own; it keeps nothing on disk."""

    port: int

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.fail("no redis-server on PATH; run `make engines`")
    folder, server = tmp_path_factory.mktemp("redis"), RedisServer(free_port())
    command = [binary, "--port", str(server.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([*command, "--dir", str(folder)], stdout=log, stderr=log)
    try:
        _await_pong(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _await_pong(server: RedisServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    with redis.Redis(port=server.port) as client:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                return
            time.sleep(0.05)
    pytest.fail(f"redis-server did not answer within {PATIENCE_S} s (exit status {process.poll()})")


@pytest.fixture
def redis_process(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis of this test's own: it may be frozen, killed and started again."""
    server = RedisProcess(tmp_path)
    server.start()
    yield server
    server.thaw()
    server.kill()
