"""Runs the whole suite in three parts, and says in its last line what failed in any.

    python -m tests.run [pytest's options]

First what is virtual, on all cores: what needs no other process and waits for no real clock but its own sockets'. Then gateways and
simulated engines as processes of their own, two tests at a time: they wait more than they work. Then real engines and browsers, one
test at a time, as two would only take each other's cores. The exit status is 1 where anything failed. What the options mean is
pytest's business.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[1]
VIRTUAL = (
    "fuzz",
    "stateful",
    "sim",
    "conformance",
    "unit",
)  # what takes longest first, so that no core is left with it at the end
PROCESSES = ("integration", "chaos")
REAL = ("real",)
# A core each; with more than this many the imports of each process cost what it saves.
ALL_CORES = ("-n", "auto", "--maxprocesses", "16", "--dist", "worksteal")
# By file: what a file's tests share is started once.
TWO = ("-n", "2", "--dist", "loadfile")
NOTHING_SELECTED = 5  # pytest's exit status
NAMED = 20  # failures, in the last line


@dataclass(frozen=True, slots=True)
class Part:
    """How one run of pytest ended."""

    name: str
    status: int
    took_s: float
    tests: int
    failed: Sequence[str]

    @property
    def good(self) -> bool:
        """Nothing selected is nothing failed: `-k` may mean the other part."""
        return self.status in {0, NOTHING_SELECTED} and not self.failed

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.took_s), 60)
        said = f"{self.name}: {self.tests - len(self.failed)} of {self.tests} passed in {minutes}:{seconds:02}"
        if self.good:
            return said
        more = f" and {len(self.failed) - NAMED} more" if len(self.failed) > NAMED else ""
        names = " ".join(self.failed[:NAMED]) or f"none, but pytest ended with status {self.status}"
        return f"{said}; FAILED: {names}{more}"


def run(name: str, folders: Sequence[str], options: Sequence[str]) -> Part:
    """One pytest over these folders of tests/; what it prints goes where ours goes."""
    print(f"--- {name}: {' '.join(f'tests/{folder}' for folder in folders)}", flush=True)
    with tempfile.TemporaryDirectory() as made:
        report = Path(made) / "report.xml"
        began_s = time.monotonic()
        command = [sys.executable, "-m", "pytest", *options, "-o", "junit_family=xunit1", f"--junitxml={report}"]
        done = subprocess.run([*command, *(f"tests/{folder}" for folder in folders)], cwd=ROOT, check=False)
        took_s = time.monotonic() - began_s
        tests, failed = read(report) if report.exists() else (0, [])
    return Part(name, done.returncode, took_s, tests, failed)


def read(report: Path) -> tuple[int, list[str]]:
    """How many tests there were, and which of them failed, as pytest is asked for one alone."""
    failed: dict[str, None] = {}
    names = set()
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('file') or case.get('classname')}::{case.get('name')}"
        names.add(name)
        if case.find("failure") is not None or case.find("error") is not None:
            failed[name] = None
    return len(names), list(failed)


def main(options: Sequence[str]) -> int:
    parts = (
        run("on all cores", VIRTUAL, (*ALL_CORES, *options)),
        run("two at a time", PROCESSES, (*TWO, *options)),
        run("one at a time", REAL, options),
    )
    none = all(part.status == NOTHING_SELECTED for part in parts)
    good = all(part.good for part in parts) and not none
    print(f"{'OK' if good else 'FAILED'}. {'. '.join(map(str, parts))}.", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
