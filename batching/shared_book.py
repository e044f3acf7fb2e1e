"""The book of shares where holders may fall silent: what a script in Redis does, word for word, as a pure model of it.

Keeps what each holder may believe and gives nothing away twice; how a replica is divided is reckoned by whoever reports
(`batching.shared_holder`), who says what it would like, and gets it as far as it is free. `router/shared/scripts.py` is the same in Lua; a
test plays both. Times are milliseconds of the book's own clock, which may jump, and may be another's after a failover.

A holder that has not been heard for `lease_ms` keeps to its static share by its own clock; `settle_ms` later the book counts no more
for it. One that is silent for `forget_ms` keeps to nothing, and is forgotten. A book that was lost, or came back as it was some time ago,
raises nobody until every holder of the time before has been heard or keeps to its static share.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from batching.request import ReplicaId
from batching.shares import WHOLE


class Terms(NamedTuple):
    """What a holder and the book have agreed on. Milliseconds, and parts."""

    lease_ms: int
    settle_ms: int  # after a lease: what still runs shows in the engines' figures by then
    forget_ms: int
    static: int  # of each replica, kept beyond the lease if there was so much

    @property
    def lapse_ms(self) -> int:
        return self.lease_ms + self.settle_ms


class Join(StrEnum):
    """What an instance says of itself."""

    FIRST = "first"  # it has just begun: whoever had its name before is dead
    AGAIN = "again"  # its name was taken by another: it comes back if that one is gone
    NO = ""


class Status(StrEnum):
    """What became of a report."""

    OK = "ok"
    STALE = "stale"  # a later one has come before it
    SUPERSEDED = "superseded"  # another instance goes by this name


class Wish(NamedTuple):
    """What a holder says of one replica, in parts."""

    enforced: int  # it places no more
    in_use: int  # by what runs; more than `enforced` after a lapse
    target: int  # what it would like


class Entry(NamedTuple):
    """What the book has of one holder at one replica."""

    bound: int  # what the holder may believe at most
    in_use: int

    @property
    def occupied(self) -> int:
        return max(self.bound, self.in_use)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One holder's."""

    name: str
    instance: str
    number: int  # grows with each of an instance
    terms: Terms
    wishes: Mapping[ReplicaId, Wish]  # what it does not name it has given up
    known: Mapping[str, int] = field(default_factory=dict)  # other holders it knew last, and their static shares
    join: Join = Join.NO
    words: bytes = b""  # for the other holders; the book does not read it
    short: bool = False  # somebody waits for want of a share: the others are called


@dataclass(slots=True)
class Record:
    """What the book knows of a holder."""

    instance: str
    number: int
    heard_ms: int
    terms: Terms
    entries: dict[ReplicaId, Entry]
    lapsed: bool = False
    suspect: bool = False  # from before the book was lost: what it believes is not known
    words: bytes = b""

    def occupied(self, replica: ReplicaId) -> int:
        """Nobody else may have it."""
        if self.suspect:
            return self.terms.static
        entry = self.entries.get(replica)
        return 0 if entry is None else entry.occupied


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a holder is told."""

    status: Status
    now_ms: int = 0
    frozen: bool = False  # nobody is raised yet
    bounds: Mapping[ReplicaId, int] = field(default_factory=dict)
    others: Mapping[str, Record] = field(default_factory=dict)


class SharedBook:
    """`report` and `leave` are one script each, atomic in Redis."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self._server = ""  # that it was last written on
        self._heard_ms = 0  # anybody
        self._frozen_until_ms = 0

    def report(self, now_ms: int, server: str, report: Report) -> Reply:
        """`server`: which life of which Redis this is."""
        self._wake(now_ms, server, report.terms)
        self._expire(now_ms)
        frozen = now_ms <= self._frozen_until_ms
        own = self.records.get(report.name)
        if own is not None and not own.suspect and own.instance != report.instance:
            if report.join is Join.NO or (report.join is Join.AGAIN and not own.lapsed):
                return Reply(status=Status.SUPERSEDED)
            own = None  # its predecessor has died, and nothing of it runs
        elif own is not None and own.instance == report.instance and report.number <= own.number:
            return Reply(status=Status.STALE)
        if frozen:
            for name, static in report.known.items():
                if name != report.name and name not in self.records:
                    terms = report.terms._replace(static=static)
                    self.records[name] = Record("", -1, now_ms, terms, {}, suspect=True)
        others = {name: record for name, record in self.records.items() if name != report.name}
        entries = {
            replica: self._entry(own, others.values(), replica, wish, frozen) for replica, wish in report.wishes.items()
        }
        self.records[report.name] = Record(
            report.instance, report.number, now_ms, report.terms, entries, words=report.words
        )
        bounds = {replica: entry.bound for replica, entry in entries.items()}
        told = {name: replace(record) for name, record in others.items()}
        return Reply(status=Status.OK, now_ms=now_ms, frozen=frozen, bounds=bounds, others=told)

    def leave(self, name: str, instance: str) -> None:
        """It has ended, with all that it ran."""
        record = self.records.get(name)
        if record is not None and record.instance == instance:
            del self.records[name]

    def check(self) -> None:
        """Raises AssertionError where more than the whole may be believed."""
        for replica in {replica for record in self.records.values() for replica in record.entries}:
            bounds = [r.entries[replica].bound for r in self.records.values() if not r.suspect and replica in r.entries]
            assert sum(bounds) <= WHOLE, replica

    def _wake(self, now_ms: int, server: str, terms: Terms) -> None:
        """A book that was lost begins anew; after a silence of all, or a jump of the clock, everybody has a lease to be heard again."""
        if server != self._server:
            self._server = server
            self._frozen_until_ms = now_ms + terms.lapse_ms
            for record in self.records.values():
                record.heard_ms, record.suspect, record.lapsed = now_ms, True, False
        elif not 0 <= now_ms - self._heard_ms <= terms.settle_ms:
            for record in self.records.values():
                record.heard_ms = now_ms
            still = self._heard_ms <= self._frozen_until_ms
            self._frozen_until_ms = now_ms + terms.lapse_ms if still else 0
        self._heard_ms = now_ms

    def _expire(self, now_ms: int) -> None:
        """Those who have not been heard for too long."""
        for name, record in list(self.records.items()):
            silent_ms, terms = now_ms - record.heard_ms, record.terms
            if silent_ms > terms.forget_ms + terms.settle_ms:
                del self.records[name]
            elif silent_ms > terms.lapse_ms and not record.lapsed:
                record.lapsed = True
                record.entries = {
                    replica: Entry(min(entry.bound, terms.static), 0) for replica, entry in record.entries.items()
                }

    @staticmethod
    def _entry(own: Record | None, others: Iterable[Record], replica: ReplicaId, wish: Wish, frozen: bool) -> Entry:
        """Lowered to what it keeps to, raised as far as there is room; of whom the book knows no better has no more than that."""
        bound, known = wish.enforced, own is not None and not own.suspect
        if own is not None and known:
            before = own.entries.get(replica)
            bound = min(bound, 0 if before is None else before.bound)
        if not frozen and (wish.target > bound or not known):
            free = max(0, WHOLE - sum(record.occupied(replica) for record in others))
            if not known:  # it was made before its holder lapsed: that has its static share by now, which is free
                bound = min(bound, free)
            bound = max(bound, min(wish.target, free))
        return Entry(bound, wish.in_use)
