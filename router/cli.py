"""The command line: reads flags, loads the configuration, hands over. Exit codes: 2 usage, 78 configuration, 1 at run time.

Heavy imports sit in the commands, so that `penstock version` and `--help` answer at once.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from router import explain as explanation
from router import operator_commands as operating
from router import replay_command as replaying
from router import spot_command as listening
from router import top_command as watching
from router import usage_command as accounting
from router.keys_command import add_keys
from router.simulation import command as simulation

if TYPE_CHECKING:
    from config.schema import Config

ShapeChoice = Literal["8b", "70b"]  # config.gpus.ShapeName, without its numbers: a test keeps them in step

EXIT_RUNTIME = 1
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: restarting will not help

_LOG_LEVELS = ("debug", "info", "warning", "error")

_EXAMPLES = """\b
Examples:
  penstock serve
      three simulated replicas, no GPU needed
  penstock serve --backend h100=http://10.0.0.10:8000,gpu=H100-80G,tier=reserved,usd=2.5
      in front of a vLLM server; repeat --backend for more
  penstock serve --config penstock.yaml --port 9000
  penstock check-config penstock.yaml
  penstock engine --port 8101
      a simulated vLLM server to try a gateway against
  penstock simulate --trace requests.csv --fleet penstock.yaml
      what this fleet would have made of these requests
  penstock top
      the fleet live in a terminal: KV, tokens, money, the last placements and why
  penstock drain h100 --deadline 60
      before you stop an engine: its requests finish or move, then it is released

\b
Settings: flags win over PENSTOCK_SECTION__KEY variables, those over the file, that over defaults.
"""

_SERVE_EXAMPLES = """\b
Examples:
  penstock serve
  penstock serve --backend a=http://127.0.0.1:8101,gpu=H100-80G,tier=reserved,usd=2.5 \\
                 --backend b=http://127.0.0.1:8102,gpu=A100-80G,tier=spot,usd=1.2
  penstock serve --backend t=grpc://127.0.0.1:8001,model=textgen
  penstock serve --config penstock.yaml --print-config
  penstock serve --config penstock.yaml --workers 4
  PENSTOCK_SERVER__PORT=9000 penstock serve

\b
--backend keys: gpu, tier (reserved, on_demand, spot), usd (per hour), backend (vllm, openai, triton), model (repeatable).
SIGTERM drains; SIGHUP reads the configuration again.
"""

_ENGINE_EXAMPLES = """\b
Examples:
  penstock engine --port 8101 --gpu H100-80G
  penstock engine --port 8102 --gpu A100-80G --kv-blocks 2000 --seed 7
  penstock engine --port 8103 --gpu A100-80G --gpu-count 4 --shape 70b --speculative-tokens 3
  penstock serve --backend a=http://127.0.0.1:8101 --backend b=http://127.0.0.1:8102
"""

_CHECK_EXAMPLES = """\b
Examples:
  penstock check-config penstock.yaml
  penstock check-config config/example.yaml
"""

_SCHEMA_EXAMPLES = """\b
Examples:
  penstock schema > penstock.schema.json
      for an editor that completes and checks the file while you write it
"""
_VERSION_EXAMPLES = """\b
Examples:
  penstock version
