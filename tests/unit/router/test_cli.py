"""The command line as a user meets it: help, exit codes, what goes to which stream."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from typer.testing import CliRunner, Result

import backends.simulated.server
import router.server
import router.workers.supervisor
from backends.simulated.options import EngineOptions
from config.gpus import ShapeName
from config.load import ConfigError, embedded_default, load
from config.schema import Config
from router.cli import ShapeChoice, build_app
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]


def cli(*args: str, env: Mapping[str, str | None] | None = None) -> Result:
    return CliRunner().invoke(build_app(), args, env=env)


def penstock(*args: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """The installed command, in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}  # noqa: TID251 -- a child process's, not settings
    return subprocess.run(
        [Path(sys.executable).with_name("penstock"), *args],
        env={**clean, **environ}, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Callable[[], Config]]]:
    """What `serve` hands over instead of serving it."""
    calls: list[tuple[Config, Callable[[], Config]]] = []

    def run(config: Config, *, reload: Callable[[], Config]) -> int:
        calls.append((config, reload))
        return 0

    monkeypatch.setattr(router.server, "run", run)
    monkeypatch.setattr(router.workers.supervisor, "supervise", run)
    return calls


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A loopback port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_serve_without_a_word_runs_the_embedded_default(served: list[Any]):
    """No configuration is a configuration: simulated replicas, and a line that says so."""
    result = cli("serve")
    assert (result.exit_code, [config for config, _ in served]) == (0, [embedded_default()])
    assert "serving three simulated" in result.stderr


def test_flags_reach_the_configuration(served: list[Any]):
    """--host, --port, --log-level and --backend say what the file would."""
    flags = [
        "--host",
        "::1",
        "--port",
        "0",
        "--log-level",
        "debug",
        "-b",
        "a=http://h:1,tier=spot,usd=2",
        "-b",
        "b=http://h:2",
    ]
    result = cli("serve", *flags)
    ((config, _),) = served
    assert result.exit_code == 0
    assert (config.server.host, config.server.port, config.log_level) == ("::1", 0, "debug")
    assert [(r.name, r.url, r.cost.tier) for r in config.replicas] == [
        ("a", "http://h:1", "spot"),
        ("b", "http://h:2", "on_demand"),
    ]
    assert "simulated" not in result.stderr


def test_reload_reads_the_file_again_and_keeps_the_flags(served: list[Any], tmp_path: Path):
    """What `serve` hands over for SIGHUP reads the same places anew, and refuses as at the start."""
    path = tmp_path / "p.yaml"
    path.write_text("replicas: [{name: a, url: 'http://h:1'}]\nqueue: {max_wait_s: 1}")
    cli("serve", "-c", str(path), "--port", "9")
    ((_, reload),) = served
    path.write_text("replicas: [{name: b, url: 'http://h:1'}]\nserver: {port: 7}")
    again = reload()
    assert ([replica.name for replica in again.replicas], again.server.port) == (["b"], 9)
    path.write_text("replicas: []")
    with pytest.raises(ConfigError):
        reload()


def test_one_worker_starts_no_other_process(monkeypatch: pytest.MonkeyPatch):
    """The supervisor is for several; one, however it is said, is the gateway in this process."""
    monkeypatch.setattr(router.server, "run", lambda config, *, reload: 10)
    monkeypatch.setattr(router.workers.supervisor, "supervise", lambda config, *, reload: config.server.workers)
    for arguments, code in ((["serve"], 10), (["serve", "--workers", "1"], 10), (["serve", "--workers", "3"], 3)):
        assert cli(*arguments).exit_code == code


def test_the_exit_code_is_the_server_s(monkeypatch: pytest.MonkeyPatch):
    """A server that could not start is not a success."""
    monkeypatch.setattr(router.server, "run", lambda config, *, reload: 1)
    assert cli("serve").exit_code == 1


