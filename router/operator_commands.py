"""`penstock replicas`, `drain` and `restore`: what an operator says to a running gateway about its replicas."""

from math import isfinite
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from router.admin_flags import URL, Gateway, Key, known_key, known_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backends.spot_agent.admin_client import AdminClient

EXIT_FAILED = 1

REPLICAS_EXAMPLES = """\b
Examples:
  penstock replicas
  penstock replicas --gateway http://10.0.0.2:8080 --key env:PENSTOCK_ADMIN_KEY
"""

DRAIN_EXAMPLES = """\b
Examples:
  penstock drain h100
      no new requests; those under way take the time they need
  penstock drain h100 --deadline 60
      what would not finish within a minute moves to other replicas
  penstock drain h100 --no-wait
  penstock drain h100 --gateway http://10.0.0.2:8080 --key file:/etc/penstock/admin.key && systemctl stop vllm

\b
Exit code 0: nothing of this gateway runs there any more. Ctrl-C stops the waiting, not the drain; penstock restore ends that.
Several gateways are drained one by one.
"""

RESTORE_EXAMPLES = """\b
Examples:
  penstock restore h100
  penstock restore h100 --gateway http://10.0.0.2:8080 --key env:PENSTOCK_ADMIN_KEY
"""

_Name = Annotated[str, typer.Argument(metavar="NAME", help="of the replica; `penstock replicas` lists them")]


def replicas(*, gateway: Gateway = URL, key: Key = None) -> None:
    """List the replicas of a running gateway: lifecycle, requests, deadline."""
    from router.draining import listed, wall_clock  # noqa: PLC0415

    async def show(admin: "AdminClient") -> int:
        typer.echo(listed(await admin.replicas(), wall_clock()))
        return 0

    _with_gateway("replicas", gateway, key, show)


def drain(
    name: _Name,
    *,
    deadline: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="seconds until the replica must be empty  [default: none]")
    ] = None,
    gateway: Gateway = URL,
    key: Key = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="until the replica is released")] = True,
) -> None:
    """Send a replica no more requests, and wait until it is empty."""
    from router.draining import Drain  # noqa: PLC0415

    if deadline is not None and not isfinite(deadline):  # typer refuses nan, not inf
        raise typer.BadParameter("not a number of seconds; leave it out for none", param_hint="--deadline")

    async def empty(admin: "AdminClient") -> int:
        return await Drain(admin, name, typer.echo).run(deadline, wait=wait)

    _with_gateway("drain", gateway, key, empty)


def restore(name: _Name, *, gateway: Gateway = URL, key: Key = None) -> None:
    """End a drain or take back a notice: the replica gets requests again."""

    async def end(admin: "AdminClient") -> int:
        view = await admin.restore(name)
        typer.echo(f"{view.name}: {view.lifecycle}")
        return 0

    _with_gateway("restore", gateway, key, end)


def _with_gateway(command: str, url: str, key: str | None, do: "Callable[[AdminClient], Awaitable[int]]") -> NoReturn:
    import asyncio  # noqa: PLC0415

    from backends.spot_agent.admin_client import AdminClient, AdminError  # noqa: PLC0415

    where, secret = known_url(url), known_key(key)

    async def ask() -> int:
        async with AdminClient(where, secret) as admin:
            return await do(admin)

    try:
        code = asyncio.run(ask())
    except AdminError as error:
        hint = "; is the gateway there? name it with --gateway" if error.status is None else ""
        typer.echo(f"penstock {command}: {error}{hint}", err=True)
        code = EXIT_FAILED
    except KeyboardInterrupt:
        typer.echo(f"penstock {command}: no longer waiting", err=True)
        code = 130  # as shells say it: ended by SIGINT
    raise typer.Exit(code)
