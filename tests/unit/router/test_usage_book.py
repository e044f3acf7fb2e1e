"""Usage: what is kept and for how long, how it is grouped, and what a spreadsheet makes of it."""

import csv
import io
from collections.abc import Iterable

import msgspec
import pytest

from config.usage import Usage as Bounds
from router.usage_book import DAY_S, FIELDS, HOUR_S, Entry, Group, Pending, UsageBook, Used
from router.usage_query import KEYS, Asked, Found, answer, document, table, unix_s

DAY = 1_767_225_600  # 2026-01-01, UTC
ALICE = Group("alice", "m", "default", "spot", "a")
BOB = Group("bob", "m", "flex", "reserved", "r")


def used(usd: float = 1.0, requests: int = 1, **more: int) -> Used:
    return Used(requests=requests, completed=requests, usd=usd, **more)


def book(entries: Iterable[tuple[int, Group, Used]], **bounds: int) -> UsageBook:
    made = UsageBook(Bounds(**bounds), DAY)
    made.extend(Entry(hour, group, some) for hour, group, some in entries)
    return made


def rows(found: Found) -> dict[tuple[str, ...], float]:
    return {row.keys: row.used.usd for row in found.rows}


def test_adding_forgets_no_field():
    """Each is written by name, for speed; none is missing."""
    some = Used(**{name: number for number, name in enumerate(FIELDS, 1)})
    some.add(Used(**{name: 100 * number for number, name in enumerate(FIELDS, 1)}))
    assert [getattr(some, name) for name in FIELDS] == [101 * number for number in range(1, len(FIELDS) + 1)]


def test_it_is_grouped_as_asked_in_one_order_of_columns():
    """Whatever order the keys were asked in; the dearest group first."""
    kept = book([(DAY, ALICE, used(1.0)), (DAY, BOB, used(3.0)), (DAY + HOUR_S, ALICE, used(1.5))])
    found = answer(kept, Asked(group_by=("model", "tenant")))
    assert found.group_by == ("tenant", "model")
    assert [(row.keys, row.used.usd) for row in found.rows] == [(("bob", "m"), 3.0), (("alice", "m"), 2.5)]
    assert (found.totals.usd, found.totals.requests, found.resolution) == (5.5, 3, "start")
    assert rows(answer(kept, Asked(group_by=()))) == {(): 5.5}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_splits_what_there_is_and_loses_nothing(key: str):
    """Groups of any kind sum to the totals."""
    kept = book([(DAY, ALICE, used(1.0)), (DAY + DAY_S, BOB, used(3.0))])
    found = answer(kept, Asked(group_by=(key,)))
    assert sum(rows(found).values()) == found.totals.usd == 4.0
    assert len(found.rows) == (1 if key == "model" else 2)


def test_hours_and_days_are_those_of_the_clock():
    """UTC, oldest first."""
    kept = book([(DAY + 5 * HOUR_S, ALICE, used(1.0)), (DAY + DAY_S, ALICE, used(2.0))])
    by_hour = answer(kept, Asked(group_by=("hour",)))
    assert [row.keys[0] for row in by_hour.rows] == ["2026-01-01T05:00Z", "2026-01-02T00:00Z"]
    assert rows(answer(kept, Asked(group_by=("day",)))) == {("2026-01-01",): 1.0, ("2026-01-02",): 2.0}


def test_a_window_is_the_whole_hours_that_it_touches():
    """And the answer says which they are."""
    kept = book([(DAY + hour * HOUR_S, ALICE, used(1.0)) for hour in range(10)])
    found = answer(kept, Asked(group_by=("tenant",), since=DAY + 2 * HOUR_S + 1, until=DAY + 4 * HOUR_S))
    assert rows(found) == {("alice",): 2.0}
    assert (found.from_unix_s, found.to_unix_s) == (DAY + 2 * HOUR_S, DAY + 4 * HOUR_S)


