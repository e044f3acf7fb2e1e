"""`penstock top`: the fleet live in a terminal, or once for a script."""

from typing import Annotated, Final, Literal

import typer

from router.admin_flags import URL, Gateway, Key, known_key, known_url

EXAMPLES: Final = """\b
Examples:
  penstock top
  penstock top --sort kv --gateway http://10.0.0.2:8080 --key env:PENSTOCK_ADMIN_KEY
  penstock top --once
      one frame; so, too, where the output is no terminal
  penstock top --once --json | jq '.money.usd_per_hour'

\b
In the bar of a replica's KV cache: held, others' (as the engine says), expected growth, free. NO_COLOR is obeyed.
"""

EXIT_FAILED: Final = 1
_INTERRUPTED: Final = 130  # as shells say it: ended by SIGINT

_SortChoice = Literal["name", "kv", "price", "tokens"]


def top(
    *,
    gateway: Gateway = URL,
    key: Key = None,
    sort: Annotated[
        _SortChoice, typer.Option(help="of the replicas: by name, fullest, cheapest or busiest first")
    ] = "name",
    once: Annotated[bool, typer.Option("--once", help="print one frame and exit")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with --once: the whole document (GET /admin/fleet)")] = False,
) -> None:
    """Watch the fleet: replicas, KV, tokens, money, queue, the last placements and why."""
    import asyncio  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from backends.spot_agent.admin_client import AdminError  # noqa: PLC0415
    from router.board.terminal import Top, show_once  # noqa: PLC0415
    from router.board.watching import Watching  # noqa: PLC0415

    if as_json and not once:
        raise typer.BadParameter("goes with --once; for a stream of documents ask GET /admin/live", param_hint="--json")
    watching = Watching(known_url(gateway), known_key(key))
    console = Console(highlight=False)
    try:
        if once or not console.is_terminal:
            document = asyncio.run(watching.document())
            if as_json:
                typer.echo(document)
            else:
                show_once(console, watching.read(document), sort)
        else:
            asyncio.run(Top(watching, console, sort).run())
    except AdminError as error:
        hint = "; is the gateway there? name it with --gateway" if error.status is None else ""
        typer.echo(f"penstock top: {error}{hint}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
