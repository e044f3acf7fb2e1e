"""Who used what: tokens and dollars of every request that has ended, by hour, by day and since the start. Bounded, and in memory only.

A request is counted once, in the hour in which it ended, whatever became of it. Decides how long and how finely that is kept; what a
request has used is read by `router.usage`, questions are answered by `router.usage_query`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from config.usage import Usage as Bounds
from metrics.labels import OTHER

HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S


class Group(NamedTuple):
    """Whose use, of what, and where; the last two are empty of a request that was never placed."""

    tenant: str
    model: str
    service_tier: str
    cost_tier: str
    replica: str


class Used(msgspec.Struct, array_like=True):
    """Sums. `requests` is that of the outcomes; of `input_tokens` and `output_tokens` the estimated ones are no engine's word."""

    requests: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0  # rejected, or evicted from the queue
    input_tokens: int = 0  # prompts, cached ones included
    cached_input_tokens: int = 0
    output_tokens: int = 0  # reasoning included
    reasoning_tokens: int = 0
    estimated_input_tokens: int = 0
    estimated_output_tokens: int = 0
    usd: float = 0.0

    def add(self, other: "Used") -> None:
        """One by one, as it is done for every request."""
        self.requests += other.requests
        self.completed += other.completed
        self.failed += other.failed
        self.cancelled += other.cancelled
        self.refused += other.refused
        self.input_tokens += other.input_tokens
        self.cached_input_tokens += other.cached_input_tokens
        self.output_tokens += other.output_tokens
        self.reasoning_tokens += other.reasoning_tokens
        self.estimated_input_tokens += other.estimated_input_tokens
        self.estimated_output_tokens += other.estimated_output_tokens
        self.usd += other.usd


FIELDS: Final = Used.__struct_fields__


class Entry(msgspec.Struct, array_like=True):
    """Some use on its way to the book."""

    hour: int  # its first second, Unix time
    group: Group
    used: Used


Groups = dict[Group, Used]


class Pending:
    """What the book has not got yet: a request is added to one group here, and with others to the book's three."""

    def __init__(self, max_groups: int) -> None:
        self._max_groups = max_groups
        self._hours: dict[int, Groups] = {}

    def add(self, entry: Entry) -> None:
        _add(self._hours.setdefault(entry.hour, {}), entry, self._max_groups)

    def take(self) -> list[Entry]:
        """Whoever takes it owns it."""
        taken, self._hours = self._hours, {}
        return [Entry(hour, group, used) for hour, groups in taken.items() for group, used in groups.items()]


@dataclass(slots=True)
class UsageBook:
    """The only one of a gateway; of several workers it is the supervisor's."""

    bounds: Bounds
    started_unix_s: int
    total: Groups = field(default_factory=dict)
    hours: dict[int, Groups] = field(default_factory=dict)
    days: dict[int, Groups] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        most = self.bounds.max_groups
        _add(self.total, entry, most)
        _add(_kept(self.hours, entry.hour, self.bounds.hours), entry, most)
        _add(_kept(self.days, entry.hour - entry.hour % DAY_S, self.bounds.days), entry, most)

    def extend(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.add(entry)

    def window(self, since: int, until: int) -> tuple[int, dict[int, Groups]]:
        """(seconds each, by their first second): hours as far back as there are any for all of it, else days."""
        length, found = (HOUR_S, self.hours) if since >= self._hours_from() else (DAY_S, self.days)
        return length, {start: groups for start, groups in found.items() if start + length > since and start < until}

    def _hours_from(self) -> int:
        """Before it, days know more."""
        if len(self.hours) < self.bounds.hours:
            return 0  # all hours there ever were
        return min(self.hours)


def _kept(buckets: dict[int, Groups], start: int, most: int) -> Groups:
    """The bucket; the oldest goes for a new one. By number, not by age: a clock that jumps must not empty the book."""
    groups = buckets.get(start)
    if groups is None:
        groups = buckets[start] = {}
        for old in islice(sorted(buckets), max(0, len(buckets) - most)):
            del buckets[old]
    return groups


def _add(groups: Groups, entry: Entry, max_groups: int) -> None:
    group = entry.group
    used = groups.get(group)
    if used is None:
        if len(groups) >= max_groups:
            group = group._replace(tenant=OTHER)
            if group not in groups and len(groups) >= 2 * max_groups:  # replicas come and go without end, too
                group = Group(OTHER, OTHER, group.service_tier, group.cost_tier, OTHER)
        used = groups.setdefault(group, Used())
    used.add(entry.used)
