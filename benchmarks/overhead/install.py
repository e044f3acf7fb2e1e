"""Peers are installed where nobody else looks: a virtual environment each, or Debian packages unpacked into a folder. No root.

Nothing here is needed by the gateway, and nothing of a peer gets into its environment.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PIP_S: Final = 900.0  # litellm has two hundred dependencies
_APT_S: Final = 120.0


class NotInstalledError(Exception):
    """Why a peer cannot be measured; one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """`command`: how its program is started; its own arguments follow."""

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Venv:
    """A distribution of PyPI in an environment of its own."""

    requirement: str  # name==version; extras may be in it
    program: str

    def install(self, folder: Path, *, allowed: bool) -> Installed:
        program = folder / "bin" / self.program
        done = folder / f"installed-{hashlib.sha256(self.requirement.encode()).hexdigest()[:12]}"
        if not done.exists():
            _check(allowed)
            shutil.rmtree(folder, ignore_errors=True)  # another version, or one that was broken off
            _run([sys.executable, "-m", "venv", str(folder)], _PIP_S)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input", self.requirement]
            _run(pip, _PIP_S)
            if not program.exists():
                raise NotInstalledError(f"{self.requirement} has no program {self.program}")
            done.touch()
        return Installed(command=(str(program),), version=self.requirement.partition("==")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Debian:
    """The system's own where it has one, else from Debian's packages."""

    packages: Sequence[str]  # with what they need beyond any system's libraries
    program: str
    version_flag: str = "-v"

    def install(self, folder: Path, *, allowed: bool) -> Installed:
        if found := shutil.which(self.program) or shutil.which(self.program, path="/usr/sbin:/usr/local/sbin"):
            return self._checked((found,))
        program = folder / "root" / "usr" / "sbin" / self.program
        if not program.exists():
            _check(allowed)
            self._unpack(folder)
        libraries = ":".join(str(path) for path in (folder / "root" / "usr" / "lib").glob("*-linux-gnu*"))
        return self._checked(("env", f"LD_LIBRARY_PATH={libraries}", str(program)))

    def _unpack(self, folder: Path) -> None:
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise NotInstalledError(f"no {self.program} on PATH and no Debian packages here; install {self.program}")
        shutil.rmtree(folder, ignore_errors=True)
        packed = folder / "packed"
        packed.mkdir(parents=True)
        _run(["apt-get", "download", *self.packages], _APT_S, cwd=packed)
        for package in sorted(packed.glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(folder / "root")], _APT_S)

    def _checked(self, command: tuple[str, ...]) -> Installed:
        said = _run([*command, self.version_flag], _APT_S)
        found = re.search(r"\d+\.\d+\.\d+", said)
        return Installed(command=command, version=found.group() if found else "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nowhere:
    """A peer that nobody can install by a command."""

    reason: str

    def install(self, folder: Path, *, allowed: bool) -> Installed:  # noqa: ARG002 (as the others')
        raise NotInstalledError(self.reason)


Install = Venv | Debian | Nowhere


def _check(allowed: bool) -> None:
    if not allowed:
        raise NotInstalledError("not installed, and --no-install was given")


def _run(command: Sequence[str], timeout_s: float, cwd: Path | None = None) -> str:
    """What it printed. NotInstalledError with the last line of it that says something."""
    try:
        ran = subprocess.run(
            command, cwd=cwd, check=False, capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalledError(f"{Path(command[0]).name}: {error}") from None
    said = ran.stdout + ran.stderr
    if ran.returncode:
        lines = [line for line in said.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise NotInstalledError(f"{Path(command[0]).name} failed: {lines[-1] if lines else ran.returncode}")
    return said