def test_print_config_prints_what_would_be_served(served: list[Any], tmp_path: Path):
    """--print-config serves nothing, hides secrets, and prints what `load` reads back."""
    result = cli(
        "serve", "-c", str(ROOT / "config/example.yaml"), "--print-config", env={"PENSTOCK_SERVER__PORT": "9000"}
    )
    printed = tmp_path / "printed.yaml"
    printed.write_text(result.stdout)
    assert (result.exit_code, served) == (0, [])
    assert load(printed, {}, {}).server.port == 9000
    replicas = '[{"name": "a", "url": "http://h:1", "api_key": "sk-secret"}]'
    hidden = cli("serve", "--print-config", env={"PENSTOCK_REPLICAS": replicas})
    assert yaml.safe_load(hidden.stdout)["replicas"][0]["api_key"] == "***"
    assert "sk-secret" not in hidden.output


def test_engine_options_reach_the_engine(monkeypatch: pytest.MonkeyPatch):
    """Each flag sets the option of its name; without flags they are the engine's own defaults."""
    calls: list[tuple[EngineOptions, str, int]] = []
    monkeypatch.setattr(backends.simulated.server, "serve_engine", lambda *call: calls.append(call))
    flags = {"model": "m", "gpu": "L4-24G", "kv-blocks": 9, "block-size": 8, "max-num-seqs": 7, "max-num-batched-tokens": 6,
             "max-model-len": 5, "speed": 2.5, "seed": 4, "gpu-count": 4, "pipeline-parallel": 2, "shape": "70b",
             "speculative-tokens": 3, "speculative-acceptance": 0.5}  # fmt: skip
    assert cli("engine").exit_code == 0
    assert (
        cli("engine", "--host", "::1", "--port", "1", *(f"--{key}={value}" for key, value in flags.items())).exit_code
        == 0
    )
    options = EngineOptions(
        model="m", gpu="L4-24G", kv_blocks=9, block_size=8, max_num_seqs=7, max_num_batched_tokens=6, max_model_len=5,
        speed=2.5, seed=4, gpu_count=4, pipeline_parallel=2, shape="70b", speculative_tokens=3, speculative_acceptance=0.5,
    )  # fmt: skip
    assert calls == [(EngineOptions(), "127.0.0.1", 8101), (options, "::1", 1)]


def test_the_engine_s_shapes_are_those_there_are():
    """The command line names them without loading what they mean."""
    assert get_args(ShapeChoice) == get_args(ShapeName)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "Usage: penstock"),
        (["serve", "--prot", "1"], "No such option: --prot"),
        (["serve", "--port", "70000"], "less than or equal to 65535"),
        (["serve", "--port", "http"], "should be a valid integer"),
        (["serve", "--log-level", "loud"], "'loud' is not one of debug, info, warning, error"),
        (["serve", "--backend", "a"], "write NAME=URL"),
        (["serve", "-b", "a=http://h:1", "-b", "a=http://h:2"], "--backend a is given twice; keep one"),
        (["engine", "--speed", "0"], "--speed"),
        (["engine", "--shape", "9b"], "'9b' is not one of '8b', '70b'"),
        (["engine", "--gpu-count", "3", "--pipeline-parallel", "2"], "3 GPUs cannot be shared evenly by 2 stages"),
        (["engine", "--shape", "70b"], "leave no memory for KV on 1 x H100-80G; raise --gpu-count"),
        (["check-config"], "Missing argument"),
        (["srve"], "No such command 'srve'"),
    ],
)
def test_usage_errors_exit_with_2(served: list[Any], args: list[str], said: str):
    """A mistake in the command is told with the usage and code 2, before anything runs."""
    result = cli(*args)
    assert (result.exit_code, served) == (2, [])
    assert said in result.output
    assert "╭" not in result.output


