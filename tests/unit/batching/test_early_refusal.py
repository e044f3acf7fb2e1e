"""Who is refused because it would wait in vain, who is not, and when those who were may return."""

from itertools import count, pairwise
from typing import Any

import pytest

from batching.drain import Drain
from batching.promises import LONGEST_S, Promises
from batching.replica import Lifecycle
from batching.request import Outcome, Reason, Rejected, ReplicaId, ServiceTier
from batching.scheduler import Scheduler
from batching.strain import Strain
from batching.ticket import Decision, Evicted, Lease, Placed
from config.schema import Mechanism
from tests.support.scheduling import profile, request, scheduler

# -- the parts ---------------------------------------------------------------------------------------------------------


def drained(*, every_s: float, seconds: float, work: int = 10) -> Drain:
    """A backlog from time 0 on, of which one is placed every so often."""
    drain = Drain()
    for step in range(round(seconds / every_s) + 1):
        drain.note(work, step * every_s, behind=True)
    return drain


def test_a_rate_is_of_the_time_in_which_something_waited():
    """An idle hour is no slow fleet."""
    drain = drained(every_s=0.1, seconds=10)
    assert drain.per_s(10.0) == pytest.approx(100, rel=0.05)
    drain.note(10, 10.1, behind=False)
    assert drain.per_s(3600.0) == pytest.approx(100, rel=0.05)


def test_nothing_is_known_from_the_filling_of_empty_room_or_from_little():
    """The first two seconds fill batches that stood empty; then a second and a handful of placements tell something."""
    assert drained(every_s=0.1, seconds=1.9).per_s(1.9) is None
    assert drained(every_s=0.1, seconds=2.5).at_most() is None
    assert drained(every_s=1.0, seconds=5).at_most() is None
    assert drained(every_s=0.1, seconds=4).at_most() is not None


def test_the_best_case_is_beyond_what_was_measured_and_outlives_a_slow_spell():
    """Nobody is refused for a few slow seconds, nor within what the measure itself is uncertain by."""
    drain = drained(every_s=0.1, seconds=30)
    best = drain.at_most()
    assert best is not None
    assert best > 105
    for step in range(1, 9):  # eight seconds at a tenth of it
        drain.note(10, 30.0 + step, behind=True)
    after, now = drain.at_most(), drain.per_s(38.0)
    assert after is not None
    assert now is not None
    assert (after > 75, now < 45) == (True, True)


def test_a_grown_fleet_is_measured_anew():
    """What a smaller fleet could do refuses nobody; when to return is still told by it."""
    drain = drained(every_s=0.1, seconds=10)
    drain.grown()
    assert drain.at_most() is None
    assert drain.per_s(10.0) is not None


def test_a_backlog_that_does_not_move_tells_nothing_of_what_comes():
    """While machines start nothing is taken: that is no flood, however much waits."""
    drain = drained(every_s=0.1, seconds=10)
    assert drain.moving(12.0)
    assert not drain.moving(20.0)
    assert not drained(every_s=0.1, seconds=2.5).moving(2.5)


def test_a_burst_is_no_flood_and_a_flood_ends():
    """Refusals for two seconds without a second's pause are one; two seconds without any end it."""
    burst = Strain()
    assert not any(burst.refused(0.01 * step) for step in range(100))
    assert not any(burst.refused(10.0 * step) for step in range(1, 20))
    flood = Strain()
    assert [flood.refused(0.5 * step) for step in range(6)] == [False] * 4 + [True, False]
    assert flood.look(4.4)
    assert not flood.look(4.6)


def test_times_are_handed_out_one_behind_the_other():
    """Nobody is told the same second as those before it: a crowd comes back as a queue."""
    promises = Promises()
    told = [promises.give("t", n, wait_s=5.0, work_s=0.9, now=0.0) for n in range(1, 6)]
    assert told == [pytest.approx(5.0 + number) for number in range(5)]


def test_who_returns_early_is_told_its_old_time_and_who_returns_in_time_is_known_once():
    """Impatience gains and costs nothing; a promise is kept once, to who was given it, and not for ever."""
    promises = Promises()
    for name in "abc":
        promises.give(name, 7, wait_s=10.0, work_s=0.9, now=0.0)
    assert promises.give("b", 7, wait_s=50.0, work_s=0.9, now=4.0) == pytest.approx(7.0)
    assert not promises.kept("b", 7, 4.0)
    assert not promises.kept("b", 8, 11.0)
    assert not promises.kept("other", 7, 11.0)
    assert promises.kept("b", 7, 10.5)
    assert not promises.kept("b", 7, 11.0)
    assert not promises.kept("c", 7, 60.0)
    assert not promises.due(60.0)
    assert len(promises) == 0


def test_what_is_too_far_away_is_not_promised():
    """Nobody waits longer than two minutes; the time of the next one does not move for it."""
    promises = Promises()
    assert promises.give("a", 1, wait_s=LONGEST_S + 1, work_s=1.0, now=0.0) is None
    assert promises.give("b", 2, wait_s=3.0, work_s=1.0, now=0.0) == 3.0
    assert len(promises) == 1


