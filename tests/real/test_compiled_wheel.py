"""The wheel that `make wheel` and the Dockerfile build, with the hot path compiled: it decides as pure Python does, and serves."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.asgi import chat
from tests.support.gateway_process import serving
from tests.support.raw_http import ask, post

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]  # mypy, mypyc and the C compiler take minutes

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("config", "metrics", "batching", "backends", "router")
BESIDE = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
# The contract; the unit tests of what cuts bytes: of a slice that ends before it begins compiled code makes an error; and whole gateways
# in virtual time, where engines fail, freeze and go: of what mypyc makes of exceptions in coroutines nothing else tells.
_ON_THE_WHEEL = ("tests/conformance", "tests/unit/router/openai", "tests/unit/backends", "tests/sim")
# These put functions of their own in the place of methods, which compiled objects do not allow.
_REPLACES = (
    "tests/sim/test_frozen_under_load.py",
    "tests/sim/test_shared_learned.py",
    "tests/sim/test_shared_suspicion.py",
    "tests/sim/test_suspicion.py",
    "tests/sim/test_hedged_requests.py::test_a_second_replica_that_is_removed_before_it_is_asked",
)
PENSTOCK = "import sys; from router.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of packages that the wheel makes. Built from a copy: what setuptools finds in an old `build` it would pack, too."""
    folder = tmp_path_factory.mktemp("compiled")
    source, wheels, packages = (folder / name for name in ("source", "wheels", "packages"))
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = (*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), ".")
    made = subprocess.run(
        ["env", "PENSTOCK_COMPILED=1", *build], cwd=source, check=False, capture_output=True, text=True
    )
    assert made.returncode == 0, (
        f"no wheel; a C compiler is needed (apt-get install gcc libc6-dev python3-dev)\n{made.stdout[-8000:]}{made.stderr[-2000:]}"
    )
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(packages), str(wheel)], check=True)
    return packages


def run(code: Path, *words: str) -> str:
    command = ["env", f"PYTHONPATH={code}", sys.executable, "-P", "-c", PENSTOCK, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_what_setup_names_is_compiled(compiled: Path):
    """A module that stayed Python would be slow and would not be noticed."""
    named = {Path(module).with_suffix("") for module in runpy.run_path(str(ROOT / "setup.py"))["modules"]()}
    assert len(named) > 80
    made = {path.relative_to(compiled) for folder in SOURCES for path in (compiled / folder).rglob("*.so")}
    assert {path.parent / path.name.split(".")[0] for path in made} == named
    assert (run(compiled, "version").endswith(", compiled\n"), run(ROOT, "version").endswith(", compiled\n")) == (
        True,
        False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--fleet", "benchmarks/fleets/mixed.yaml", "--rate-scale", "60"),
        ("--fleet", "benchmarks/fleets/small_kv.yaml", "--rate-scale", "3", "--seed", "7"),
        ("--fleet", "benchmarks/fleets/homogeneous.yaml", "--rate-scale", "90", "--without", "hold"),
        ("--policy", "llm_d"),
        ("--policy", "oracle"),
    ],
)
def test_it_decides_as_pure_python_does(compiled: Path, tmp_path: Path, words: tuple[str, ...]):
    """Every placement of a simulation, with the predictions that it rests on, and every figure: the same bytes."""
    found = []
    for name, code in (("pure", ROOT), ("compiled", compiled)):
        decisions, figures = tmp_path / f"{name}.decisions", tmp_path / f"{name}.json"
        words_ = [str(ROOT / word) if word.startswith("benchmarks/") else word for word in words]
        run(code, "simulate", *words_, "--json", str(figures), "--decisions", str(decisions))
        found.append((figures.read_bytes(), decisions.read_bytes()))
    (figures, decisions), other = found
    assert (figures, decisions) == other
    assert decisions.count(b"\n") > 1000


async def test_it_serves(compiled: Path, tmp_path: Path):
    """A gateway over simulated engines: documents and streams as ever."""
    config = tmp_path / "penstock.yaml"
    replicas = [{"name": name, "backend": "simulated", "models": ["m"], "gpu": {"type": "A100-80G"}} for name in "ab"]
    config.write_text(yaml.safe_dump({"replicas": replicas, "log_level": "warning"}))
    async with serving(config, code=compiled) as gateway:
        assert f"{compiled}/batching/scheduler." in Path(f"/proc/{gateway.pid}/maps").read_text()
        for stream in (False, True):
            for number in range(8):
                body = chat(f"number {number}", stream=stream, max_tokens=5)
                answer = await ask(gateway.url, post("/v1/chat/completions", body))
                assert (answer.status, b"finish_reason" in answer.body) == (200, True)


def test_it_passes_what_the_wire_is_held_to(compiled: Path, tmp_path: Path):
    """Clients' contract, point by point, both data planes against each other, and bytes cut anywhere: on compiled modules."""
    for name in SOURCES:
        shutil.copytree(compiled / name, tmp_path / name)
    for lib in compiled.glob("*__mypyc*.so"):
        shutil.copy(lib, tmp_path)
    for name in ("tests", "benchmarks"):  # some of which are tried in virtual time, too
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    used = "import router.relay, batching.scheduler; print(router.relay.__file__, batching.scheduler.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", used], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert [Path(file).suffix for file in where.split() if file.startswith(str(tmp_path))] == [".so", ".so"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not real", *_ON_THE_WHEEL]
    command += [f"--deselect={name}" for name in _REPLACES]
    made = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-8000:]
    assert re.search(r"[1-9][0-9]{2,} passed", made.stdout), made.stdout[-500:]
