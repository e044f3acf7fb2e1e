"""The bar: there on a terminal, nothing elsewhere, and never in the way of the figures."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from router.simulation.progress import Ended, bar
from router.simulation.run import Life
from tests.support.patience import PATIENCE_S

PENSTOCK = Path(sys.executable).with_name("penstock")


def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]):
    """Logs and pipes get nothing of it."""
    with bar("penstock", 10) as moved:
        moved(5)
    assert capsys.readouterr() == ("", "")


def test_it_moves_now_and_then():
    """Ten thousand ends are some hundreds of moves, and the last one counts them all."""
    moves: list[int] = []
    ended = Ended(10_000, moves.append)
    for number in range(10_000):
        ended.ended(number, Life(0.0), 0.0)
    assert len(moves) == 500
    assert moves[-1] == 10_000


def test_on_a_terminal_the_bar_is_on_stderr_alone():
    """Stdout holds the same figures whether somebody watches or not."""
    words = [PENSTOCK, "simulate", "--limit", "50"]
    ours, theirs = pty.openpty()
    try:
        watched = subprocess.run(words, stdout=subprocess.PIPE, stderr=theirs, check=True, timeout=PATIENCE_S)
        shown = os.read(ours, 65_536)
    finally:
        os.close(ours)
        os.close(theirs)
    alone = subprocess.run(words, capture_output=True, check=True, timeout=PATIENCE_S)
    assert b"penstock" in shown
    assert b"50/50" in shown
    assert watched.stdout == alone.stdout
    assert b"\x1b" not in alone.stdout + alone.stderr
