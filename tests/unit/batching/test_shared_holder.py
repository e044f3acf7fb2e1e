"""What a gateway believes that the others run: told between reports, late, twice, by one that has begun again, or not any more."""

from collections.abc import Mapping

import pytest

from batching.request import ReplicaId
from batching.shared_book import SharedBook, Terms
from batching.shared_holder import Mode, SharedHolder
from batching.shares import WHOLE, Claim, HolderId, Running

A = ReplicaId("a")
ONE, TWO = HolderId("one"), HolderId("two")
TERMS = Terms(lease_ms=1500, settle_ms=1000, forget_ms=60_000, static=WHOLE // 8)
EPOCH_MS = 1_000_000_000


class Site:
    """One replica of a scheduler."""

    def __init__(self) -> None:
        self.parts, self.others, self.mine, self.needed = 0, Running(), Running(), 0

    def claims(self) -> Mapping[ReplicaId, Claim]:
        return {A: Claim(self.parts, 0, self.needed, self.needed, self.mine)}

    def running(self) -> Mapping[ReplicaId, Running]:
        return {A: self.mine}

    def allot(self, replica: ReplicaId, parts: int) -> None:
        assert replica == A
        self.parts = parts

    def beside(self, replica: ReplicaId, others: Running, now: float) -> None:
        assert replica == A
        assert now >= 0
        self.others = others


class Pair:
    """Two gateways on one book; `exchange` is a report and its answer."""

    def __init__(self) -> None:
        self.book = SharedBook()
        self.now_s = 0.0
        self.sites = {ONE: Site(), TWO: Site()}
        self.holders = {name: SharedHolder(site, name, f"{name}-1", TERMS) for name, site in self.sites.items()}
        for _ in range(12):
            self.now_s += 0.5
            for name in self.holders:
                self.exchange(name)

    def exchange(self, name: HolderId) -> None:
        holder = self.holders[name]
        report = holder.report(self.now_s)
        holder.take(self.now_s, self.book.report(EPOCH_MS + int(1000 * self.now_s), "server", report))

    def told(self) -> tuple[int, dict[ReplicaId, Running]]:
        """What the second has to say now."""
        return self.holders[TWO].running()

    def hear(self, words: tuple[int, dict[ReplicaId, Running]]) -> Running:
        """By the first; what it believes then."""
        self.holders[ONE].hear(TWO, *words, self.now_s)
        return self.sites[ONE].others


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_what_is_told_between_reports_is_newer_than_the_last(pair: Pair):
    """A report that was made before it does not undo it, one that was made after it counts."""
    pair.exchange(TWO)
    pair.sites[TWO].mine = Running(2, 30, 0.4)
    assert pair.hear(pair.told()) == Running(2, 30, 0.4)
    pair.exchange(ONE)  # the other's last report is older
    assert pair.sites[ONE].others == Running(2, 30, 0.4)
    pair.sites[TWO].mine = Running(1, 10, 0.0)
    pair.exchange(TWO)
    pair.exchange(ONE)
    assert pair.sites[ONE].others == Running(1, 10, 0.0)


def test_words_may_come_twice_and_late(pair: Pair):
    """The latest counts, whatever comes after it."""
    pair.sites[TWO].mine = Running(1, 10, 0.2)
    early = pair.told()
    pair.sites[TWO].mine = Running(2, 20, 0.5)
    late = pair.told()
    assert pair.hear(late) == pair.hear(early) == pair.hear(late) == Running(2, 20, 0.5)


def test_who_begins_again_runs_nothing_of_what_it_told_before(pair: Pair):
    """Its numbers begin again, too: what its predecessor told last must not outlive it."""
    for _ in range(50):
        pair.told()
    pair.sites[TWO].mine = Running(9, 90, 3.0)
    assert pair.hear(pair.told()).sequences == 9
    pair.sites[TWO] = Site()
    pair.holders[TWO] = SharedHolder(pair.sites[TWO], TWO, "two-2", TERMS)
    pair.exchange(TWO)
    pair.exchange(ONE)
    assert pair.sites[ONE].others == Running()
    pair.sites[TWO].mine = Running(1, 5, 0.1)
    assert pair.hear(pair.told()) == Running(1, 5, 0.1)


def test_words_from_before_a_report_come_after_it(pair: Pair):
    """They went another way; the report is newer."""
    pair.sites[TWO].mine = Running(5, 50, 1.0)
    early = pair.told()
    pair.sites[TWO].mine = Running(1, 5, 0.0)
    pair.told()
    pair.exchange(TWO)
    pair.exchange(ONE)
    assert pair.hear(early) == Running(1, 5, 0.0)


def test_what_a_report_said_is_taken_back(pair: Pair):
    """It was idle, ran something as it reported, and is idle again before it tells anything: others went by the report."""
    pair.told()
    pair.sites[TWO].mine = Running(1, 5, 0.3)
    pair.exchange(TWO)
    pair.exchange(ONE)
    assert pair.sites[ONE].others.prefill_s == 0.3
    pair.sites[TWO].mine = Running()
    assert pair.hear(pair.told()) == Running()


def test_blocks_alone_are_no_news(pair: Pair):
    """They grow with every few tokens of each stream; a look that finds nothing else tells nothing."""
    pair.sites[TWO].mine = Running(1, 5, 0.3)
    assert pair.told()[1] == {A: Running(1, 5, 0.3)}
    pair.sites[TWO].mine = Running(1, 6, 0.3)
    assert pair.told()[1] == {}
    pair.sites[TWO].mine = Running(1, 7, 0.0)
    assert pair.told()[1] == {A: Running(1, 7, 0.0)}


@pytest.mark.parametrize("words", [b"", b"\xc1", b"\x91\x01"])
def test_whose_words_cannot_be_read_keeps_what_it_has(pair: Pair, words: bytes):
    """Another version's, or lost in Redis: nothing of its is given away, nothing is known of it, and it is heard again when it can be."""
    has = pair.sites[TWO].parts
    pair.book.records[TWO].words = words
    pair.sites[ONE].needed = WHOLE
    for _ in range(3):
        pair.exchange(ONE)
    holder = pair.holders[ONE]
    assert (holder.mode, holder.unread, holder.gateways) == (Mode.REDIS, [TWO], 1)
    assert pair.sites[ONE].parts == WHOLE - has
    assert not holder.others_let_go(A)
    pair.exchange(TWO)
    pair.exchange(ONE)
    assert (holder.unread, holder.gateways) == ([], 2)


def test_a_stranger_s_words_count_for_nothing(pair: Pair):
    """Who is not on the book, or has left it, has nothing."""
    pair.holders[ONE].hear(HolderId("stranger"), 7, {A: Running(5, 50, 1.0)}, pair.now_s)
    assert pair.sites[ONE].others == Running()
    pair.hear((1000, {A: Running(5, 50, 1.0)}))
    pair.book.leave(TWO, pair.holders[TWO].instance)
    pair.exchange(ONE)
    assert pair.sites[ONE].others == Running()


def test_without_the_book_nobody_is_taken_to_prefill_for_ever(pair: Pair):
    """When the lease is over what was told last is done; what runs may still run."""
    pair.sites[TWO].mine = Running(3, 30, 2.0)
    pair.hear(pair.told())
    pair.now_s += 2.0
    pair.holders[ONE].failed(pair.now_s)
    assert pair.holders[ONE].mode is Mode.STATIC
    assert pair.sites[ONE].others == Running(3, 30, 0.0)