def test_promises_are_bounded():
    """Whoever comes behind the bound is told a time, too, but nobody will know it."""
    promises = Promises()
    for number in range(1, 30_000):
        assert promises.give("t", number, wait_s=0.0, work_s=0.001, now=0.0) is not None
    assert len(promises) == 20_000


def test_room_that_a_flood_clears_is_handed_out_first():
    """Those who are sent away from the queue come back before those who were told of its old end."""
    promises = Promises()
    assert promises.give("a", 1, wait_s=30.0, work_s=0.9, now=0.0) == 30.0
    promises.advance(1.0)
    assert [promises.give("b", n, wait_s=0.0, work_s=13.0, now=1.0) for n in (2, 3, 4)] == [
        0.0,
        pytest.approx(14.44, abs=0.01),
        pytest.approx(28.89, abs=0.01),
    ]
    assert promises.give("c", 5, wait_s=0.0, work_s=1.0, now=1.0) == pytest.approx(30.0)


# -- the whole ---------------------------------------------------------------------------------------------------------


class Server:
    """One replica of eight slots, each of whose answers takes 0.8 s: ten requests a second, one every tenth."""

    def __init__(self, **changes: Any) -> None:
        self.built: Scheduler = scheduler(profile(max_num_seqs=8), **changes)
        self.now = 0.0
        self.names = count()
        self.running: list[tuple[float, Lease]] = []
        self.placed: list[str] = []
        self.evicted: list[Evicted] = []

    def take(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Placed):
                last_s = self.running[-1][0] if self.running else 0.0
                self.running.append((max(self.now + 0.8, last_s + 0.1), decision.lease))
                self.placed.append(decision.ticket.request.id)
                self.built.on_first_token(decision.lease.id, self.now)
            else:
                self.evicted.append(decision)

    def elapse(self, seconds: float) -> None:
        """Answers end, and the next ones are placed."""
        until_s = self.now + seconds
        while self.running and self.running[0][0] <= until_s:
            self.now, lease = self.running.pop(0)
            self.built.finish(lease.id, self.now, outcome=Outcome.COMPLETED, output_tokens=20)
            self.take(self.built.advance(self.now))
        self.now = until_s
        self.take(self.built.advance(self.now))

    def come(self, **changes: Any) -> Rejected | None:
        number = next(self.names)
        values = {"deadline_s": self.now + 30.0, "fingerprint": number + 1, "arrived_s": self.now, **changes}
        try:
            self.built.submit(request(f"r{number}", **values), self.now)
        except Rejected as rejected:
            return rejected
        self.take(self.built.advance(self.now))
        return None

    def flood(self, seconds: float, times: int = 10) -> list[Rejected]:
        """`times` what it can do."""
        refused = []
        for _ in range(round(seconds * 10)):
            refused += [told for _ in range(times) if (told := self.come()) is not None]
            self.elapse(0.1)
        return refused


def test_a_burst_on_a_fleet_that_was_idle_is_not_refused():
    """Nothing was measured but that little came: nobody is refused for that, and all are answered."""
    server = Server()
    for _ in range(100):
        assert server.come() is None
        server.elapse(1.0)
    assert [server.come() for _ in range(250)] == [None] * 250
    server.elapse(31.0)
    assert server.evicted == []
    assert len(server.placed) == 350


def test_who_cannot_be_served_within_its_deadline_is_refused_at_once():
    """And told when there will be room; who has more time, or goes before what waits, is not."""
    server = Server()
    for _ in range(200):
        server.come()
    server.elapse(6.0)
    # Some fourteen seconds of work wait.
    refused = server.come(deadline_s=server.now + 2.0, arrived_s=server.now - 60.0)  # late already: behind all others
    assert refused is not None
    assert refused.reason is Reason.OVERLOAD
    assert refused.retry_after_s == pytest.approx(14.0, rel=0.25)
    assert server.come(arrived_s=server.now - 60.0) is None
    assert server.come(deadline_s=server.now + 2.0, service_tier=ServiceTier.PRIORITY) is None


def test_without_early_refusal_everybody_waits_in_vain():
    """Switched off, the same request is queued and leaves at its deadline."""
    server = Server(scheduling={"without": [Mechanism.EARLY_REFUSAL]})
    for _ in range(200):
        server.come()
    server.elapse(6.0)
    assert server.come(deadline_s=server.now + 2.0, arrived_s=server.now - 60.0) is None
    server.elapse(3.0)
    assert [(one.ticket.request.id, one.reason) for one in server.evicted] == [("r200", Reason.DEADLINE)]


def test_in_a_flood_nobody_waits_for_an_answer_that_comes_too_late():
    """Once more has come for two seconds than its deadlines allow, late ones leave and only who will be in time is let in."""
    server = Server()
    server.flood(8.0)
    assert server.built.flooded("m", server.now)
    waits = server.built.queued
    refused = server.flood(5.0)
    assert waits <= 15
    assert server.built.queued <= 15
    assert len(refused) >= 0.8 * 500
    assert {one.reason for one in refused} == {Reason.OVERLOAD}


