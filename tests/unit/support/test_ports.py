"""A port that a test is given is its own until it uses it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ports

ROOT = Path(__file__).resolve().parents[3]


def test_ports_are_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither again in this process, nor by another, nor where somebody listens."""
    first = 10**6 + 10 * os.getpid()  # nobody else's numbers
    monkeypatch.setattr(ports, "_FIRST", first)
    monkeypatch.setattr(ports, "_COUNT", 3)
    monkeypatch.setattr(ports, "_free", lambda port: port != first)
    assert {ports.free_port(), ports.free_port()} == {first + 1, first + 2}
    lines = ("from tests.support import ports", f"ports._FIRST, ports._COUNT = {first + 1}, 2", "ports._free = bool")
    code = "\n".join((*lines, "ports.free_port()"))
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "are taken" in other.stderr


def test_somebody_listens_there() -> None:
    """Asked of the kernel."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not ports._free(port)
    assert ports._free(ports.free_port())


def test_they_are_below_what_the_kernel_gives() -> None:
    """As Linux comes."""
    assert ports._FIRST + ports._COUNT <= 32_768
