"""Starts and stops a real `vllm serve` on the CPU with the tiny model. Nothing here knows of Penstock, or of pytest.

Raises RuntimeError, saying what to do, where the engine is missing or does not come up.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

import httpx

from tests.support.ports import free_port

MODEL = "tiny"
_STEP_BACK_NICE = 10  # a tenth of the weight of whoever else wants the core
# The engines' folder is the one thing that tests take from the environment, as install.sh does.
ENGINES = Path(os.environ.get("PENSTOCK_ENGINES", Path.home() / ".cache/penstock/engines"))  # noqa: TID251


class VllmServer:
    """One `vllm serve` in a process group of its own. `start()` returns at once, `wait_ready()` when it serves."""

    def __init__(
        self, log: Path, *, blocks: int = 512, block_size: int = 32, max_num_seqs: int = 32, max_model_len: int = 2048
    ) -> None:
        self.log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.blocks = blocks
        self.block_size = block_size
        self.max_model_len = max_model_len
        self._limits = ["--max-num-seqs", str(max_num_seqs), "--max-model-len", str(max_model_len)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> Self:
        binary, model = ENGINES / "venv-vllm/bin/vllm", ENGINES / "tiny"
        if not binary.exists() or not model.exists():
            raise RuntimeError(f"no vLLM in {ENGINES}; run `make engines`")
        command = [str(binary), "serve", str(model), "--served-model-name", MODEL, "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--dtype", "float32", "--enforce-eager", *self._limits]
        # 32 is the CPU attention's unit; an override makes the cache truly small, so that pressure is easily provoked.
        command += ["--block-size", str(self.block_size), "--num-gpu-blocks-override", str(self.blocks)]
        command += ["--enable-prompt-tokens-details", "--enable-request-id-headers", *arguments]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=_environment(), start_new_session=True
            )
        return self

    def wait_ready(self, timeout_s: float = 300) -> Self:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self._process is not None, "start() comes first"
            if self._process.poll() is not None:
                raise RuntimeError(f"vLLM ended with {self._process.returncode}; its log ends:\n{self._log_tail()}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    return self
            time.sleep(0.25)
        raise RuntimeError(f"vLLM is not ready after {timeout_s} s; its log ends:\n{self._log_tail()}")

    def warm(self) -> Self:
        """The first request compiles and allocates for seconds; tests should not meet it."""
        body = {"model": MODEL, "prompt": "The gate", "max_tokens": 4}
        httpx.post(f"{self.url}/v1/completions", json=body, timeout=120).raise_for_status()
        return self

    def step_back(self, core: int) -> Self:
        """Its step loops stay on one core from now on, behind whoever else wants it; its HTTP server goes where it likes.

        Loops that poll in turn on each other's cores keep everybody waiting for seconds. Linux only; both are a thread's.
        """
        assert self._process is not None, "start() comes first"
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may have ended
                pid = int(folder.name)
                if pid != self._process.pid and os.getpgid(pid) == self._process.pid:
                    for thread in (folder / "task").iterdir():
                        os.setpriority(os.PRIO_PROCESS, int(thread.name), _STEP_BACK_NICE)
                        os.sched_setaffinity(int(thread.name), {core})
        return self

    def kill(self) -> None:
        """SIGKILL to every process of the engine at once, as when its machine is gone."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Idempotent: SIGTERM, and SIGKILL to whatever of the group is left."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        self._signal(signal.SIGKILL)
        self._process.wait(15)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-30:])


def _environment() -> dict[str, str]:
    environment = {
        **os.environ,  # noqa: TID251
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_SERVER_DEV_MODE": "1",  # /sleep, /wake_up, /pause, /reset_prefix_cache
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, whole; --num-gpu-blocks-override makes it smaller
        "OMP_NUM_THREADS": "1",  # several engines share few cores: pinned or greedy threads would starve each other
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    openmp = ENGINES / "venv-vllm/lib/libiomp5.so"
    return environment | ({"LD_PRELOAD": str(openmp)} if openmp.exists() else {})