@pytest.mark.parametrize("command", ["serve", "engine", "check-config"])
def test_help_has_examples_that_parse(served: list[Any], monkeypatch: pytest.MonkeyPatch, command: str):
    """Each command's --help shows invocations that the command accepts."""
    monkeypatch.setattr(backends.simulated.server, "serve_engine", lambda *call: None)
    monkeypatch.chdir(ROOT)
    text = cli(command, "--help").output.replace("\\\n", " ")
    shown = [
        line.split("penstock ", 1)[1].split()
        for line in text.splitlines()
        if "penstock " in line and "Usage" not in line
    ]
    assert any(words[0] == command for words in shown)
    for words in shown:
        code = cli(*(word.replace("penstock.yaml", "config/example.yaml") for word in words)).exit_code
        assert code == 0, words


def test_check_config_lists_every_problem(tmp_path: Path):
    """One problem a line on stderr, nothing on stdout, code 78."""
    path = tmp_path / "p.yaml"
    path.write_text("replicas: [{name: a, url: 'http://h:1', cost: {tier: cheap}}]\nserver: {prot: 1}\n")
    result = cli("check-config", str(path))
    assert result.exit_code == 78
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "server.prot: unknown key; did you mean `port`?",
        "replicas[0].cost.tier: 'cheap' is not one of reserved, on_demand, spot",
    ]


def test_check_config_accepts_the_example():
    """The shipped example is valid."""
    result = cli("check-config", str(ROOT / "config/example.yaml"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "valid, 3 replicas" in result.stdout


def test_schema_describes_every_section():
    """`penstock schema` is JSON Schema that names all sections and forbids unknown keys."""
    document = json.loads(cli("schema").stdout)
    assert document["properties"].keys() == Config.model_fields.keys()
    assert document["additionalProperties"] is False


def test_the_command_s_exit_codes(tmp_path: Path):
    """The installed command: 0 for version, 2 for usage, 78 for configuration."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("server: {port: x}\n")
    version, usage, config = penstock("version"), penstock("serve", "--nope"), penstock("serve", "--config", str(bad))
    assert (version.returncode, version.stdout[:9], version.stderr) == (0, "penstock ", "")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert (config.returncode, config.stdout) == (78, "")
    assert config.stderr.splitlines() == [
        "replicas: empty; describe at least one (config/example.yaml), give --backend NAME=URL, or say under `discovery` where they are found",
        "server.port: 'x' is not a whole number",
    ]


def test_the_environment_counts_and_is_checked():
    """A variable that sets nothing stops the command before it listens."""
    result = penstock("serve", PENSTOCK_SERVER__PROT="1")
    assert (result.returncode, result.stderr) == (
        78,
        "PENSTOCK_SERVER__PROT: sets nothing; did you mean PENSTOCK_SERVER__PORT?\n",
    )


def test_a_taken_port_is_a_runtime_error(taken_port: int):
    """Code 1 and what to do, for gateway and engine alike; no traceback."""
    for command in ("serve", "engine"):
        result = penstock(command, "--port", str(taken_port))
        assert result.returncode == 1, result.stderr
        assert f"127.0.0.1:{taken_port}" in result.stderr
        assert "choose another port with --port" in result.stderr
        assert "Traceback" not in result.stderr


def test_the_engine_stops_when_told():
    """SIGTERM ends `penstock engine` without an error."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("penstock")), "engine", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            _until_listening(port, process)
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode in {0, -signal.SIGTERM}  # uvicorn re-raises the signal once it has stopped
    assert "Traceback" not in stderr


def _until_listening(port: int, process: "subprocess.Popen[str]") -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            continue
        return
    pytest.fail("the engine ended before it listened")


def test_version_and_help_load_nothing_heavy():
    """`penstock version` answers without importing the gateway or a web server (typer itself loads pydantic)."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import sys; sys.argv = ['penstock', 'version']; from router.cli import main; main()"],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    imported = {line.rsplit("|", 1)[1].strip() for line in result.stderr.splitlines() if "|" in line}
    assert result.returncode == 0
    assert "typer" in imported
    heavy = {
        "config.schema",
        "router.server",
        "fastapi",
        "uvicorn",
        "httpx",
        "prometheus_client",
        "yaml",
        "grpc",
        "numpy",
        "rich",
        "asyncio",
    }
    assert imported & heavy == set()
