"""What the gateway costs in front of a real vLLM, by vLLM's own client: `vllm bench serve` at the engine and through us, in turn.

`python -m benchmarks.real.beside`. The bars are those of the data plane: output tokens a second at least 0.97 times the engine's own, a median
TTFT of at most 3 ms more. Engine, gateway and client share the machine: with two cores the figures differ by up to a half from round to round.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from tests.real.gateway_process import GatewayProcess, vllm_replica
from tests.real.vllm_server import ENGINES, MODEL, VllmServer

_FIGURES: Final = ("output_throughput", "median_ttft_ms", "p99_ttft_ms", "median_itl_ms", "p99_itl_ms")


def bench(url: str, said: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """One run of vLLM's client. Raises RuntimeError where it fails, or an answer did."""
    out = folder / "result.json"
    command = [str(ENGINES / "venv-vllm/bin/vllm"), "bench", "serve", "--backend", "openai-chat", "--base-url", url]
    command += ["--endpoint", "/v1/chat/completions", "--model", MODEL, "--tokenizer", str(ENGINES / "tiny")]
    command += ["--dataset-name", "random", "--random-input-len", "64", "--random-output-len", "64", "--ignore-eos"]
    command += ["--num-prompts", str(said.requests), "--max-concurrency", str(said.concurrency), "--seed", str(seed)]
    command += ["--disable-tqdm", "--save-result", "--result-filename", str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}  # noqa: TID251 - it needs PATH
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"vllm bench serve ended with {done.returncode}; it said last:\n{done.stderr[-2000:]}")
    result = json.loads(out.read_text())
    if result["completed"] != said.requests:
        raise RuntimeError(f"{said.requests - result['completed']} of {said.requests} answers failed at {url}")
    return {name: float(result[name]) for name in _FIGURES}


def run(said: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """By way - direct, penstock - the figures of each round; each round begins with another."""
    found: dict[str, list[dict[str, float]]] = {"direct": [], "penstock": []}
    with TemporaryDirectory() as name:
        folder = Path(name)
        server = VllmServer(folder / "vllm.log", blocks=2048)
        try:
            server.start().wait_ready(timeout_s=600).warm()
            with GatewayProcess(folder, {"replicas": [vllm_replica("a", server)]}) as gateway:
                ways = [("direct", server.url), ("penstock", gateway.url)]
                for number in range(said.rounds):
                    for way, url in ways if number % 2 else reversed(ways):
                        found[way].append(bench(url, said, number, folder))
                        print(f"round {number + 1}, {way}: {_line(found[way][-1])}", flush=True)
        finally:
            server.stop()
    return found


def _line(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real.beside", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=320, help="in each run")
    parser.add_argument("--concurrency", type=int, default=32)
    said = parser.parse_args(arguments)
    try:
        found = run(said)
    except RuntimeError as error:
        parser.exit(1, f"{error}\n")
    direct, ours = ({name: median(one[name] for one in found[way]) for name in _FIGURES} for way in found)
    print(f"medians, direct:   {_line(direct)}")
    print(f"medians, penstock: {_line(ours)}")
    throughput = ours["output_throughput"] / direct["output_throughput"]
    more_ms = ours["median_ttft_ms"] - direct["median_ttft_ms"]
    print(f"output tokens a second {throughput:.3f} times the engine's own, median TTFT {more_ms:+.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