"""


def main() -> None:
    """The `penstock` command."""
    build_app()()


def build_app() -> typer.Typer:
    app = typer.Typer(
        name="penstock",
        help="Penstock, an OpenAI-compatible gateway that meters tokens onto GPUs.",
        epilog=_EXAMPLES,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command("serve", epilog=_SERVE_EXAMPLES)(serve)
    app.command("engine", epilog=_ENGINE_EXAMPLES)(engine)
    app.command("simulate", cls=simulation.Command)(simulation.simulate)
    app.command("explain", epilog=explanation.EXAMPLES)(explanation.explain)
    app.command("replay", epilog=replaying.EXAMPLES)(replaying.replay)
    app.command("replicas", epilog=operating.REPLICAS_EXAMPLES)(operating.replicas)
    app.command("drain", epilog=operating.DRAIN_EXAMPLES)(operating.drain)
    app.command("restore", epilog=operating.RESTORE_EXAMPLES)(operating.restore)
    app.command("usage", epilog=accounting.EXAMPLES)(accounting.usage)
    app.command("top", epilog=watching.EXAMPLES)(watching.top)
    app.command("spot-agent", epilog=listening.EXAMPLES)(listening.spot_agent)
    add_keys(app)
    app.command("check-config", epilog=_CHECK_EXAMPLES)(check_config)
    app.command("schema", epilog=_SCHEMA_EXAMPLES)(schema)
    app.command("version", epilog=_VERSION_EXAMPLES)(version)
    return app


def serve(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML file; else PENSTOCK_CONFIG, else none")
    ] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free one  [default: 8080]")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="processes that share the port  [default: 1]")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", "-b", metavar="NAME=URL[,KEY=VALUE]...", help="an engine; may be repeated"),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="print what would be served, secrets hidden, and exit")
    ] = False,
    log_level: Annotated[str | None, typer.Option(help=", ".join(_LOG_LEVELS) + "  [default: info]")] = None,
    log_format: Annotated[Literal["text", "json"] | None, typer.Option(help="of log lines  [default: text]")] = None,
) -> None:
    """Run the gateway."""
    from config.load import is_embedded, load, redacted_yaml  # noqa: PLC0415
    from router.tracing.extra import problem  # noqa: PLC0415

    if log_level is not None and log_level not in _LOG_LEVELS:
        raise typer.BadParameter(f"{log_level!r} is not one of {', '.join(_LOG_LEVELS)}", param_hint="--log-level")
    flags = _flags(
        host=host, port=port, workers=workers, backends=backend or [], log_level=log_level, log_format=log_format
    )
    read: Callable[[], Config] = partial(load, config, flags)
    loaded = _loaded(read)
    if print_config:
        print(redacted_yaml(loaded), end="")
        return
    if (lacking := problem(loaded)) is not None:
        _refuse([lacking])
    if is_embedded(loaded) and loaded.log_format == "text":
        print(
            "penstock: no replicas configured; serving three simulated ones (--config or --backend for yours)",
            file=sys.stderr,
        )
    if loaded.server.workers > 1:
        from router.workers.supervisor import supervise as run  # noqa: PLC0415
    else:
        from router.server import run  # noqa: PLC0415

    raise typer.Exit(run(loaded, reload=read))


def engine(
    *,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8101,
    model: Annotated[str, typer.Option(help="the one model it serves")] = "sim-8b",
    gpu: Annotated[str, typer.Option(help="a row of config/gpus.yaml; sets its speed and memory")] = "H100-80G",
    gpu_count: Annotated[int, typer.Option(min=1, help="GPUs of the engine, tensor-parallel in each stage")] = 1,
    pipeline_parallel: Annotated[int, typer.Option(min=1, help="stages that share the GPUs")] = 1,
    shape: Annotated[ShapeChoice, typer.Option(help="the model's size")] = "8b",
    kv_blocks: Annotated[
        int | None, typer.Option(min=1, help="KV cache, in blocks  [default: what the GPU holds]")
    ] = None,
    block_size: Annotated[int, typer.Option(min=1, help="tokens a KV block")] = 16,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="sequences in a batch")] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="tokens in one step")] = 8192,
    max_model_len: Annotated[int, typer.Option(min=1, help="prompt plus output, tokens")] = 32_768,
    speed: Annotated[float, typer.Option(min=0.001, help="2 runs twice as fast as the GPU")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="0: exact step times; else they vary, seeded")] = 0,
    speculative_tokens: Annotated[int, typer.Option(min=0, max=32, help="drafted in each decode step")] = 0,
    speculative_acceptance: Annotated[
        float, typer.Option(min=0, max=1, help="chance that a draft is right, if those before it are")
    ] = 0.7,
) -> None:
    """Run a simulated engine behind vLLM's HTTP API."""
    from backends.simulated.options import EngineOptions  # noqa: PLC0415
    from backends.simulated.server import serve_engine  # noqa: PLC0415
    from config.gpus import MEMORY_RATIO, kv_bytes  # noqa: PLC0415

    if gpu_count % pipeline_parallel:
        raise typer.BadParameter(f"{gpu_count} GPUs cannot be shared evenly by {pipeline_parallel} stages")
    if kv_blocks is None and kv_bytes(gpu, count=gpu_count, shape=shape, memory_ratio=MEMORY_RATIO) <= 0:
        what = f"the weights of {shape} leave no memory for KV on {gpu_count} x {gpu}"
        raise typer.BadParameter(f"{what}; raise --gpu-count or take a larger --gpu")
    options = EngineOptions(
        model=model,
        gpu=gpu,
        gpu_count=gpu_count,
        pipeline_parallel=pipeline_parallel,
        shape=shape,
        speculative_tokens=speculative_tokens,
        speculative_acceptance=speculative_acceptance,
        kv_blocks=kv_blocks,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        speed=speed,
        seed=seed,
    )
    try:
        serve_engine(options, host, port)
    except OSError as error:
        _cannot_listen(host, port, error.strerror or str(error))
    except SystemExit as stopped:  # uvicorn's way of saying so, after it has logged why
        if stopped.code:
            _cannot_listen(host, port, "see above")
        raise


