"""What is measured: the engine alone, this gateway, and the peers, each started by a setup."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.overhead.install import NotInstalledError
from benchmarks.overhead.peers import Peer, Setup
from benchmarks.overhead.processes import Target
from benchmarks.overhead.programs import Programs
from benchmarks.overhead.scenarios import Scenario

DIRECT: Final = "direct"
OURS: Final = "penstock"
COMPILED: Final = "penstock compiled"
_ROOT: Final = Path(__file__).resolve().parents[2]
_MAIN: Final = "import sys; from router.cli import main; sys.exit(main())"
# Not the installed command: that may belong to another checkout.
_PENSTOCK: Final = (sys.executable, "-c", _MAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """`target` None: the load goes to the engine."""

    name: str
    version: str
    target: Callable[[Setup], Target] | None
    several_workers: bool = False

    def takes(self, scenario: Scenario) -> bool:
        """Whether its figures in this scenario would say anything."""
        if self.target is None:
            return scenario.direct
        return self.several_workers or scenario.workers == 1


def contestants(
    peers: Sequence[Peer], folder: Path, *, install: bool, compiled: Path | None = None
) -> tuple[list[Contestant], dict[str, str]]:
    """(those that can be measured: the engine, ours, peers; why the others cannot, by name).

    `compiled`: a Python that has the wheel of `make wheel`.
    """
    found = [
        Contestant(name=DIRECT, version="", target=None),
        Contestant(name=OURS, version="this checkout", target=penstock, several_workers=True),
    ]
    if compiled is not None:
        made_by = partial(penstock, program=(str(compiled), "-P", "-c", _MAIN), name=COMPILED)
        found.append(Contestant(name=COMPILED, version=f"by {compiled.name}", target=made_by, several_workers=True))
    absent: dict[str, str] = {}
    for peer in peers:
        print(f"{peer.name}: looking, installing where it is missing", file=sys.stderr, flush=True)
        try:
            installed = peer.install.install(folder / peer.name, allowed=install)
        except NotInstalledError as error:
            absent[peer.name] = str(error)
        else:
            made = partial(peer.target, installed.command)
            several = peer.several_workers
            found.append(Contestant(name=peer.name, version=installed.version, target=made, several_workers=several))
    return found, absent


def engine(programs: Programs, port: int, gap_ms: float) -> Target:
    command = (str(programs.engine), "-p", str(port), "-g", str(round(gap_ms * 1000)))
    return Target(name="engine", command=command, port=port, ready_path="/health")


def penstock(setup: Setup, *, program: tuple[str, ...] = _PENSTOCK, name: str = OURS) -> Target:
    """As it comes: scheduler, metrics and the ledger of decisions on; before engines that never lack room, no log line a request.

    The objectives are as wide as the slowest scenario's engine needs, 200 ms a token: by the defaults the scheduler holds new requests back
    there to spare those who stream, as it should, and what that takes would be told as the gateway's latency.
    """
    config: Mapping[str, Any] = {
        "server": {"host": "127.0.0.1", "port": setup.port},
        "log_level": "warning",
        "scheduling": {"objectives": {"ttft_s": 10, "tpot_s": 1}},
        "replicas": [
            {
                "name": f"engine-{number}",
                "url": f"http://127.0.0.1:{port}",
                "models": [setup.model],
                "gpu": {"type": "H100-80G"},
                "capacity": {
                    "max_num_seqs": 2048,
                    "max_num_batched_tokens": 8192,
                    "kv_blocks": 65_536,
                    "block_size": 16,
                },
            }
            for number, port in enumerate(setup.engines)
        ],
    }
    file = setup.folder / "penstock.yaml"
    file.write_text(yaml.safe_dump(config))
    command = (*program, "serve", "--config", str(file))
    if setup.workers > 1:
        command += ("--workers", str(setup.workers))
    return Target(name=name, command=command, port=setup.port, ready_path="/readyz")
