"""`penstock simulate`: reads flags, runs, prints, writes. Heavy imports sit in the command, as in `router.cli`."""

import json
import math
import time
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from router.simulation.simulate import Options, Run

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h, as in `router.cli`
_MOST_TIMES: Final = 1e6  # faster or slower than the trace; beyond it times are no longer told apart

EXAMPLES = """\b
Examples:
  penstock simulate
      a synthetic trace on three simulated replicas
  penstock simulate --trace azure_2023_conv.csv --fleet penstock.yaml --rate-scale 8 --json result.json
  penstock simulate --trace mooncake.jsonl --fleet penstock.yaml --policy least_requests --limit 2000
  penstock simulate --fleet penstock.yaml --spot capacity.json --spot-notice 120

\b
The fleet is a configuration as `serve` takes it; every replica is simulated, whatever its backend.
docs/simulate.md says what the figures mean and what they do not show.
"""


class Command(TyperCommand):
    """Its help names the policies, which only the registry knows."""

    def get_help(self, ctx: Any) -> str:
        from router.simulation.simulate import policies  # noqa: PLC0415

        self.epilog = f"{EXAMPLES}\n\nPolicies: {', '.join(policies())}."
        return super().get_help(ctx)


def simulate(
    *,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Azure-style CSV or Mooncake-style JSON lines  [default: synthetic]"),
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with `replicas:`  [default: three simulated ones]")
    ] = None,
    policy: Annotated[str, typer.Option(metavar="NAME", help="who decides; named below")] = "penstock",
    rate_scale: Annotated[float, typer.Option(metavar="X", help="X times as many requests a second")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="of step times and the synthetic trace; 0: exact step times")] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="the first N requests  [default: all, synthetic 2000]")
    ] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option(min=1, help="what clients ask for  [default: nothing]")
    ] = None,
    spot: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="spot capacity over time, JSON; may be repeated")
    ] = None,
    spot_scale: Annotated[
        float | None,
        typer.Option(metavar="X", help="spot capacity changes X times as fast  [default: as --rate-scale]"),
    ] = None,
    spot_notice: Annotated[float, typer.Option(min=0, metavar="S", help="seconds from notice to loss")] = 30.0,
    json_out: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="write the figures here")] = None,
) -> None:
    """Play a trace over a simulated fleet in virtual time, under the gateway's own scheduler."""
    from router.simulation.simulate import Options  # noqa: PLC0415

    _check_times("--rate-scale", rate_scale)
    if spot_scale is not None:
        _check_times("--spot-scale", spot_scale)
    options = Options(
        fleet=fleet,
        trace=trace,
        policy=_known(policy),
        rate_scale=rate_scale,
        seed=seed,
        limit=limit,
        max_output_tokens=max_output_tokens,
        spot=tuple(spot or ()),
        spot_scale=spot_scale,
        spot_notice_s=spot_notice,
    )
    _check_writable(json_out)
    result = _one(options)
    if json_out is not None:
        _write(json_out, result)


def _one(options: "Options") -> dict[str, object]:
    from router.simulation.progress import Ended, bar  # noqa: PLC0415
    from router.simulation.report import show  # noqa: PLC0415

    run = _read(options)
    began = time.perf_counter()
    with bar(options.policy, len(run.calls)) as moved:
        result = run.play(Ended(len(run.calls), moved))
    _tell_pace(len(run.calls), time.perf_counter() - began)
    typer.echo(show(result))
    return result


def _read(options: "Options") -> "Run":
    from config.problems import ConfigError  # noqa: PLC0415
    from router.simulation.simulate import Run  # noqa: PLC0415

    try:
        return Run(options)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(problem, err=True)
        raise typer.Exit(EXIT_CONFIG) from None
    except OSError as error:
        _refuse(f"{error.filename}: {error.strerror or error}; name a readable file")
    except ValueError as error:
        _refuse(str(error))


def _known(policy: str) -> str:
    from router.simulation.simulate import policies  # noqa: PLC0415

    known = policies()
    if policy not in known:
        near = get_close_matches(policy.lower().replace("-", "_"), known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise typer.BadParameter(f"{policy!r} is no policy; {meant}there are {', '.join(known)}", param_hint="--policy")
    return policy


def _check_times(flag: str, times: float) -> None:
    if not (math.isfinite(times) and 1 / _MOST_TIMES <= times <= _MOST_TIMES):
        raise typer.BadParameter(f"{times:g} is not from {1 / _MOST_TIMES:g} to {_MOST_TIMES:g}", param_hint=flag)


def _check_writable(out: Path | None) -> None:
    """Before the work is done, not after."""
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{out} cannot be written; name a file in a folder that exists", param_hint="--json")


def _write(out: Path, document: Mapping[str, object]) -> None:
    try:
        out.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    except OSError as error:
        _refuse(f"{out}: {error.strerror or error}; name a file that can be written with --json")


def _tell_pace(requests: int, wall_s: float) -> None:
    """Beside the figures, not among them: they are the same on every machine."""
    pace = requests / wall_s * 60
    typer.echo(f"{requests:,} requests in {wall_s:.1f} s of wall time: {pace:,.0f} a minute", err=True)


def _refuse(why: str) -> NoReturn:
    typer.echo(f"penstock simulate: {why}", err=True)
    raise typer.Exit(2)
