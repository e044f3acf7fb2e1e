"""A holder's side of the book that several gateways share: what it reports, what an answer means, what it keeps when none comes.

Pure; times are seconds of the holder's own clock. A lease counts from the moment its report was sent. Once it has lapsed nothing is placed
beyond the static share, what runs there ends; after `forget_ms` nothing is placed at all. `check` must be called before anything is
placed at or after `expires_s`, however long the process was stopped.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from math import inf
from typing import Final

import msgspec

from batching.request import ReplicaId
from batching.share_holder import Allotted, Saying
from batching.shared_book import Join, Record, Reply, Report, Status, Terms, Wish
from batching.shares import WHOLE, Claim, HolderId, Running, divided

_REPORTS_A_LEASE: Final = 3  # two may be lost
_UNEASY_S: Final = 0.05  # while somebody waits, or others for what is in use here


class Mode(StrEnum):
    """How far this gateway's shares can be relied on."""

    REDIS = "redis"  # the book's
    LAST_LEASE = "last_lease"  # the book's last; no answer came since
    STATIC = "static"  # no answer for too long: what is kept without one
    NONE = "none"  # never heard, forgotten, or its name is another's


class Words(msgspec.Struct, array_like=True):
    """What holders tell each other through the book."""

    claims: dict[ReplicaId, Claim]
    turns: dict[ReplicaId, int]  # since when a head waits, by the book's clock
    released: list[str] = []  # on their way out, and nothing of this gateway's is there
    told_running: int = 0  # the number of what was last told of what runs
    more: dict[str, bytes] = {}  # by topic, what others than the shares' keeper say; small: it goes with every report


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Words).decode


