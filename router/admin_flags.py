"""The flags that say which gateway's admin API to ask, and with which key; shared by the commands that do."""

from typing import Annotated, Final

import typer

URL: Final = "http://127.0.0.1:8080"

Key = Annotated[
    str | None,
    typer.Option(metavar="env:NAME|file:PATH", help="where the gateway's server.admin_key is  [default: no key]"),
]
Gateway = Annotated[str, typer.Option(metavar="URL", help="of the gateway")]


def known_key(reference: str | None) -> str | None:
    """The key itself; a reference to none is a usage error."""
    from config.load import referenced_secret  # noqa: PLC0415

    if reference is None:
        return None
    try:
        key = referenced_secret(reference)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--key") from None
    if not (key.isascii() and key.isprintable()):
        raise typer.BadParameter(f"what {reference} holds cannot be sent as a key", param_hint="--key")
    return key


def known_url(text: str, flag: str = "--gateway") -> str:
    """Without a slash at its end; what is no gateway's URL is a usage error."""
    from backends.spot_agent.admin_client import gateway_url  # noqa: PLC0415

    try:
        return gateway_url(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None
