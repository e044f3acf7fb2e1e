"""The book that gateways share through Redis against everything at once: a network that loses, delays and parts, gateways that crash,
stop and go on, clocks that run unequally and jump, a Redis that comes back empty or as it was some time ago.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from batching.request import ReplicaId
from batching.shared_book import Reply, Report, SharedBook, Terms
from batching.shared_holder import Mode, SharedHolder
from batching.shares import WHOLE, Claim, Running

REPLICAS = (ReplicaId("a"), ReplicaId("b"))
NAMES = ("g1", "g2", "g3")
TERMS = Terms(lease_ms=1500, settle_ms=1000, forget_ms=20_000, static=WHOLE // 8)
PARTS = st.integers(0, WHOLE)
DRIFT = 0.0005  # of clocks, each against the true time


class Site:
    """One gateway: what a scheduler does with its shares, on a clock of its own."""

    def __init__(self, name: str, life: int, rate: float, offset_s: float) -> None:
        self.shares = dict.fromkeys(REPLICAS, 0)
        self.in_use = dict.fromkeys(REPLICAS, 0)
        self.needed = dict.fromkeys(REPLICAS, 0)
        self.holder = SharedHolder(self, name, f"{name}-{life}", TERMS)
        self.rate, self.offset_s = rate, offset_s
        self.stopped = False
        self.under_way: Report | None = None
        self.connected = True

    def now(self, true_s: float) -> float:
        return self.offset_s + true_s * self.rate

    def claims(self) -> Mapping[ReplicaId, Claim]:
        return {
            r: Claim(self.shares[r], self.in_use[r], self.needed[r], self.needed[r], Running(1, 2)) for r in REPLICAS
        }

    def running(self) -> dict[ReplicaId, Running]:
        return {}

    def beside(self, replica: ReplicaId, others: Running, now: float) -> None:
        pass

    def allot(self, replica: ReplicaId, parts: int) -> None:
        self.shares[replica] = parts

    def may_place(self, true_s: float) -> dict[ReplicaId, int]:
        """As `Admission` does: the holder looks at the clock first. What runs beyond that was placed before."""
        self.holder.check(self.now(true_s))
        return dict(self.shares)


class SharedBookMachine(RuleBasedStateMachine):
    """True time is ours alone; everybody else has a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.true_s = 1_000_000.0
        self.book = SharedBook()
        self.server, self.jumped_s = 1, 0.0
        self.copies: list[SharedBook] = []
        self.sites: dict[str, Site] = {}
        self.late: list[tuple[str, Report]] = []  # reports that were given up, and may still arrive
        self.lives = 0

    @initialize(names=st.sets(st.sampled_from(NAMES), min_size=1))
    def begin(self, names: set[str]):
        for name in sorted(names):
            self._start(name, 0.0)
        for _ in range(8):  # the book is not new any more
            for name in sorted(names):
                self._exchange(name)
            self.true_s += 0.4

    # -- gateways ----------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), drift=st.sampled_from((-DRIFT, 0.0, DRIFT)))
    def start(self, name: str, drift: float):
        if name not in self.sites:
            self._start(name, drift)

    @rule(data=st.data())
    def kill(self, data: st.DataObject):
        """With all that it ran. What it had sent may still arrive."""
        if self.sites:
            site = self.sites.pop(name := self._one(data))
            self.late = [late for late in self.late if late[0] != name]
            if site.under_way is not None and site.connected:
                self._apply(site.under_way)

    @rule(data=st.data())
    def leave(self, data: st.DataObject):
        if self.sites:
            name = self._one(data)
            if self.sites[name].connected and self.sites[name].under_way is None:
                site = self.sites.pop(name)
                self.late = [late for late in self.late if late[0] != name]
                self.book.leave(name, site.holder.instance)

    @rule(data=st.data(), stopped=st.booleans())
    def stop_or_go_on(self, data: st.DataObject, stopped: bool):
        """SIGSTOP and SIGCONT: no timer fires in between, and the first thing it does may be to place."""
        if self.sites:
            self.sites[self._one(data)].stopped = stopped

    @rule(data=st.data(), replica=st.sampled_from(REPLICAS), ratio=st.floats(0, 1))
    def use(self, data: st.DataObject, replica: ReplicaId, ratio: float):
        if self.sites:
            site = self.sites[self._one(data)]
            if not site.stopped:
                may = site.may_place(self.true_s)[replica]
                site.in_use[replica] = min(site.in_use[replica], int(WHOLE * ratio)) if may == 0 else int(may * ratio)

    @rule(data=st.data(), replica=st.sampled_from(REPLICAS), needed=PARTS)
    def want(self, data: st.DataObject, replica: ReplicaId, needed: int):
        if self.sites:
            self.sites[self._one(data)].needed[replica] = needed

    # -- the way to Redis and back -----------------------------------------------------------------------------------

    @rule(data=st.data(), times=st.integers(1, 3))
    def exchange(self, data: st.DataObject, times: int):
        """Reports that are answered at once, as nearly all are."""
        if self.sites:
            name = self._one(data)
            for _ in range(times):
                self._exchange(name)

    @rule(data=st.data(), ticks=st.sampled_from((1, 3, 9)), step_s=st.sampled_from((0.05, 0.4)), all_want=st.booleans())
    def contend(self, data: st.DataObject, ticks: int, step_s: float, all_want: bool):
        """Everybody who can reports for a while; one of them, or all, would like all there is."""
        if self.sites:
            greedy = self._one(data)
            self.contend_for(greedy, ticks, step_s, all_want=all_want)

    @rule(
        data=st.data(),
        first=st.booleans(),
        how=st.sampled_from(("cut", "stop", "kill")),
        ticks=st.sampled_from(((16, 0.17), (30, 0.9))),
    )
    def take_over(self, data: st.DataObject, first: bool, how: str, ticks: tuple[int, float]):
        """One has all there is and is not heard any more; another would like it."""
        if len(self.sites) > 1:
            name = self._one(data)
            self.contend_for(name, 8)
            site = self.sites[name]
            if how == "cut":
                site.connected = False
            elif how == "stop":
                site.stopped = True
            else:
                del self.sites[name]
            self.contend_for(sorted(self.sites)[0 if first else -1], *ticks)

    @rule(data=st.data())
    def fall_back(self, data: st.DataObject):
        """One is given all there is, and is cut off; Redis fails over to a copy from before that. Somebody else would like it."""
        names = [name for name, site in self.sites.items() if site.connected and not site.stopped]
        if len(names) > 1:
            name = data.draw(st.sampled_from(sorted(names)))
            other = next(other for other in sorted(names) if other != name)
            self.contend_for(other, 4, 0.4)
            before = deepcopy(self.book)
            self.contend_for(name, 4, 0.4)
            if (knower := self._knower(but=name)) is not None:
                self.sites[name].connected = False
                self._begin_again(before, knower)
                self.contend_for(other, 8, 0.4)

    def contend_for(self, greedy: str, ticks: int, step_s: float = 0.05, *, all_want: bool = False) -> None:
        for name, site in self.sites.items():
            site.needed = dict.fromkeys(REPLICAS, WHOLE if all_want or name == greedy else 0)
            if name != greedy and not site.stopped:
                site.in_use = dict.fromkeys(REPLICAS, 0)
        for _ in range(ticks):
            for name in sorted(self.sites):
                self._exchange(name, immodest=name == greedy)
            self.true_s += step_s
            self.nobody_may_place_more_than_there_is()

    @rule(data=st.data())
    def send(self, data: st.DataObject):
        """The answer will take a while, or never come."""
        if self.sites:
            site = self.sites[self._one(data)]
            if site.under_way is None and not site.stopped:
                site.under_way = site.holder.report(site.now(self.true_s))

    @rule(data=st.data(), arrives=st.booleans(), answered=st.booleans())
    def resolve(self, data: st.DataObject, arrives: bool, answered: bool):
        """What is under way arrives or is lost, and so does its answer."""
        if not self.sites:
            return
        site = self.sites[name := self._one(data)]
        if site.under_way is None or site.stopped:
            return
        report, site.under_way = site.under_way, None
        if not (arrives and site.connected):
            self.late.append((name, report))
            site.holder.failed(site.now(self.true_s))
            return
        reply = self._apply(report)
        if answered:
            site.holder.take(site.now(self.true_s), reply)
        else:
            site.holder.failed(site.now(self.true_s))

    @rule(data=st.data())
    def arrive_late(self, data: st.DataObject):
        """A report that its holder gave up long ago."""
        if self.late:
            _, report = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
            self._apply(report)

    @rule(data=st.data(), connected=st.booleans())
    def part(self, data: st.DataObject, connected: bool):
        if self.sites:
            self.sites[self._one(data)].connected = connected

    # -- time, and Redis itself --------------------------------------------------------------------------------------

    @rule(passed_s=st.sampled_from((0.01, 0.3, 0.9, 1.6, 2.6, 9.0, 21.5)))
    def pass_time(self, passed_s: float):
        self.true_s += passed_s

    @rule(jump_s=st.sampled_from((-3600.0, -1.0, 0.9, 10.0, 3600.0)))
    def step_the_clock(self, jump_s: float):
        """Of Redis' host."""
        self.jumped_s += jump_s

    @rule()
    def copy(self):
        """A replica of Redis is so far; or a snapshot on disk is."""
        self.copies = [*self.copies[-3:], deepcopy(self.book)]

    @rule()
    def restart_as_it_was(self):
        self.server += 1

    @precondition(lambda self: self._knower() is not None)
    @rule(data=st.data())
    def lose(self, data: st.DataObject):
        """Redis comes back empty, or another takes over that had not heard everything. Somebody who knows all the others finds it first."""
        knower = self._knower()
        assert knower is not None
        stale = data.draw(st.sampled_from((None, *range(len(self.copies)))))
        self.jumped_s += data.draw(st.sampled_from((0.0, -5.0, 5.0)))
        self._begin_again(SharedBook() if stale is None else deepcopy(self.copies[stale]), knower)

    def _begin_again(self, book: SharedBook, knower: str) -> None:
        self.book = book
        self.copies.clear()
        self.late.clear()  # connections ended with the server
        self.server += 1
        for site in self.sites.values():
            if site.under_way is not None:
                site.under_way = None
                site.holder.failed(site.now(self.true_s))
        self._exchange(knower)

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def nobody_may_place_more_than_there_is(self):
        may = [site.may_place(self.true_s) for site in self.sites.values()]
        for replica in REPLICAS:
            assert sum(each[replica] for each in may) <= WHOLE, {n: s.holder.mode for n, s in self.sites.items()}
        self.book.check()

    def teardown(self):
        """Once everything works again and all but one end their work, that one has what it needs."""
        if not self.sites:
            return
        chosen, *others = sorted(self.sites)
        for name, site in self.sites.items():
            site.stopped, site.connected, site.under_way = False, True, None
            wanted = WHOLE if name == chosen else 0
            site.needed, site.in_use = dict.fromkeys(REPLICAS, wanted), dict.fromkeys(REPLICAS, 0)
        gone_s = (TERMS.forget_ms + 3 * TERMS.lapse_ms) / 1000
        for _ in range(int(gone_s / 0.9)):
            for name in self.sites:
                self._exchange(name)
            self.true_s += 0.9
        for _ in range(6):
            for name in self.sites:
                self._exchange(name)
        assert all(site.holder.mode is Mode.REDIS for site in self.sites.values())
        assert all(share == WHOLE for share in self.sites[chosen].shares.values())
        del others

    def _start(self, name: str, drift: float) -> None:
        self.lives += 1
        self.sites[name] = Site(name, self.lives, 1 + drift, 17.0 * self.lives)

    def _exchange(self, name: str, *, immodest: bool = False) -> None:
        """`immodest`: it wishes for all there is, whatever is right; the book must not depend on manners."""
        site = self.sites[name]
        if site.connected and not site.stopped and site.under_way is None:
            now = site.now(self.true_s)
            report = site.holder.report(now)
            if immodest:
                report = replace(report, wishes={r: wish._replace(target=WHOLE) for r, wish in report.wishes.items()})
            site.holder.take(now, self._apply(report))

    def _apply(self, report: Report) -> Reply:
        now_ms = int((self.true_s + self.jumped_s) * 1000)
        return self.book.report(now_ms, f"server-{self.server}", report)

    def _knower(self, but: str = "") -> str | None:
        """A gateway that reaches Redis and knows of every other that may believe in something."""
        believers = {name for name, site in self.sites.items() if site.holder.mode is not Mode.NONE}
        for name, site in sorted(self.sites.items()):
            known = {name, *site.holder._records}
            usable = name != but and site.connected and not site.stopped and site.under_way is None
            if usable and name in believers and believers <= known:
                return name
        return None

    def _one(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.sites)))


SETTINGS = settings(
    max_examples=250, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_gateways_never_place_more_than_there_is():
    """Whatever is cut, stopped, dead, lost or set wrong: what all gateways together may place on a replica is at most the whole."""
    run_state_machine_as_test(SharedBookMachine, settings=SETTINGS)


@pytest.mark.bars
def test_gateways_never_place_more_than_there_is_for_long():
    """The same, thirty times as often."""
    run_state_machine_as_test(SharedBookMachine, settings=settings(SETTINGS, max_examples=12000))