class SharedHolder:
    """One holder. `report`, send it, `take` what comes back or say `failed`; one report at a time."""

    def __init__(self, holder: Allotted, name: str, instance: str, terms: Terms) -> None:
        self.name = name
        self.mode = Mode.NONE
        self.superseded = False  # another gateway goes by its name
        self.frozen = False
        self.lapsed_s = -inf  # when it was last noticed that less is kept than was said
        self.released: list[str] = []  # told to the others with the next report
        self.more: dict[str, bytes] = {}  # likewise, by topic
        self.calling = False  # the next report calls the others, so that they hear it at once
        self._holder = holder
        self._instance, self._lives = instance, 0
        self._terms = terms
        self._join = Join.FIRST
        self._number = 0
        self._sent_s = 0.0  # the report under way
        self._answered_s: float | None = None  # when the last one that was answered was sent
        self._failing = False
        self._book = (0, 0.0)  # the book's clock, and ours then
        self._others: dict[HolderId, Words] = {}  # who is heard
        self._records: Mapping[str, Record] = {}
        self._turns: dict[ReplicaId, int] = {}
        self._granted: set[ReplicaId] = set()  # the last answer has room for the head
        self._saying = Saying()
        self._told_running = 0
        # Told between reports, with the teller's number: newer than what its last report says.
        self.unread: list[str] = []  # holders whose words are of another version, or lost
        self._fresh: dict[tuple[HolderId, ReplicaId], tuple[int, Running]] = {}

    @property
    def instance(self) -> str:
        """What tells it from others of its name, before it and after it."""
        return f"{self._instance}.{self._lives}"

    @property
    def expires_s(self) -> float:
        """When less may be placed than now."""
        if self._answered_s is None or self.mode is Mode.NONE:
            return inf
        terms = self._terms
        return self._answered_s + (terms.forget_ms if self.mode is Mode.STATIC else terms.lease_ms) / 1000

    @property
    def gateways(self) -> int:
        """Holders that are heard, this one included."""
        return len(self._others) + (self.mode is not Mode.NONE)

    @property
    def pause_s(self) -> float:
        """Between two reports, while nothing presses."""
        return self._terms.lease_ms / 1000 / _REPORTS_A_LEASE

    def age_s(self, now_s: float) -> float | None:
        """Of what is known of the book; None: nothing is."""
        return None if self._answered_s is None else now_s - self._answered_s

    def others_let_go(self, replica: str) -> bool:
        """Whether every other gateway that is heard, and has the replica, says that nothing of its is there; one cannot be read: no."""
        return not self.unread and all(replica in words.released for words in self._elsewhere(replica))

    def others_on(self, replica: str) -> int:
        """Sequences that other gateways run there."""
        return sum(words.claims[ReplicaId(replica)].running.sequences for words in self._elsewhere(replica))

    def running(self) -> tuple[int, dict[ReplicaId, Running]]:
        """(a number, what has changed since it was last told to the others). O(replicas)."""
        self._told_running += 1
        return self._told_running, self._saying.changed(self._holder.running())

    def hear(self, name: HolderId, number: int, running: Mapping[ReplicaId, Running], now_s: float) -> None:
        """What another has running by now, until its reports are of later."""
        words = self._others.get(name)
        if words is not None and number > words.told_running:
            for replica, now_running in running.items():
                if number > self._fresh.get((name, replica), (-1,))[0]:
                    self._fresh[name, replica] = (number, now_running)
                    self._holder.beside(replica, self._running(replica), now_s)

    def heard(self, topic: str) -> dict[HolderId, bytes]:
        """What others say of it, as far as they are heard: other workers of this gateway, too."""
        return {name: words.more[topic] for name, words in self._others.items() if topic in words.more}

    def _elsewhere(self, replica: str) -> Iterator[Words]:
        """What is said of it by other gateways; workers of this one are asked otherwise."""
        gateway = self.name.partition("/")[0]
        for name, words in self._others.items():
            if replica in words.claims and name.partition("/")[0] != gateway:
                yield words

    # -- reports -----------------------------------------------------------------------------------------------------

    def report(self, now_s: float) -> Report:
        """What is had and wanted of each replica; what the others have more right to is let go of first."""
        self.check(now_s)
        calling, self.calling = self.calling, False
        self._number += 1
        self._sent_s = now_s
        claims = dict(self._holder.claims())
        self._saying.reported(claims)
        self._wait(claims, now_s)
        targets = self._targets(claims) if self.mode in {Mode.REDIS, Mode.LAST_LEASE} else {}
        wishes: dict[ReplicaId, Wish] = {}
        for replica, claim in tuple(claims.items()):
            target = targets.get(replica, claim.enforced)
            kept = min(claim.enforced, target)  # what runs beyond it is the book's second figure
            if kept < claim.enforced:
                self._holder.allot(replica, kept)
                claims[replica] = claim._replace(enforced=kept)
            wishes[replica] = Wish(kept, claim.in_use, target)
        return Report(
            name=self.name,
            instance=self.instance,
            number=self._number,
            terms=self._terms,
            wishes=wishes,
            known={name: record.terms.static for name, record in self._records.items()},
            join=self._join,
            short=calling or any(claim.short for claim in claims.values()),
            words=_encode(Words(claims, self._turns, self.released, self._told_running, self.more)),
        )

    def take(self, now_s: float, reply: Reply) -> float:
        """The answer to the report under way; seconds until the next one is due. What it says has effect now."""
        if reply.status is Status.SUPERSEDED:
            return self._superseded(now_s)
        if reply.status is Status.STALE or now_s >= self._sent_s + self._terms.lease_ms / 1000:
            return self.failed(now_s)  # too late to be counted on
        known = self.mode in {Mode.REDIS, Mode.LAST_LEASE}
        self._answered_s, self._failing = self._sent_s, False
        self._book = (reply.now_ms, now_s)
        self.mode, self.superseded, self.frozen, self._join = Mode.REDIS, False, reply.frozen, Join.NO
        again = {
            name
            for name, record in reply.others.items()
            if name in self._records and self._records[name].instance != record.instance
        }
        self._records = reply.others
        self._others = self._heard(reply.others)
        self._fresh = {
            at: fresh
            for at, fresh in self._fresh.items()
            # Who has begun again counts from the beginning, and runs nothing of what was told before.
            if at[0] not in again and (words := self._others.get(at[0])) is not None and fresh[0] > words.told_running
        }
        claims = self._holder.claims()
        for replica, bound in reply.bounds.items():
            if replica in claims:
                self._holder.allot(replica, bound)
                self._holder.beside(replica, self._running(replica), now_s)
                if bound >= claims[replica].needed:
                    self._granted.add(replica)
        return self._due(known)

    def failed(self, now_s: float) -> float:
        """No answer came, or none that counts; seconds until the next report is due."""
        self._failing = True
        self.check(now_s)
        return self.pause_s

    def check(self, now_s: float) -> bool:
        """Whether the mode has changed by the passing of time."""
        if self._answered_s is None or self.mode is Mode.NONE:
            return False
        before, age_ms = self.mode, (now_s - self._answered_s) * 1000
        if age_ms >= self._terms.forget_ms:
            self.mode = Mode.NONE
            self._keep(0, now_s)
        elif age_ms >= self._terms.lease_ms:
            self.mode = Mode.STATIC
            if before is not Mode.STATIC:
                self._keep(self._terms.static, now_s)
                self._forget_prefill(now_s)
        elif self._failing:
            self.mode = Mode.LAST_LEASE
        return self.mode is not before

    # -- what follows from them --------------------------------------------------------------------------------------

    def _superseded(self, now_s: float) -> float:
        """Its name is another's: it has nothing until that one is gone, and then it is somebody new."""
        if not self.superseded:
            self.superseded = True
            self._lives += 1
        self._join, self.mode, self._answered_s = Join.AGAIN, Mode.NONE, None
        self._others, self._records, self._fresh = {}, {}, {}
        self._keep(0, now_s)
        return self.pause_s

    def _keep(self, parts: int, now_s: float) -> None:
        """Of every replica no more than this."""
        self.lapsed_s = now_s
        for replica, claim in self._holder.claims().items():
            if claim.enforced > parts:
                self._holder.allot(replica, parts)

    def _heard(self, records: Mapping[str, Record]) -> dict[HolderId, Words]:
        """Whose words count. One whose words cannot be read keeps what it has; no more is known of it, and nothing is asked of it."""
        found: dict[HolderId, Words] = {}
        self.unread = []
        for name, record in records.items():
            if not (record.lapsed or record.suspect or self._is_silent(record)):
                try:
                    found[HolderId(name)] = _decode(record.words)
                except msgspec.DecodeError:
                    self.unread.append(name)
        return found

    def _forget_prefill(self, now_s: float) -> None:
        """Nobody says any more when it is done; it is by now."""
        for replica in self._holder.claims():
            self._holder.beside(replica, self._running(replica)._replace(prefill_s=0.0), now_s)

    def _running(self, replica: ReplicaId) -> Running:
        """What the others have there, as far as they are heard."""
        return Running.together(
            self._fresh.get((name, replica), (0, words.claims[replica].running))[1]
            for name, words in self._others.items()
            if replica in words.claims
        )

    def _is_silent(self, record: Record) -> bool:
        return self._book[0] - record.heard_ms > record.terms.lease_ms

    def _wait(self, claims: Mapping[ReplicaId, Claim], now_s: float) -> None:
        """Heads take turns: the next one, or one that had room and waits for something else, stands behind the others'."""
        book_ms, then_s = self._book
        for replica in [replica for replica in self._turns if replica not in claims]:
            del self._turns[replica]
        for replica, claim in claims.items():
            if not claim.needed:
                self._turns.pop(replica, None)
            elif replica not in self._turns or replica in self._granted:
                self._turns[replica] = book_ms + int((now_s - then_s) * 1000)
        self._granted.clear()

    def _targets(self, claims: Mapping[ReplicaId, Claim]) -> dict[ReplicaId, int]:
        """What this one should have of each replica, by what is known of the others."""
        own = HolderId(self.name)
        found: dict[ReplicaId, int] = {}
        for replica, claim in claims.items():
            all_claims, turns = {own: claim}, {}
            if replica in self._turns:
                turns[own] = self._turns[replica]
            for name, words in self._others.items():
                if replica in words.claims:
                    all_claims[name] = words.claims[replica]
                    if replica in words.turns:
                        turns[name] = words.turns[replica]
            gone = sum(record.occupied(replica) for name, record in self._records.items() if name not in self._others)
            kept = {name: each.in_use for name, each in all_claims.items()}
            found[replica] = divided(replica, all_claims, kept, turns, max(0, WHOLE - gone))[own]
        return found

    def _due(self, known: bool) -> float:
        """Until the next report: at once where others wait for what it would give back, or where it could not wish yet."""
        claims = self._holder.claims()
        targets = self._targets(claims)
        uneasy = False
        for replica, claim in claims.items():
            if any(replica in w.claims and w.claims[replica].short for w in self._others.values()):
                if targets[replica] < claim.enforced:
                    return 0.0
                uneasy = uneasy or claim.in_use > targets[replica]
            uneasy = uneasy or claim.short
        if not known and not self.frozen:
            return 0.0
        return _UNEASY_S if uneasy else self.pause_s