def test_what_is_older_than_hours_is_told_by_days():
    """Hours are kept for a while, days for longer, the sum for ever."""
    kept = book([(DAY + hour * HOUR_S, ALICE, used(1.0)) for hour in range(72)], hours=24, days=2)
    assert len(kept.hours) == 24
    assert len(kept.days) == 2
    found = answer(kept, Asked(group_by=(), since=DAY + DAY_S + 1))
    assert (found.resolution, found.totals.usd) == ("day", 48.0)
    found = answer(kept, Asked(group_by=(), since=DAY + 2 * DAY_S))
    assert (found.resolution, found.totals.usd) == ("hour", 24.0)
    assert answer(kept, Asked(group_by=())).totals.usd == 72.0


def test_a_clock_that_jumps_does_not_empty_the_book():
    """One hour from the far future costs the oldest hour, not all of them."""
    kept = book([(DAY + hour * HOUR_S, ALICE, used(1.0)) for hour in range(24)], hours=24)
    kept.add(Entry(DAY + 1_000_000 * HOUR_S, ALICE, used(1.0)))
    assert len(kept.hours) == 24
    kept.add(Entry(DAY + 24 * HOUR_S, ALICE, used(1.0)))
    assert DAY + 24 * HOUR_S in kept.hours


def test_tenants_beyond_the_bound_are_counted_together():
    """Whatever names come, there are only so many groups, and no dollar is lost."""
    kept = book([(DAY, ALICE._replace(tenant=f"t{n}"), used(1.0)) for n in range(50)], max_groups=10)
    found = answer(kept, Asked(group_by=("tenant",)))
    assert rows(found)["other",] == 40.0
    assert len(found.rows) == 11
    kept.extend(Entry(DAY, BOB._replace(replica=f"r{n}"), used(1.0)) for n in range(100))
    assert len(kept.total) <= 22
    assert answer(kept, Asked(group_by=())).totals.usd == 150.0


def test_what_is_pending_is_taken_once():
    """A worker tells the book what it has not told before."""
    pending = Pending(100)
    for usd in (1.0, 2.0):
        pending.add(Entry(DAY, ALICE, used(usd)))
    [entry] = pending.take()
    assert (entry.group, entry.used.usd, entry.used.requests) == (ALICE, 3.0, 2)
    assert pending.take() == []
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=Entry)
    assert again == entry


def test_a_csv_is_read_back_as_it_was():
    """By any reader of the standard; every figure is a plain number."""
    kept = book([(DAY, ALICE, used(0.000000012, input_tokens=7)), (DAY, BOB._replace(tenant='a "b", c'), used(2.5))])
    found = answer(kept, Asked(group_by=("tenant", "day")))
    read = list(csv.DictReader(io.StringIO(table(found))))
    assert list(read[0]) == ["day", "tenant", *FIELDS]
    by_tenant = {row["tenant"]: row for row in read}
    assert by_tenant['a "b", c']["usd"] == "2.5"
    assert by_tenant["alice"]["usd"] == "0.000000012"
    assert by_tenant["alice"]["input_tokens"] == "7"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_name_is_run_by_a_spreadsheet(name: str):
    """A tenant's name that looks like a formula is quoted in CSV, and whole in JSON."""
    found = answer(book([(DAY, ALICE._replace(tenant=name), used())]), Asked(group_by=("tenant",)))
    [row] = csv.DictReader(io.StringIO(table(found), newline=""))
    assert row["tenant"] == f"'{name}"
    [told] = document(found)["data"]
    assert told["tenant"] == name


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-01", DAY),
        ("2026-01-01T01:00:00Z", DAY + HOUR_S),
        ("2026-01-01T01:00:00+01:00", DAY),
        ("2026-01-01T01:00", DAY + HOUR_S),
        (str(DAY), DAY),
    ],
)
def test_times_are_read(text: str, seconds: int):
    """Dates, times with and without a zone (UTC), Unix seconds."""
    assert unix_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "99999999999999999", "1e9", "9999-12-31", "1969-01-01"]
)
def test_what_is_no_time_is_refused(text: str):
    """Rather than guessed at."""
    with pytest.raises((ValueError, OverflowError)):
        unix_s(text)
