"""The overhead benchmark, run as its README says, as small as it goes and without peers. Counts and integrity; no times."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--peers", "none", "--scenario", "c64,s500", "--rounds", "1", "--scale", "0.02"]


def test_every_answer_through_the_gateway_is_whole(tmp_path: Path):
    """Each answer of the engine, directly and through the gateway, is whole, and the figures are there."""
    out = tmp_path / "overhead.json"
    command = [sys.executable, "-m", "benchmarks.overhead", *SHORT, "--cache", str(tmp_path), "--json", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=570, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    table, machinery, spread = (document["figures"] for document in json.loads(out.read_text()))
    for target in ("direct", "penstock"):
        told = table[target]
        for kind in ("requests", "streams"):
            assert told[f"all {kind}: whole"] >= 1
            assert [told[f"all {kind}: {bad}"] for bad in ("not_whole", "errors", "unfinished")] == [0, 0, 0]
        assert machinery[target]["c64: load_core_share"] is not None
    assert table["penstock"]["c64: cpu_us"] is not None
    assert "s500: itl_p99_ms" in spread["penstock"]
