"""Who pays for a replica, against any interleaving: messages late, lost or out of order, holders that come, die and change what they run."""

from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from batching.meter import WHOLE_PRICE
from batching.payers import PayBook, Payer, Paying
from batching.request import ReplicaId
from batching.shares import HolderId

REPLICAS = (ReplicaId("a"), ReplicaId("b"))
MOST_HOLDERS = 4


class Site:
    """What a scheduler does with its parts of prices."""

    def __init__(self) -> None:
        self.parts = dict.fromkeys(REPLICAS, 0)
        self.weights = dict.fromkeys(REPLICAS, 0)

    def payers(self) -> Mapping[ReplicaId, Payer]:
        return {replica: Payer(self.parts[replica], self.weights[replica]) for replica in REPLICAS}

    def pay(self, replica: ReplicaId, parts: int, now: float) -> None:
        del now
        self.parts[replica] = parts


class PayerMachine(RuleBasedStateMachine):
    """Holders at a book; a report that is not newer than the last is not read, as the book of shares sees to."""

    def __init__(self) -> None:
        super().__init__()
        self.book = PayBook()
        self.sites: dict[HolderId, Site] = {}
        self.sides: dict[HolderId, Paying] = {}
        self.numbers: dict[HolderId, int] = {}
        self.read: dict[HolderId, int] = {}
        self.reports: list[tuple[HolderId, int, Mapping[ReplicaId, Payer]]] = []
        self.answers: list[tuple[HolderId, int, Mapping[ReplicaId, int]]] = []
        self.count = 0

    @initialize(holders=st.integers(1, 3))
    def begin(self, holders: int):
        for _ in range(holders):
            self.join()

    @rule()
    def join(self):
        if len(self.sites) < MOST_HOLDERS:
            self.count += 1
            holder = HolderId(f"h{self.count}")
            self.sites[holder] = Site()
            self.sides[holder] = Paying(self.sites[holder])
            self._send(holder)

    @rule(data=st.data())
    def crash(self, data: st.DataObject):
        if self.sites:
            holder = self._one(data)
            del self.sites[holder], self.sides[holder]
            self.reports = [report for report in self.reports if report[0] != holder]
            self.book.leave(holder)

    @rule(data=st.data())
    def report(self, data: st.DataObject):
        if self.sites:
            self._send(self._one(data))

    @rule(data=st.data(), lost=st.sampled_from((False, False, False, True)))
    def deliver_report(self, data: st.DataObject, lost: bool):
        if self.reports:
            holder, number, payers = self.reports.pop(data.draw(st.integers(0, len(self.reports) - 1)))
            if not lost and number > self.read.get(holder, 0):
                self.read[holder] = number
                self.book.report(holder, payers)
                self._answer(holder)

    @rule(data=st.data(), lost=st.sampled_from((False, False, False, True)))
    def deliver_answer(self, data: st.DataObject, lost: bool):
        if self.answers:
            holder, number, parts = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
            if not lost and holder in self.sides and self.sides[holder].take(number, parts, 0.0):
                self._send(holder)

    @rule()
    def push(self):
        for holder in sorted(self.book.owed()):
            self._answer(holder)

    @rule(data=st.data(), replica=st.sampled_from(REPLICAS), weight=st.one_of(st.just(0), st.integers(1, 10**12)))
    def run(self, data: st.DataObject, replica: ReplicaId, weight: int):
        if self.sites:
            self.sites[self._one(data)].weights[replica] = weight

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def no_second_is_paid_twice(self):
        for replica in REPLICAS:
            assert sum(site.parts[replica] for site in self.sites.values()) <= WHOLE_PRICE
            assert sum(self.book.bounds(replica).values()) <= WHOLE_PRICE

    @invariant()
    def nobody_pays_more_than_the_book_knows(self):
        for replica in REPLICAS:
            bounds = self.book.bounds(replica)
            assert all(site.parts[replica] <= bounds.get(holder, 0) for holder, site in self.sites.items())

    def teardown(self) -> None:
        """Once messages come through, all of a price is paid, by whoever has something running."""
        if not self.sites:
            return
        self.reports.clear()
        self.answers.clear()
        for _ in range(4):
            for holder in sorted(self.sites):
                number = self._number(holder)
                self.read[holder] = number
                self.book.report(holder, self.sides[holder].report(number))
                self.sides[holder].take(number, self.book.answer(holder), 0.0)
        for replica in REPLICAS:
            total = sum(site.weights[replica] for site in self.sites.values())
            paid = sum(site.parts[replica] for site in self.sites.values())
            assert paid >= WHOLE_PRICE * 0.99
            for site in self.sites.values():
                fair = site.weights[replica] / total if total else 1 / len(self.sites)
                assert site.parts[replica] / WHOLE_PRICE == pytest.approx(fair, abs=0.005)

    def _send(self, holder: HolderId) -> None:
        number = self._number(holder)
        self.reports.append((holder, number, self.sides[holder].report(number)))

    def _number(self, holder: HolderId) -> int:
        self.numbers[holder] = self.numbers.get(holder, 0) + 1
        return self.numbers[holder]

    def _answer(self, holder: HolderId) -> None:
        if holder in self.sides:
            self.answers.append((holder, self.read.get(holder, 0), self.book.answer(holder)))

    def _one(self, data: st.DataObject) -> HolderId:
        return data.draw(st.sampled_from(sorted(self.sites)))


def test_prices_are_paid_once_whatever_the_interleaving():
    """The sum of parts never exceeds the whole, and comes to it when messages come through."""
    run_state_machine_as_test(
        PayerMachine,
        settings=settings(
            max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
