"""A real tritonserver for tests: started on free ports from the engines' venv, stopped with its whole process group.

The venv is made by tests/real/engines/install.sh. The server comes out of the nvidia-pytriton wheel, which needs four things to run
outside of pytriton: the libraries beside it on LD_LIBRARY_PATH, the stub of the venv's own Python beside the python backend,
numpy below 2 in that venv, and no GPU metrics.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.frozen import frozen
from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port
from tests.support.scrape import metric

REPOSITORY = Path(__file__).parent / "engines" / "triton_repo"
_LOG_TAIL_BYTES = 4000


class TritonServer:
    """A context manager; `textgen` and `embed` are loaded, under explicit model control."""

    def __init__(self, *, itl_ms: float = 5.0, extra_args: tuple[str, ...] = ()) -> None:
        self._itl_ms = itl_ms
        self._extra_args = extra_args
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-triton-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.log = self._folder / "triton.log"
        self.http_port, self.grpc_port, self.metrics_port = (free_port() for _ in range(3))

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        """The server's process, which leads the group of its stubs."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self._start()
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill the server and its stubs, and remove what they left."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        for leftover in Path("/dev/shm").glob(f"{self._folder.name}*"):  # a killed stub does not unlink its region
            leftover.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL to the whole process group, as when its machine is gone."""
        os.killpg(self.pid, signal.SIGKILL)

    def kill_stub(self, model: str) -> None:
        """SIGKILL the process that runs a model, as the OOM killer would."""
        for pid in self._stubs_of(model):
            os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP to the server and its stubs: connections stay, and nobody answers."""
        os.killpg(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.pid, signal.SIGCONT)

    def frozen_stub(self, model: str) -> AbstractContextManager[None]:
        """SIGSTOP to the process that runs a model; the server goes on to say that it is ready."""
        return frozen(self._stubs_of(model))

    def reload(self, model: str) -> None:
        """Unload and load: what brings a model back after its stub died."""
        self.post(f"/v2/repository/models/{model}/unload")
        self.post(f"/v2/repository/models/{model}/load")

    def post(self, path: str) -> None:
        """POST without a body to Triton's HTTP port."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=b"{}", method="POST")
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            answer.read()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 where there is none."""
        return metric(self.metrics_url, name, **labels)

    def log_tail(self) -> str:
        """The end of the server's log, for messages."""
        return self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode("utf-8", "replace") if self.log.exists() else "(no log)"

    def _start(self) -> None:
        home = Path(os.environ.get("PENSTOCK_ENGINES", "~/.cache/penstock/engines")).expanduser()  # noqa: TID251 -- a test's own setting
        venv = home / "venv-triton"
        found = list(venv.glob("lib/python3.*/site-packages/pytriton/tritonserver"))
        assert found, f"no Triton in {venv}; `make engines` installs it"
        root = found[0]
        packages = root.parents[1]
        server = root / "bin" / "tritonserver"
        server.chmod(0o755)  # the wheel drops the bit
        command = [
            *(str(server), f"--model-repository={REPOSITORY}", f"--backend-directory={self._backends(root)}"),
            *("--model-control-mode=explicit", "--load-model=textgen", "--load-model=embed"),
            *(f"--http-port={self.http_port}", f"--grpc-port={self.grpc_port}", f"--metrics-port={self.metrics_port}"),
            *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
            *("--allow-gpu-metrics=false", "--exit-timeout-secs=2"),
            f"--backend-config=python,shm-region-prefix-name={self._folder.name}",
            *self._extra_args,
        ]
        python_lib = _stdout(venv / "bin" / "python", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))")
        environment = {
            **os.environ,  # noqa: TID251 -- the server is a child like any other
            "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{python_lib}",
            "PYTHONPATH": str(packages),
            "PATH": f"{venv / 'bin'}:{os.defpath}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TEXTGEN_ITL_MS": str(self._itl_ms),
        }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    def _backends(self, root: Path) -> Path:
        """The wheel's python backend with the stub of the venv's Python beside it."""
        version = root.parents[2].name.removeprefix("python")  # lib/python3.11/site-packages/pytriton/tritonserver
        folder = self._folder / "backends" / "python"
        folder.mkdir(parents=True)
        for name in ("triton_python_backend_utils.py", "libtriton_python.so"):
            shutil.copy(root / "backends" / "python" / name, folder)
        stub = shutil.copy(root / "python_backend_stubs" / version / "triton_python_backend_stub", folder)
        Path(stub).chmod(0o755)
        return folder.parent

    def _await_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/v2/health/ready", timeout=1).close()
                return
            time.sleep(0.05)
        raise RuntimeError(f"tritonserver did not become ready (exit {self._process.poll()})\n{self.log_tail()}")

    def _stubs_of(self, model: str) -> list[int]:
        pids = [pid for pid in self._stubs() if f"/{model}/" in _command_line(pid)]
        assert pids, f"no stub of {model} among {self._stubs()}\n{self.log_tail()}"
        return pids

    def _stubs(self) -> list[int]:
        assert self._process is not None
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if self._folder.name in _command_line(pid) and "stub" in _command_line(pid)]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""  # gone meanwhile


def _stdout(python: Path, program: str) -> str:
    return subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()
