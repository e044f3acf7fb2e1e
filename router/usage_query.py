"""A question about usage and its answer: grouped, totalled, as a document or as CSV. Pure.

The window is whole hours or days, the ones that the times asked for fall into; the answer says which. Columns have one order, whatever
order they were asked in, so that a sheet built on them keeps working.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Final

import msgspec

from router.usage_book import DAY_S, FIELDS, HOUR_S, Group, Groups, UsageBook, Used

TIMES: Final = ("day", "hour")
DIMENSIONS: Final = Group._fields
KEYS: Final = (*TIMES, *DIMENSIONS)  # what can be grouped by, in the columns' order
MAX_ROWS: Final = 10_000
_FOREVER: Final = 1 << 37  # Unix seconds: the year 6325
_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")  # what spreadsheets run, where a cell begins with it


class Asked(msgspec.Struct, kw_only=True):
    """Unix seconds; None: no bound, both None: since the start."""

    group_by: tuple[str, ...]
    since: int | None = None
    until: int | None = None


class Row(msgspec.Struct, array_like=True):
    """One group: its keys in the order of `KEYS`, those that were asked for."""

    keys: tuple[str, ...]
    used: Used


class Found(msgspec.Struct, kw_only=True):
    """The answer. `resolution`: start (all there is), hour or day."""

    group_by: tuple[str, ...]
    resolution: str
    from_unix_s: int
    to_unix_s: int | None  # None: until now
    rows: list[Row]
    totals: Used
    left_out: int = 0  # groups beyond MAX_ROWS, the cheapest ones; in the totals all the same


def answer(book: UsageBook, asked: Asked) -> Found:
    """Dearest first; by time, oldest first. O(groups kept)."""
    group_by = tuple(key for key in KEYS if key in asked.group_by)
    resolution, buckets, since, until = _buckets(book, asked, group_by)
    found: dict[tuple[str, ...], Used] = {}
    totals = Used()
    for start, groups in buckets:
        moment = moment_of(start, resolution)
        for group, used in groups.items():
            key = tuple(moment if name in TIMES else getattr(group, name) for name in group_by)
            found.setdefault(key, Used()).add(used)
            totals.add(used)
    timed = bool(group_by) and group_by[0] in TIMES
    dearest = sorted(found.items(), key=lambda item: (-item[1].usd, -item[1].requests, item[0]))
    kept = list(islice(dearest, MAX_ROWS))
    if timed:
        kept.sort(key=lambda item: item[0][0])
    return Found(
        group_by=group_by,
        resolution=resolution,
        from_unix_s=since,
        to_unix_s=until,
        rows=[Row(key, used) for key, used in kept],
        totals=totals,
        left_out=len(dearest) - len(kept),
    )


def _buckets(
    book: UsageBook, asked: Asked, group_by: Sequence[str]
) -> tuple[str, Iterable[tuple[int, Groups]], int, int | None]:
    since, until = asked.since, asked.until
    bounded = since is not None or until is not None
    if not bounded and not any(name in TIMES for name in group_by):
        return "start", [(0, book.total)], book.started_unix_s, None
    low, high = since or 0, _FOREVER if until is None else until
    if "hour" in group_by:
        length, found = HOUR_S, book.hours
    elif "day" in group_by:
        length, found = DAY_S, book.days
    else:
        length, found = book.window(low, high)
    inside = {start: groups for start, groups in sorted(found.items()) if start + length > low and start < high}
    first = min(inside, default=low // length * length)
    last = None if until is None else -(-until // length) * length
    return (
        ("hour" if length == HOUR_S else "day"),
        inside.items(),
        first if since is None else low // length * length,
        last,
    )


def document(found: Found) -> Mapping[str, object]:
    """As JSON."""
    return {
        "object": "usage",
        "resolution": found.resolution,
        "from": iso(found.from_unix_s),
        "to": None if found.to_unix_s is None else iso(found.to_unix_s),
        "group_by": found.group_by,
        "data": [dict(zip(found.group_by, row.keys, strict=True)) | figures(row.used) for row in found.rows],
        "totals": figures(found.totals),
        "left_out": found.left_out,
    }


def table(found: Found) -> str:
    """As CSV (RFC 4180): a line of names, then the groups. No totals: whoever sums a column would count them twice."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*found.group_by, *FIELDS])
    for row in found.rows:
        writer.writerow([*map(_cell, row.keys), *(_plain(getattr(row.used, name)) for name in FIELDS)])
    return text.getvalue()


def figures(used: Used) -> dict[str, int | float]:
    return {name: getattr(used, name) for name in FIELDS}


def iso(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


def moment_of(start: int, resolution: str) -> str:
    """Of an hour or a day, as a key."""
    moment = datetime.fromtimestamp(start, UTC)
    return moment.date().isoformat() if resolution == "day" else moment.strftime("%Y-%m-%dT%H:00Z")


def unix_s(text: str) -> int:
    """Of `2026-01-31`, `2026-01-31T08:00:00Z` or Unix seconds; raises ValueError."""
    if text.isascii() and text.isdigit() and len(text) > len("20260131"):
        seconds = int(text)
    else:
        moment = datetime.fromisoformat(text)
        seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if not 0 <= seconds < _FOREVER:
        raise ValueError("no clock will show that")
    return seconds


def _cell(text: str) -> str:
    """A name that a spreadsheet would run as a formula is quoted; tenants' names are not ours."""
    return f"'{text}" if text.startswith(_FORMULAS) else text


def _plain(value: float) -> str:
    """No exponents: some sheets read them as text."""
    return str(value) if isinstance(value, int) else f"{value:.12f}".rstrip("0").rstrip(".")
