"""`penstock usage`: who used what of a running gateway - tokens and dollars, as a table, CSV or JSON."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, NoReturn

import typer

from router.admin_flags import URL, Gateway, Key, known_key, known_url

_TIMEOUT_S: Final = 10.0
_COLUMNS: Final = (  # (title, member, digits after the point)
    ("requests", "requests", 0),
    ("failed", "failed", 0),
    ("input", "input_tokens", 0),
    ("cached", "cached_input_tokens", 0),
    ("output", "output_tokens", 0),
    ("usd", "usd", 4),
)

EXAMPLES = """\b
Examples:
  penstock usage
      tokens and dollars by tenant and model, since the gateway was started
  penstock usage --by tenant,model,day --from 2026-01-01 --to 2026-02-01
  penstock usage --by replica,hour --gateway http://10.0.0.2:8080 --key env:PENSTOCK_ADMIN_KEY
  penstock usage --by tenant,day --csv > usage.csv

\b
Groups: day, hour, tenant, model, service_tier, cost_tier, replica. docs/cost.md says what a dollar is, and how far back this goes.
"""


def usage(
    *,
    by: Annotated[str, typer.Option(metavar="KEYS", help="what to group by, commas between")] = "tenant,model",
    since: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="2026-01-31, 2026-01-31T08:00:00Z or Unix seconds")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="TIME", help="likewise  [default: now]")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the gateway's own document")] = False,
    gateway: Gateway = URL,
    key: Key = None,
) -> None:
    """Print tokens and dollars of a running gateway, by tenant and model or otherwise."""
    import json  # noqa: PLC0415

    if as_csv and as_json:
        raise typer.BadParameter("choose one of --csv and --json")
    asked = {"group_by": by, "from": since, "to": until, "format": "csv" if as_csv else "json"}
    text = _asked(known_url(gateway), known_key(key), {name: value for name, value in asked.items() if value})
    if as_csv or as_json:
        typer.echo(text, nl=as_json)
        return
    try:
        told = json.loads(text)
        _show(told)
    except (KeyError, ValueError, TypeError, AttributeError):
        _refuse(f"what answers at {gateway} is no gateway of this version")


def _asked(url: str, key: str | None, parameters: Mapping[str, str]) -> str:
    import httpx  # noqa: PLC0415

    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        answer = httpx.get(
            f"{url}/admin/usage", params=parameters, headers=headers, timeout=_TIMEOUT_S, trust_env=False
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _refuse(f"no gateway answers at {url} ({error}); name it with --gateway")
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        _refuse(f"{url} refused the key; --key must be the gateway's server.admin_key")
    if answer.status_code != httpx.codes.OK:
        _refuse(_message(answer))
    return answer.text


def _message(answer: Any) -> str:
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = None
    return message if isinstance(message, str) else f"the gateway answered {answer.status_code}"


def _show(told: Mapping[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415 - slow to load
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415 - tenants' names are no markup

    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no edge to fold at
    keys = list(told["group_by"])
    table = Table(title=f"Usage from {told['from']} to {told['to'] or 'now'}", title_justify="left", box=None)
    for name in keys:
        table.add_column(name)
    for title, _, _ in _COLUMNS:
        table.add_column(title, justify="right")
    table.add_column("usd/Mtok out", justify="right")
    for row in told["data"]:
        table.add_row(*(Text(str(row[name]) or "-") for name in keys), *_cells(row))
    if len(told["data"]) != 1:
        table.add_section()
        table.add_row(*(["total"] + [""] * (len(keys) - 1) if keys else []), *_cells(told["totals"]))
    console.print(table)
    if told["left_out"]:
        console.print(f"{told['left_out']} groups that cost less are left out; the total has them.")


def _cells(row: Mapping[str, Any]) -> list[str]:
    per_million = 1e6 * row["usd"] / row["output_tokens"] if row["output_tokens"] else None
    return [
        *(f"{row[member]:,.{digits}f}" for _, member, digits in _COLUMNS),
        "-" if per_million is None else f"{per_million:,.3f}",
    ]


def _refuse(why: str) -> NoReturn:
    typer.echo(f"penstock usage: {why}", err=True)
    raise typer.Exit(1)
