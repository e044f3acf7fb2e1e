"""`penstock keys`: make, list, revoke and rotate API keys, in a file or a Redis that gateways read (docs/tenants.md)."""

from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import timedelta

    from config.shared import RedisServer
    from config.tenants import Scope
    from router.tenants.key_file import KeysFile
    from router.tenants.key_ring import KeyRing
    from router.tenants.keys import KeyRecord

EXIT_FAILED = 1

_EXAMPLES = """\b
Examples:
  penstock keys create --file keys.jsonl --tenant acme
  penstock keys create --file keys.jsonl --tenant ops --scope admin:read --scope metrics --expires 90d
  penstock keys list --file keys.jsonl
  penstock keys rotate k7m2xq9abc --file keys.jsonl --overlap 24h
  penstock keys revoke k7m2xq9abc --file keys.jsonl
  penstock keys create --redis redis://redis:6379/0 --tenant acme
  penstock keys import --file keys.jsonl --redis redis://redis:6379/0

\b
The key itself goes to standard output, once; what is kept is its hash. Running gateways notice within three seconds, of a Redis within one.
Without --file and --redis: what auth.keys_file or auth.keys_redis of --config, or of PENSTOCK_CONFIG, names. A password of Redis,
another prefix, Sentinels or a Cluster come from there, too.
"""

_File = Annotated[Path | None, typer.Option("--file", "-f", metavar="FILE", help="the keys file")]
_Redis = Annotated[str | None, typer.Option("--redis", metavar="URL", help="a Redis that holds the keys")]
_Config = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="a gateway's configuration, which names all of it")
]
_Pepper = Annotated[
    str | None, typer.Option(metavar="env:NAME|file:PATH", help="where auth.pepper is  [default: the configuration's]")
]
_Id = Annotated[str, typer.Argument(metavar="ID", help="of the key; `penstock keys list` shows them")]


