"""`penstock replay`: reads flags, replays, prints. Heavy imports sit in the command, as in `router.cli`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from router.simulation.command import EXIT_CONFIG, known_policy

if TYPE_CHECKING:
    from router.replay import Asked, Fidelity, Replay

_SHOWN: Final = 5  # choices that differ; explain tells the rest

EXAMPLES = """\b
Examples:
  penstock replay decisions.jsonl
      does the present code decide as the recorded did, and does the simulator come to what happened?
  penstock replay decisions.jsonl --policy least_requests
      what another router would have made of the same requests on the same machines
  penstock replay decisions.jsonl --fleet smaller.yaml
      what other machines would have made of them, and at what price

\b
`decisions.file` in a gateway's configuration writes such a file; so does penstock simulate --decisions.
docs/decisions-ledger.md says what the figures mean and what they do not show.
"""


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a decisions file")],
    *,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="who decides instead; penstock simulate --help names them")
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with other `replicas:`  [default: the recorded ones]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="whose requests  [default: the one most were for]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of step times; 0: exact")] = 1,
    json_out: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="write the figures here")] = None,
) -> None:
    """Decide recorded placements again, and price the alternative."""
    from router.replay import Asked, table  # noqa: PLC0415

    wanted = None if policy is None else known_policy(policy, "--policy")
    found = _replayed(Asked(file=file, policy=wanted, fleet=fleet, model=model, seed=seed))
    typer.echo(_decided_again(found.fidelity, found.policy, file))
    typer.echo()
    typer.echo(_played(found))
    typer.echo()
    typer.echo(table(found.columns))
    if json_out is not None:
        _write(json_out, found)


def _replayed(asked: "Asked") -> "Replay":
    from config.problems import ConfigError  # noqa: PLC0415
    from router.replay import replay as run  # noqa: PLC0415

    try:
        return run(asked)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(problem, err=True)
        raise typer.Exit(EXIT_CONFIG) from None
    except OSError as error:
        _refuse(f"{error.filename}: {error.strerror or error}; name a readable file")
    except ValueError as error:
        _refuse(str(error))


def _decided_again(found: "Fidelity", policy: str, file: Path) -> str:
    if found.ratio is None:
        return f"Decided again: none. {policy} decided, by counters of its own that are not recorded."
    total = found.same + len(found.different)
    lines = [f"Decided again: {found.same:,} of {total:,} choices come out the same ({found.ratio:.2%})."]
    for record, other in found.different[:_SHOWN]:
        lines.append(f"  {record.request_id}: {record.replica} then, {other} now")
    if found.different:
        lines.append(f"  penstock explain ID --file {file} prints the recorded values")
    if found.others:
        lines.append(f"  {found.others:,} more were another router's, and cannot be decided again")
    return "\n".join(lines)


def _played(found: "Replay") -> str:
    from router.recorded import left_out  # noqa: PLC0415

    trace = found.trace
    judged = sum(one.judged for one in trace.played)
    lines = [f"Played: {len(trace.played):,} requests for {trace.model} over {trace.end_s:,.0f} s."]
    if judged < len(trace.played):
        lines.append(
            f"  Latency and attainment are of the {judged:,} that were streamed and answered in full; the others are played, not judged."
        )
    if trace.left_out:
        lines.append(f"  Not played: {', '.join(left_out(trace))}.")
    return "\n".join(lines)


def _write(out: Path, found: "Replay") -> None:
    document = {
        "fidelity": found.fidelity.ratio,
        "same": found.fidelity.same,
        "different": [record.request_id for record, _ in found.fidelity.different],
        "model": found.trace.model,
        "runs": found.columns,
    }
    try:
        out.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    except OSError as error:
        _refuse(f"{out}: {error.strerror or error}; name a file that can be written with --json")


def _refuse(why: str) -> NoReturn:
    typer.echo(f"penstock replay: {why}", err=True)
    raise typer.Exit(2)
