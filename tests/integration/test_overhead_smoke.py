"""The overhead benchmark, run as its README says, for as short as it goes. Counts and integrity; no times."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--seconds", "0.2", "--rounds", "1", "--connections", "3", "--streams", "4", "--chunks", "8", "--gap-ms", "5"]


def test_every_answer_through_the_gateway_is_whole(tmp_path: Path):
    """Each answer of both targets is the engine's to the byte, and all figures are there."""
    out = tmp_path / "overhead.json"
    command = [sys.executable, "-m", "benchmarks.overhead", *SHORT, "--json", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    figures = json.loads(out.read_text())["figures"]
    for target in ("direct", "penstock"):
        told = figures[target]
        assert (told["requests_broken"], told["streams_broken"]) == (0, 0)
        assert told["requests_whole"] >= 1 + 3  # one for each connection at least
        assert told["streams_whole"] >= 4
        assert told["cpu_us_per_request"] is not None
    assert set(figures) == {"direct", "penstock", "added", "ratio"}