def check_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file; PENSTOCK_* variables count, as in serve")],
) -> None:
    """Check a configuration; print every problem, one per line."""
    from config.load import load  # noqa: PLC0415

    loaded = _loaded(partial(load, file))
    print(f"{file}: valid, {len(loaded.replicas)} replicas")


def schema() -> None:
    """Print the configuration's JSON Schema."""
    from config.schema import Config  # noqa: PLC0415

    print(json.dumps(Config.model_json_schema(), indent=2))


def version() -> None:
    """Print the version, and whether the scheduler is compiled."""
    from importlib.metadata import version as installed  # noqa: PLC0415
    from importlib.util import find_spec  # noqa: PLC0415

    found = find_spec("batching.scheduler")  # to load it takes longer
    how = "" if found is None or str(found.origin).endswith(".py") else ", compiled"
    print(f"penstock {installed('penstock')}{how}")


def _flags(
    *,
    host: str | None,
    port: int | None,
    workers: int | None,
    backends: list[str],
    log_level: str | None,
    log_format: str | None,
) -> Mapping[str, object]:
    """What was given, nested as in a file; what was not is absent. A malformed --backend is a usage error."""
    from config.load import ConfigError, parse_backend_flag  # noqa: PLC0415

    replicas: list[dict[str, object]] = []
    for text in backends:
        try:
            replica = parse_backend_flag(text)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None
        if any(other["name"] == replica["name"] for other in replicas):
            raise typer.BadParameter(f"--backend {replica['name']} is given twice; keep one")
        replicas.append(replica)
    server = {key: value for key, value in (("host", host), ("port", port), ("workers", workers)) if value is not None}
    given: dict[str, object] = {
        "server": server,
        "replicas": replicas,
        "log_level": log_level,
        "log_format": log_format,
    }
    return {key: value for key, value in given.items() if value}


def _loaded(read: "Callable[[], Config]") -> "Config":
    from config.load import ConfigError  # noqa: PLC0415

    try:
        return read()
    except ConfigError as error:
        _refuse(error.problems)


def _refuse(problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        print(problem, file=sys.stderr)
    raise typer.Exit(EXIT_CONFIG)


def _cannot_listen(host: str, port: int, why: str) -> NoReturn:
    print(f"penstock engine: cannot listen on {host}:{port} ({why}); choose another port with --port", file=sys.stderr)
    raise typer.Exit(EXIT_RUNTIME)