def test_no_two_who_are_refused_are_told_the_same_moment():
    """Retry-After hands out times as fast as the fleet drains, and none where that would be beyond what clients wait."""
    server = Server()
    server.flood(8.0)
    times = sorted(server.now + one.retry_after_s for one in server.flood(3.0) if one.retry_after_s is not None)
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert len(times) > 20
    assert sum(gaps) / len(gaps) == pytest.approx(0.11, rel=0.4)


def test_who_returns_when_told_goes_before_those_who_come_anew():
    """Amid the same flood: it is let in although newcomers are refused, and placed next."""
    server = Server()
    server.flood(8.0)
    sooner = [one for one in server.evicted if one.retry_after_s is not None and one.retry_after_s < 12.0]
    told = sooner[-1].ticket.request
    wait_s = sooner[-1].retry_after_s
    assert wait_s is not None
    server.flood(0.1 * round(10 * wait_s) + 0.1)
    assert sum(server.come() is not None for _ in range(10)) > 5
    assert server.come(fingerprint=told.fingerprint) is None
    name = f"r{next(server.names) - 1}"
    server.elapse(0.6)
    assert name in server.placed


def test_a_flood_is_over_when_the_fleet_grows():
    """A replica that comes back ends it: what was measured without it says too little."""
    server = Server()
    server.flood(8.0)
    server.built.add_replica(profile("b", max_num_seqs=8), Lifecycle.READY, server.now)
    assert not server.built.flooded("m", server.now)
    assert server.come() is None


def test_one_tenant_in_a_flood_of_another_is_served():
    """Who has little waiting is not refused for what others have."""
    server = Server()
    refused = 0
    for step in range(200):
        for _ in range(10):
            server.come(tenant="greedy")
        if step % 5 == 0:  # a fifth of what the fleet can do
            refused += server.come(tenant="modest") is not None
        server.elapse(0.1)
    assert refused == 0
    assert [one for one in server.evicted if one.ticket.request.tenant == "modest"] == []


def test_what_no_replica_ever_does_in_time_is_not_shed_for_being_late():
    """Where the objective cannot be met at all only the deadline counts, flood or not."""
    server = Server(scheduling={"objectives": {"ttft_s": 1e-6, "ttft_s_per_prompt_token": 0}})
    server.flood(8.0)
    before = len(server.placed)
    server.elapse(10.0)
    assert len(server.placed) - before == pytest.approx(100, abs=3)


def test_times_that_are_a_guess_are_spread():
    """Before anything was measured those who are refused are told different times, none beyond the longest wait."""
    built = scheduler(queue={"max_requests": 1})
    built.add_replica(profile(), Lifecycle.STARTING, 0.0)
    built.submit(request("first"), 0.0)
    told = []
    for number in range(20):
        with pytest.raises(Rejected) as refused:
            built.submit(request(f"r{number}"), 0.0)
        told.append(refused.value.retry_after_s)
    assert len(set(told)) == 20
    assert all(15.0 <= wait_s <= 30.0 for wait_s in told if wait_s is not None)


def test_who_resumes_goes_first():
    """Before priority and before whoever's floor's turn it is; its prompt is not charged again."""
    built = scheduler(profile(max_num_seqs=1))
    built.submit(request("running"), 0.0)
    [running] = [one for one in built.advance(0.0) if isinstance(one, Placed)]
    for number in range(3):
        built.submit(request(f"p{number}", service_tier=ServiceTier.PRIORITY), 0.0)
    built.submit(request("resumes", resumes=True, service_tier=ServiceTier.BATCH, tenant="t"), 0.1)
    assert built.advance(60.0 - 40.0) == []
    built.finish(running.lease.id, 20.0, outcome=Outcome.COMPLETED)
    [placed] = [one for one in built.advance(20.0) if isinstance(one, Placed)]
    assert placed.ticket.request.id == "resumes"
    assert built._queue.lanes["m"]._counters[0].served.get("t", 0.0) == 0.0


def test_who_resumes_is_refused_where_nobody_can_take_it():
    """An unknown model and a fleet that has gone are what waiting does not help."""
    built = scheduler(profile())
    with pytest.raises(Rejected) as refused:
        built.submit(request(resumes=True, model="other"), 0.0)
    assert refused.value.reason is Reason.UNKNOWN_MODEL
    with pytest.raises(Rejected):
        built.submit(request(resumes=True, avoid=frozenset({ReplicaId("a")})), 0.0)


def test_only_first_tries_earn_the_retry_budget():
    """Hedging on or off: a request adds its share, a repeat and what resumes add nothing."""
    for hedge in ({}, {"enabled": False}):
        built = scheduler(profile(), profile("b"), scheduling={"hedge": hedge, "retry_budget_ratio": 0.25})
        while built.retry_budget.take():
            pass
        built.submit(request("a"), 0.0)
        built.submit(request("b", avoid=frozenset({ReplicaId("a")})), 0.0)
        built.submit(request("c", resumes=True), 0.0)
        assert built.retry_budget.left == 0.25
