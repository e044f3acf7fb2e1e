"""The fake engine and the load generator: C, because what measures must cost less than what is measured. Compiled at first use."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

_SOURCES: Final = Path(__file__).parent
_MODEL: Final = "bench"  # engine.c serves it, load.c asks for it
_HANGS_S: Final = 10.0  # load.c ends by itself after its grace; one that does not is killed


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Both executables."""

    engine: Path
    load: Path
    model: str = _MODEL

    @classmethod
    def compiled(cls, folder: Path) -> Self:
        """Compiles into `folder` what is not there yet. RuntimeError says what to install or what the compiler said."""
        return cls(engine=_compile("engine", folder), load=_compile("load", folder))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What load.c is asked for; its head says what each word means. `events` None: plain requests."""

    port: int
    connections: int
    seconds: float
    events: int | None = None
    ramp_s: float = 0.0
    grace_s: float = 20.0

    def arguments(self) -> list[str]:
        said = ["-p", str(self.port), "-c", str(self.connections), "-s", str(self.seconds), "-g", str(self.grace_s)]
        if self.events is not None:
            said += ["-n", str(self.events), "-r", str(self.ramp_s * 1000)]
        return said

    @property
    def at_most_s(self) -> float:
        return self.seconds + self.grace_s + _HANGS_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What load.c saw. Times are None where nothing was whole."""

    seconds: float
    whole: int
    broken: int  # status 200 and not whole
    errors: int  # another status, no connection, cut off
    unfinished: int
    events: int
    coalesced: int
    cpu_s: float
    complaint: str
    latency: Times | None
    ttft: Times | None
    itl: Times | None

    @classmethod
    def parse(cls, printed: str) -> Self:
        said: dict[str, Any] = json.loads(printed)
        counts = {name: value for name, value in said.items() if not name.endswith("_us")}
        latency, ttft, itl = (_times(said.get(f"{name}_us")) for name in ("latency", "ttft", "itl"))
        return cls(**counts, latency=latency, ttft=ttft, itl=itl)


def _times(said: Mapping[str, float] | None) -> Times | None:
    return None if said is None else Times(p50=said["p50"] / 1000, p99=said["p99"] / 1000)


def _compile(name: str, folder: Path) -> Path:
    source = _SOURCES / f"{name}.c"
    made = folder / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = made.with_suffix(".new")
    try:
        ran = subprocess.run(
            ["cc", "-O2", "-o", unfinished, source], check=False, capture_output=True, text=True, timeout=120
        )
    except FileNotFoundError:
        raise RuntimeError("no C compiler `cc`; on Debian or Ubuntu: apt-get install gcc libc6-dev") from None
    if ran.returncode:
        raise RuntimeError(
            f"{source.name} does not compile; it wants Linux, glibc >= 2.35 and its headers (libc6-dev):\n{ran.stderr}"
        )
    unfinished.rename(made)
    return made
