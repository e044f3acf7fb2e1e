"""The book of shares against any interleaving: messages late, lost or out of order, holders that come, die and want everything."""

from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from batching.request import ReplicaId
from batching.share_holder import Holding
from batching.shares import WHOLE, Claim, HolderId, Running, Share, ShareBook

REPLICAS = (ReplicaId("a"), ReplicaId("b"))
MOST_HOLDERS = 4
PARTS = st.integers(0, WHOLE)


class Site:
    """What a scheduler does with its shares: uses no more than it may, and wishes."""

    def __init__(self) -> None:
        self.shares = dict.fromkeys(REPLICAS, 0)
        self.in_use = dict.fromkeys(REPLICAS, 0)
        self.needed = dict.fromkeys(REPLICAS, 0)
        self.wanted = dict.fromkeys(REPLICAS, 0)

    def claims(self) -> Mapping[ReplicaId, Claim]:
        return {
            r: Claim(self.shares[r], self.in_use[r], self.needed[r], max(self.needed[r], self.wanted[r]), Running(1, 2))
            for r in REPLICAS
        }

    def running(self) -> dict[ReplicaId, Running]:
        return {}

    def beside(self, replica: ReplicaId, others: Running, now: float) -> None:
        pass

    def allot(self, replica: ReplicaId, parts: int) -> None:
        self.shares[replica] = parts


class ShareMachine(RuleBasedStateMachine):
    """Holders at a book, with a network between them that may do anything but invent."""

    def __init__(self) -> None:
        super().__init__()
        self.book = ShareBook()
        self.sites: dict[HolderId, Site] = {}
        self.holdings: dict[HolderId, Holding] = {}
        self.reports: list[tuple[HolderId, int, Mapping[ReplicaId, Claim]]] = []
        self.answers: list[tuple[HolderId, int, Mapping[ReplicaId, Share]]] = []
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
            self.holdings[holder] = Holding(self.sites[holder])
            self._send(holder)

    @rule(data=st.data())
    def crash(self, data: st.DataObject):
        """Its connection ends with it; what it sent before may still be on its way to it, never from it."""
        if self.sites:
            holder = self._one(data)
            del self.sites[holder], self.holdings[holder]
            self.reports = [report for report in self.reports if report[0] != holder]
            self.book.leave(holder)

    @rule(data=st.data())
    def report(self, data: st.DataObject):
        if self.sites:
            self._send(self._one(data))

    @rule(data=st.data())
    def exchange(self, data: st.DataObject):
        """A report that is answered at once, as nearly all are."""
        if self.sites:
            holder = self._one(data)
            number, claims = self.holdings[holder].report()
            assert self.book.report(holder, number, claims)
            self.holdings[holder].take(*self.book.answer(holder), 0.0)

    @rule(data=st.data(), lost=st.sampled_from((False, False, False, True)))
    def deliver_report(self, data: st.DataObject, lost: bool):
        if self.reports:
            holder, number, claims = self.reports.pop(data.draw(st.integers(0, len(self.reports) - 1)))
            if not lost and self.book.report(holder, number, claims):
                self._answer(holder)

    @rule(data=st.data(), lost=st.sampled_from((False, False, False, True)))
    def deliver_answer(self, data: st.DataObject, lost: bool):
        if self.answers:
            holder, number, shares = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
            if not lost and holder in self.holdings and self.holdings[holder].take(number, shares, 0.0):
                self._send(holder)

    @rule()
    def push(self):
        for holder in sorted(self.book.unsettled()):
            self._answer(holder)

    @rule(data=st.data(), replica=st.sampled_from(REPLICAS), ratio=st.floats(0, 1))
    def use(self, data: st.DataObject, replica: ReplicaId, ratio: float):
        if self.sites:
            site = self.sites[self._one(data)]
            may = site.shares[replica]  # what runs beyond it ends, and nothing is begun
            site.in_use[replica] = (
                int(max(may, site.in_use[replica]) * ratio) if site.in_use[replica] > may else int(may * ratio)
            )

    @rule(data=st.data(), replica=st.sampled_from(REPLICAS), needed=PARTS, wanted=PARTS)
    def want(self, data: st.DataObject, replica: ReplicaId, needed: int, wanted: int):
        if self.sites:
            site = self.sites[self._one(data)]
            site.needed[replica], site.wanted[replica] = needed, wanted

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def nobody_believes_more_than_there_is(self):
        for replica in REPLICAS:
            bounds = self.book.bounds(replica)
            assert sum(bounds.values()) <= WHOLE
            believed = {holder: max(site.shares[replica], site.in_use[replica]) for holder, site in self.sites.items()}
            assert sum(believed.values()) <= WHOLE
            # A report on its way may have lowered it already.
            assert all(parts <= bounds.get(holder, 0) for holder, parts in believed.items())
        self.book.check()

    def teardown(self):
        """Once messages arrive and all but one end their work, that one has what it needs."""
        if not self.sites:
            return
        self.reports.clear()
        self.answers.clear()
        chosen, *others = sorted(self.sites)
        for holder in others:
            site = self.sites[holder]
            site.in_use, site.needed = dict.fromkeys(REPLICAS, 0), dict.fromkeys(REPLICAS, 0)
            site.wanted = dict.fromkeys(REPLICAS, 0)
        for replica in REPLICAS:
            self.sites[chosen].needed[replica] = WHOLE
        for _ in range(3):
            for holder in self.sites:
                self._send(holder)
            self._settle()
        assert all(share == WHOLE for share in self.sites[chosen].shares.values())

    def _settle(self) -> None:
        for _ in range(100):
            if not (self.reports or self.answers):
                return
            while self.reports:
                holder, number, claims = self.reports.pop(0)
                if self.book.report(holder, number, claims):
                    self._answer(holder)
            for holder in sorted(self.book.unsettled()):
                self._answer(holder)
            while self.answers:
                holder, number, shares = self.answers.pop(0)
                if self.holdings[holder].take(number, shares, 0.0):
                    self._send(holder)
        raise AssertionError("it never comes to rest")

    def _one(self, data: st.DataObject) -> HolderId:
        return data.draw(st.sampled_from(sorted(self.sites)))

    def _send(self, holder: HolderId) -> None:
        self.reports.append((holder, *self.holdings[holder].report()))

    def _answer(self, holder: HolderId) -> None:
        self.answers.append((holder, *self.book.answer(holder)))


SETTINGS = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_shares_never_exceed_the_whole():
    """Whatever is late, lost or dead: what all holders together believe is at most the whole, and what is free can be had."""
    run_state_machine_as_test(ShareMachine, settings=SETTINGS)


@pytest.mark.bars
def test_shares_never_exceed_the_whole_for_long():
    """The same, twenty times as often."""
    run_state_machine_as_test(ShareMachine, settings=settings(SETTINGS, max_examples=2000))