def add_keys(app: typer.Typer) -> None:
    """The commands, as a group."""
    keys = typer.Typer(
        name="keys",
        help="Make, list, revoke and rotate API keys.",
        epilog=_EXAMPLES,
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    keys.command("create", epilog=_EXAMPLES)(create)
    keys.command("list")(list_)
    keys.command("revoke")(revoke)
    keys.command("rotate")(rotate)
    keys.command("import")(import_)
    app.add_typer(keys)


def create(
    *,
    tenant: Annotated[str, typer.Option(help="whose key it is")],
    scope: Annotated[
        list[str] | None, typer.Option(help="what it is good for; may be repeated  [default: inference]")
    ] = None,
    label: Annotated[str, typer.Option(help="a note for yourself")] = "",
    expires: Annotated[str | None, typer.Option(metavar="SPAN", help="90d, 24h, ...  [default: never]")] = None,
    starts: Annotated[str | None, typer.Option(metavar="SPAN", help="good only after so long")] = None,
    file: _File = None,
    redis: _Redis = None,
    config: _Config = None,
    pepper: _Pepper = None,
) -> None:
    """Make a key, and show it this once."""
    from router.tenants.keys import KeyRecord, good_name  # noqa: PLC0415

    if not good_name(tenant):
        what = "1 to 63 letters, digits, dots, dashes or underscores, and a letter or digit first"
        raise typer.BadParameter(what, param_hint="--tenant")
    now = _now()
    begins = None if starts is None else now + _span(starts, "--starts")
    ends = None if expires is None else now + _span(expires, "--expires")
    scopes = _scopes(scope or ["inference"])
    wanted = KeyRecord(id="", tenant=tenant, scopes=scopes, label=label[:200], not_before=begins, expires=ends)
    with _said_plainly():
        key, record = _keys(file, redis, config, pepper).create(wanted)
    _tell(key, record)


def list_(*, file: _File = None, redis: _Redis = None, config: _Config = None) -> None:
    """List keys: what they are for and until when, never the keys."""
    with _said_plainly():
        records = _keys(file, redis, config, None).records()
    typer.echo(_table(records, datetime.now(UTC)))


def revoke(id_: _Id, *, file: _File = None, redis: _Redis = None, config: _Config = None) -> None:
    """End a key."""
    with _said_plainly():
        record = _keys(file, redis, config, None).revoke(id_)
    typer.echo(
        f"{record.id} of tenant {record.tenant} is revoked; gateways notice within three seconds, of a Redis within one"
    )


def rotate(
    id_: _Id,
    *,
    overlap: Annotated[str, typer.Option(metavar="SPAN", help="the old key is good for so long yet")] = "24h",
    file: _File = None,
    redis: _Redis = None,
    config: _Config = None,
    pepper: _Pepper = None,
) -> None:
    """Make a key in the place of another, which ends soon."""
    with _said_plainly():
        key, record, old = _keys(file, redis, config, pepper).rotate(id_, _span(overlap, "--overlap"))
    _tell(key, record)
    _tell_end(old)


def import_(*, file: _File, redis: _Redis = None, config: _Config = None) -> None:
    """Bring the keys of a file into a Redis. What is there already stays as it is there."""
    from router.tenants.key_file import KeysFile  # noqa: PLC0415
    from router.tenants.key_ring import KeyRing  # noqa: PLC0415

    with _said_plainly():
        ring = _keys(None, redis, config, None, no_file=True)
        assert isinstance(ring, KeyRing)
        records = KeysFile(Path(str(file)), None, _now).records()
        brought = ring.bring(records)
    typer.echo(f"{brought} keys have come to Redis, {len(records) - brought} were there already")


def _tell(key: str, record: "KeyRecord") -> None:
    """The key alone on standard output, for whoever pipes it."""
    typer.echo(key)
    scopes = ", ".join(record.scopes)
    text = f"key {record.id} of tenant {record.tenant}, for {scopes}, {_until(record.expires)}; it is not shown again"
    typer.echo(text, err=True)


def _tell_end(old: "KeyRecord") -> None:
    typer.echo(f"{old.id} is good until {_when(old.expires)}", err=True)


def _table(records: "Iterable[KeyRecord]", now: datetime) -> str:
    rows = [("ID", "TENANT", "STATE", "SCOPES", "CREATED", "EXPIRES", "LABEL")]
    for record in records:
        scopes = ",".join(record.scopes)
        created = "-" if record.created is None else f"{record.created:%Y-%m-%d}"
        label = "".join(c if c.isprintable() else "?" for c in record.label)
        rows.append((record.id, record.tenant, _state(record, now), scopes, created, _when(record.expires), label))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _state(record: "KeyRecord", now: datetime) -> str:
    if record.revoked is not None:
        return "revoked"
    if record.expires is not None and record.expires <= now:
        return "expired"
    return "not yet" if record.not_before is not None and record.not_before > now else "good"


def _until(time: datetime | None) -> str:
    return "without end" if time is None else f"until {_when(time)}"


def _when(time: datetime | None) -> str:
    return "never" if time is None else f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _span(text: str, flag: str) -> "timedelta":
    from router.tenants.durations import typed  # noqa: PLC0415

    try:
        return typed(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None


def _scopes(told: list[str]) -> "list[Scope]":
    from config.tenants import Scope  # noqa: PLC0415

    known = [scope.value for scope in Scope]
    for name in told:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint="--scope")
    return [Scope(name) for name in dict.fromkeys(told)]


def _keys(
    file: Path | None, redis: str | None, config: Path | None, pepper: str | None, *, no_file: bool = False
) -> "KeysFile | KeyRing":
    """Raises a usage error where nobody says which. `no_file`: what the configuration says of a file does not count."""
    from config.load import ConfigError, load, referenced_secret  # noqa: PLC0415
    from config.shared import RedisServer  # noqa: PLC0415

    if file is not None and redis is not None:
        raise typer.BadParameter(
            "keys are written in one place at a time; give one of the two", param_hint="--file, --redis"
        )
    secret, server = None, RedisServer()
    if (file is None and redis is None) or config is not None:
        try:
            auth = load(config).auth
        except ConfigError as error:
            raise typer.BadParameter("; ".join(error.problems), param_hint="--config") from None
        secret, server = auth.pepper, auth.keys_redis
        if file is None and redis is None:
            file = None if no_file or auth.keys_file is None else Path(auth.keys_file)
            if (file is None) is not server.enabled:
                what = "both auth.keys_file and auth.keys_redis are there" if server.enabled else "nobody says where"
                raise typer.BadParameter(f"which keys? {what}; say it", param_hint="--file or --redis")
    if pepper is not None:
        try:
            secret = referenced_secret(pepper)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--pepper") from None
    hidden = None if secret is None else secret.encode()
    if file is not None:
        from router.tenants.key_file import KeysFile  # noqa: PLC0415

        return KeysFile(file, hidden, _now)
    return _ring(server, redis, hidden)


def _ring(server: "RedisServer", url: str | None, pepper: bytes | None) -> "KeyRing":
    """At `url`, with whatever else is said of `server`."""
    from pydantic import ValidationError  # noqa: PLC0415

    from router.tenants.key_ring import KeyRing  # noqa: PLC0415
    from router.tenants.keys_in_redis import KeysInRedis  # noqa: PLC0415

    if url is not None:
        try:
            server = type(server).model_validate({**server.model_dump(), "url": url, "sentinel": None})
        except ValidationError as error:
            raise typer.BadParameter(
                "; ".join(found["msg"] for found in error.errors()), param_hint="--redis"
            ) from None
    return KeyRing(lambda: KeysInRedis(server), pepper, _now)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@contextmanager
def _said_plainly() -> "Iterator[None]":
    """What went wrong in one line, and an exit code."""
    from router.tenants.key_changes import KeysError, Unconfirmed  # noqa: PLC0415

    try:
        yield
    except Unconfirmed as error:
        _tell(error.key, error.record)
        if error.old is not None:
            _tell_end(error.old)
        typer.echo(f"penstock keys: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    except KeysError as error:
        typer.echo(f"penstock keys: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
