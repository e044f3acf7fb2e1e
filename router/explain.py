"""`penstock explain`: one placement's formula with its values, from a gateway that runs or from a decisions file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from router.admin_flags import URL, Key, known_key

if TYPE_CHECKING:
    from batching.decision_record import DecisionRecord

_TIMEOUT_S: Final = 10.0

EXAMPLES = """\b
Examples:
  penstock explain req-5d41402abc4b2a76b9719d91
      the id is in every answer's x-request-id header, and in the log
  penstock explain req-5d41402abc4b2a76b9719d91 --url http://127.0.0.1:9000
  penstock explain req-5d41402abc4b2a76b9719d91 --file decisions.jsonl
  penstock explain last
      the newest placement there is

\b
docs/decisions-ledger.md says what the terms mean.
"""


def explain(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="of an answer's x-request-id; or `last`")],
    *,
    url: Annotated[str, typer.Option(help="of the gateway")] = URL,
    key: Key = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="a decisions file instead of a gateway")
    ] = None,
) -> None:
    """Print why a request went where it went: the formula with its values, what was predicted and what happened."""
    from router.explain_text import explain as told  # noqa: PLC0415

    record = _asked(url, request_id, known_key(key)) if file is None else _read(file, request_id)
    typer.echo(told(record))


def _read(path: Path, request_id: str) -> "DecisionRecord":
    from router.decision_file import read_decisions  # noqa: PLC0415

    try:
        records = read_decisions(path).records
    except OSError as error:
        _refuse(f"{path}: {error.strerror or error}; name a readable file")
    except ValueError as error:
        _refuse(str(error))
    found = [record for record in records if request_id in ("last", record.request_id)]
    if not found:
        _refuse(
            f"{path.name} has {len(records)} placements and none of {request_id}; is the id whole? Older ones may be in {path.name}.1"
        )
    return max(found, key=lambda record: record.placed_s) if request_id != "last" else found[-1]


def _asked(url: str, request_id: str, key: str | None) -> "DecisionRecord":
    from urllib.parse import quote  # noqa: PLC0415

    import httpx  # noqa: PLC0415

    from router.decision_documents import parsed  # noqa: PLC0415

    base = f"{url.rstrip('/')}/admin/decisions"
    where = f"{base}?limit=1" if request_id == "last" else f"{base}/{quote(request_id, safe='')}"
    try:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        answer = httpx.get(where, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        told = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _refuse(f"no gateway answers at {url} ({error}); name it with --url, or a decisions file with --file")
    except ValueError:
        _refuse(f"what answers at {url} is no gateway of this kind; name another with --url")
    if answer.status_code != httpx.codes.OK:
        _refuse(_message(told, answer.status_code))
    if request_id == "last":
        if not told["data"]:
            _refuse("nothing was placed yet; send a request first")
        told = told["data"][0]
    try:
        return parsed(told)
    except (KeyError, ValueError, TypeError, AttributeError):
        _refuse(f"the gateway at {url} is of another version than this command; run the command that it came with")


def _message(told: object, status: int) -> str:
    error = told.get("error") if isinstance(told, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else f"the gateway answered {status}"


def _refuse(why: str) -> NoReturn:
    typer.echo(f"penstock explain: {why}", err=True)
    raise typer.Exit(1)
