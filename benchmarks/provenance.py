"""Where a result comes from: revision, versions, command and machine, so that a figure can be made again.

Folders of absolute paths are left out: a result may be published.
"""

import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_MEASURED_WITH = ("penstock", "uvicorn", "uvloop", "httptools", "msgspec", "fastapi")


def provenance(program: str, arguments: Sequence[str]) -> dict[str, object]:
    """The same for the same command on the same commit and machine."""
    return {
        "command": command_line(program, arguments),
        "revision": revision(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _MEASURED_WITH},
        "machine": f"{platform.system()} {platform.machine()}",
    }


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def revision() -> str:
    """Commit, with `+changes` where the tree differs from it; `unknown` outside a checkout."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command_line(program: str, arguments: Sequence[str]) -> str:
    """As typed, without `--json` and without the folders of absolute paths."""
    words: list[str] = []
    given = iter(arguments)
    for word in given:
        if word == "--json":
            next(given, None)
        elif not word.startswith("--json="):
            option, equals, value = word.rpartition("=")
            words.append(option + equals + (Path(value).name if value.startswith("/") else value))
    return f"python -m {program} {shlex.join(words)}".rstrip()


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", _ROOT, *arguments], check=True, capture_output=True, text=True).stdout.strip()
