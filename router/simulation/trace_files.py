"""Traces from files: an Azure-style CSV or a Mooncake-style JSONL, whichever the content shows.

Both may say more of a request than the published ones do: `tenant`, `service_tier` (priority, default, flex, batch) and
`max_wait_s`. What cannot be a request is a ValueError of one line that names the file and the line in it.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from reprlib import Repr
from typing import Any, Final

from batching.request import ServiceTier
from router.simulation.trace import Call

_AZURE: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MOONCAKE: Final = ("timestamp", "input_length", "output_length")
_MAX_TOKENS: Final = 1_000_000_000  # no context is near it; beyond it a length is another column's value
_MAX_SPAN_S: Final = 366 * 86_400.0  # a longer trace has a date that is none, and would be played for hours of nothing
_EPOCH: Final = datetime(
    2000, 1, 1, tzinfo=UTC
)  # any fixed moment near the traces': differences keep their microseconds

_Rows = Iterator[tuple[int, Mapping[str, Any], tuple[str, ...]]]  # line, values, names of time, prompt and output


def read_trace(path: Path, limit: int | None = None) -> list[Call]:
    """The first `limit` requests in order of arrival, equal times in the file's order; raises ValueError or OSError.

    A prompt or an answer of no tokens, which real traces contain, counts as one of one token.
    """
    calls = sorted(_read(path), key=lambda call: call.arrival_s)
    if not calls:
        raise ValueError(f"{path.name}: no requests")
    start_s, span_s = calls[0].arrival_s, calls[-1].arrival_s - calls[0].arrival_s
    if span_s > _MAX_SPAN_S:
        raise ValueError(f"{path.name}: its timestamps are {span_s / 86_400:,.0f} days apart; is one of them wrong?")
    return [replace(call, arrival_s=call.arrival_s - start_s) for call in calls[:limit]]


def _read(path: Path) -> Iterator[Call]:
    lines = _lines(path)
    for blank, line in enumerate(lines):
        if line.strip():
            rows = _mooncake_rows if line.lstrip().startswith("{") else _azure_rows
            return _calls(path.name, rows(path.name, chain([line], lines), blank))
    return iter(())


def _lines(path: Path) -> Iterator[str]:
    """Read one by one, so that an encoding error has a line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{path.name}:{number}: not UTF-8 text; is this a CSV or JSON lines?") from None


def _azure_rows(name: str, lines: Iterator[str], before: int) -> _Rows:
    rows = csv.DictReader(lines)
    try:
        missing = [column for column in _AZURE if column not in (rows.fieldnames or ())]
        if missing:
            what = f"a CSV without the columns {', '.join(missing)}"
            raise ValueError(f"{name}:{before + 1}: neither JSON lines nor {what}")
        for row in rows:
            yield before + rows.line_num, row, _AZURE
    except csv.Error as error:
        raise ValueError(f"{name}:{before + rows.reader.line_num}: not CSV: {error}") from None


def _mooncake_rows(name: str, lines: Iterator[str], before: int) -> _Rows:
    for number, line in enumerate(lines, before + 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{name}:{number}: a JSON {type(row).__name__}, not an object")  # noqa: TRY004 - the file's
        missing = [key for key in _MOONCAKE if key not in row]
        if missing:
            raise ValueError(f"{name}:{number}: lacks {', '.join(missing)}")
        yield number, row, _MOONCAKE


def _calls(name: str, rows: _Rows) -> Iterator[Call]:
    for number, row, (timestamp, prompt, output) in rows:
        column = timestamp
        try:
            arrival_s = _seconds(row[timestamp]) / (1000 if timestamp == "timestamp" else 1)
            column = prompt
            prompt_tokens = _tokens(row[prompt])
            column = output
            output_tokens = _tokens(row[output])
            more: dict[str, Any] = {}
            for column, (field, read) in _OPTIONAL.items():
                if row.get(column) not in (None, ""):
                    more[field] = read(row[column])
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{name}:{number}: {column} {_shown(row.get(column))} is {error}") from None
        yield Call(arrival_s=arrival_s, prompt_tokens=prompt_tokens, output_tokens=output_tokens, **more)


def _tokens(value: object) -> int:
    """1 for 0; whole numbers may be written `12.0`, as spreadsheets do."""
    number = _number(value)
    if not (0 <= number <= _MAX_TOKENS and number == int(number)):
        raise ValueError(f"not a number of tokens (0 to {_MAX_TOKENS:,})")
    return max(1, int(number))


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")  # noqa: TRY004 - the file's
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("not a number") from None
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _seconds(value: object) -> float:
    """Since any fixed moment, from a date (UTC where it names no zone) or a plain number."""
    try:
        return _number(value)
    except ValueError:
        if not isinstance(value, str):
            raise
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        raise ValueError("neither a date nor a number") from None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds()


def _tier(value: object) -> ServiceTier:
    tiers = {tier.label: tier for tier in ServiceTier}
    tier = tiers.get(str(value).strip().lower())
    if tier is None:
        raise ValueError(f"none of {', '.join(tiers)}")
    return tier


def _wait_s(value: object) -> float:
    seconds = _number(value)
    if seconds <= 0:
        raise ValueError("not a time to wait; seconds above 0, or nothing for the queue's own bound")
    return seconds


def _blocks(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ValueError("not a list of whole numbers")
    return tuple(value)


_OPTIONAL: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "hash_ids": ("prefix_blocks", _blocks),
    "tenant": ("tenant", str),
    "service_tier": ("service_tier", _tier),
    "max_wait_s": ("max_wait_s", _wait_s),
}


def _shown(value: object) -> str:
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = 40
    return short.repr(value)
