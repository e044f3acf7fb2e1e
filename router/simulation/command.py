"""`penstock simulate`: reads flags, runs, prints, writes. Heavy imports sit in the command, as in `router.cli`."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from config.schema import Mechanism
    from router.simulation.curves import Curves
    from router.simulation.freeze import Freeze
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
  penstock simulate --fleet penstock.yaml --rate-scale 4 --policy llm_d --freeze-metrics 30:60
  penstock simulate --trace mooncake.jsonl --fleet penstock.yaml --compare --plot pictures

\b
The fleet is a configuration as `serve` takes it; every replica is simulated, whatever its backend.
docs/simulate.md says what the figures mean and what they do not show.
"""

_SpotFiles = Annotated[
    list[Path] | None, typer.Option(metavar="FILE...", help="spot capacity over time, JSON; one or more")
]
_FreezeMetrics = Annotated[
    str | None,
    typer.Option(
        metavar="START:SECONDS[:MODE]",
        help="engine metrics stop then: `silent`, no report comes (default), or `repeated`, the old figures as new",
    ),
]


class Command(TyperCommand):
    """Its help names the policies, which only the registry knows."""

    def get_help(self, ctx: Any) -> str:
        from router.simulation.simulate import policies  # noqa: PLC0415

        self.epilog = f"{EXAMPLES}\n\nPolicies: {', '.join(policies())}."
        return super().get_help(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return ["[OPTIONS]"]  # without the argument that only catches what follows --spot


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
    spot: _SpotFiles = None,
    more_spot: Annotated[list[Path] | None, typer.Argument(hidden=True)] = None,
    spot_scale: Annotated[
        float | None,
        typer.Option(metavar="X", help="spot capacity changes X times as fast  [default: as --rate-scale]"),
    ] = None,
    spot_notice: Annotated[float, typer.Option(min=0, metavar="S", help="seconds from notice to loss")] = 30.0,
    freeze_metrics: _FreezeMetrics = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="NAME", help="switch off a mechanism of ours; repeatable")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="run every policy and print one table")] = False,
    names: Annotated[
        str | None, typer.Option("--policies", metavar="A,B,...", help="run these and print one table")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="DIR", help="draw SVG files into this folder")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="write the figures here")] = None,
    decisions: Annotated[
        Path | None, typer.Option(metavar="OUT", help="write every placement here, for penstock replay and explain")
    ] = None,
) -> None:
    """Play a trace over a simulated fleet in virtual time, under the gateway's own scheduler."""
    from router.simulation.simulate import Options, policies  # noqa: PLC0415

    _check_times("--rate-scale", rate_scale)
    if spot_scale is not None:
        _check_times("--spot-scale", spot_scale)
    options = Options(
        fleet=fleet,
        trace=trace,
        policy=known_policy(policy, "--policy"),
        without=_mechanisms(without or ()),
        rate_scale=rate_scale,
        seed=seed,
        limit=limit,
        max_output_tokens=max_output_tokens,
        spot=(*(spot or ()), *_more(more_spot, after=spot)),
        spot_scale=spot_scale,
        spot_notice_s=spot_notice,
        freeze_metrics=_freeze(freeze_metrics),
        decisions=decisions,
    )
    _check_outputs(json_out, plot, decisions, several=compare or names is not None)
    if names is not None:
        results = _several(options, [known_policy(name.strip(), "--policies") for name in names.split(",")], plot)
    elif compare:
        results = _several(options, policies(), plot)
    else:
        results = _one(options, plot)
    if json_out is not None:
        _write(json_out, results)


def _one(options: "Options", plot: Path | None) -> Mapping[str, object]:
    from router.simulation.progress import Ended, bar  # noqa: PLC0415
    from router.simulation.report import show  # noqa: PLC0415

    run = _read(options)
    began = time.perf_counter()
    with bar(options.policy, len(run.calls)) as moved:
        watcher = Ended(len(run.calls), moved)
        if plot is None:
            result = run.play(watcher)
        else:
            from router.simulation.curves import sampled  # noqa: PLC0415

            result, curves = sampled(run, watcher)
    _tell_pace(len(run.calls), time.perf_counter() - began)
    typer.echo(show(result))
    if plot is not None:
        _draw([curves], plot)
    return result


def _several(options: "Options", names: Sequence[str], plot: Path | None) -> Mapping[str, object]:
    from router.simulation.compare import compare, table  # noqa: PLC0415
    from router.simulation.progress import bar  # noqa: PLC0415

    requests = len(_read(options).calls)  # what is wrong with the files is told once
    runs = [replace(options, policy=name) for name in dict.fromkeys(names)]
    began = time.perf_counter()
    with bar("policies", len(runs)) as moved:
        results = compare(runs, curves=plot is not None, done=moved)
    _tell_pace(requests * len(runs), time.perf_counter() - began)
    typer.echo(table([result for result, _ in results]))
    if plot is not None:
        _draw([curves for _, curves in results if curves is not None], plot)
    return {run.policy: result for run, (result, _) in zip(runs, results, strict=True)}


def _draw(curves: "Sequence[Curves]", folder: Path) -> None:
    from router.simulation.plot import draw  # noqa: PLC0415

    try:
        for path in draw(curves, folder):
            typer.echo(f"wrote {path}", err=True)
    except OSError as error:
        _refuse(f"{error.filename}: {error.strerror or error}; name a folder that can be written with --plot")


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


def _mechanisms(names: Sequence[str]) -> "tuple[Mechanism, ...]":
    from config.schema import Mechanism  # noqa: PLC0415

    known = {mechanism.value: mechanism for mechanism in Mechanism}
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is no mechanism; there are {', '.join(known)}", param_hint="--without")
    return tuple(known[name] for name in names)


def _freeze(text: str | None) -> "Freeze | None":
    from router.simulation.freeze import parse  # noqa: PLC0415

    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--freeze-metrics") from None


def known_policy(policy: str, flag: str) -> str:
    from router.simulation.simulate import policies  # noqa: PLC0415

    known = policies()
    if policy not in known:
        near = get_close_matches(policy.lower().replace("-", "_"), known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise typer.BadParameter(f"{policy!r} is no policy; {meant}there are {', '.join(known)}", param_hint=flag)
    return policy


def _more(paths: Sequence[Path] | None, *, after: Sequence[Path] | None) -> Sequence[Path]:
    """`--spot A B` is what people write, and click takes B for an argument."""
    if paths and not after:
        raise typer.BadParameter(
            f"{paths[0]} stands behind no flag; give a trace with --trace, spot capacity with --spot"
        )
    return paths or ()


def _check_times(flag: str, times: float) -> None:
    if not (math.isfinite(times) and 1 / _MOST_TIMES <= times <= _MOST_TIMES):
        raise typer.BadParameter(f"{times:g} is not from {1 / _MOST_TIMES:g} to {_MOST_TIMES:g}", param_hint=flag)


def _check_outputs(json_out: Path | None, plot: Path | None, decisions: Path | None, *, several: bool) -> None:
    """Before the work is done, not after."""
    if decisions is not None and several:
        raise typer.BadParameter("one policy a file; leave out --compare and --policies", param_hint="--decisions")
    for flag, out in (("--json", json_out), ("--decisions", decisions)):
        if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
            raise typer.BadParameter(f"{out} cannot be written; name a file in a folder that exists", param_hint=flag)
    if plot is not None:
        from router.simulation.plot import missing  # noqa: PLC0415

        if plot.exists() and not plot.is_dir():
            raise typer.BadParameter(f"{plot} is a file; name a folder", param_hint="--plot")
        if to_install := missing():
            _refuse(to_install)


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
