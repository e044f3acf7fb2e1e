"""When a second replica is asked for an answer, which one, how often - and when not."""

from typing import Any

import pytest

from batching.audit import Signal
from batching.hedging import Refusal
from batching.replica import Lifecycle, ReplicaProfile
from batching.request import Outcome, ReplicaId, ServiceTier
from batching.retry_budget import MOST, RetryBudget
from batching.scheduler import Scheduler
from batching.ticket import Lease, Placed
from config.schema import CostTier, Queue, Scheduling
from tests.support.scheduling import MODEL, profile, request

TAUGHT = 25  # answers of each replica, as predicted
CHEAP, DEAR = profile("cheap", usd_per_hour=1.0), profile("dear", usd_per_hour=4.0)
NO_REPLICA, BUDGET = (MODEL, Refusal.NO_REPLICA), (MODEL, Refusal.BUDGET)


class Fleet:
    """Replicas whose predictions have been right so far; each method is one event."""

    def __init__(self, *replicas: ReplicaProfile, streaming: bool = True, **hedge: Any) -> None:
        self.scheduler = Scheduler(Scheduling.model_validate({"hedge": hedge}), Queue())
        self.now = 0.0
        for replica in replicas or (CHEAP, DEAR):
            self.scheduler.add_replica(replica, Lifecycle.STARTING, 0.0)
        for replica in replicas or (CHEAP, DEAR):
            self._teach(replica.id, streaming)

    def _teach(self, replica: ReplicaId, streaming: bool) -> None:
        """It alone is ready, so that everything goes there."""
        for state in self.scheduler.states(self.now):
            if state.lifecycle is Lifecycle.READY:
                self.scheduler.set_lifecycle(state.profile.id, Lifecycle.DRAINING, self.now)
        self.scheduler.set_lifecycle(replica, Lifecycle.READY, self.now)
        for _ in range(TAUGHT):
            self.now += 10
            (placed,) = self.arrive(streaming=streaming, may_hedge=False)
            self.answer(placed.lease, placed.placement.score.ttft_s, placed.placement.score.tpot_s)
        for state in self.scheduler.states(self.now):
            if state.lifecycle is Lifecycle.DRAINING:
                self.scheduler.set_lifecycle(state.profile.id, Lifecycle.READY, self.now)
        self.now += 10

    def arrive(self, **changes: Any) -> list[Placed]:
        asked = {"arrived_s": self.now, "may_hedge": True, "max_output_tokens": 60, **changes}
        self.scheduler.submit(request(**asked), self.now)
        return self.advance()

    def answer(self, lease: Lease, ttft_s: float = 0.01, tpot_s: float = 0.01) -> None:
        at_s = self.now
        if lease.request.streaming:
            self.scheduler.on_first_token(lease.id, at_s + ttft_s)
            self.scheduler.on_tokens(lease.id, 60, at_s + ttft_s + 59 * tpot_s)
        self.scheduler.finish(lease.id, at_s + ttft_s + 59 * tpot_s, outcome=Outcome.COMPLETED, output_tokens=60)
        self.advance()

    def advance(self, by_s: float = 0.0) -> list[Placed]:
        self.now += by_s
        decisions = self.scheduler.advance(self.now)
        self.scheduler.check()
        return [decision for decision in decisions if isinstance(decision, Placed)]

    def to_deadline(self) -> list[Placed]:
        """Until the scheduler wants to be asked again."""
        deadline_s = self.scheduler.next_deadline()
        assert deadline_s is not None
        return self.advance(deadline_s - self.now)

    def weight_of(self, replica: str) -> float:
        return next(s for s in self.scheduler.states(self.now) if s.profile.id == replica).audit[Signal.TTFT].learned

    @property
    def refused(self) -> dict[Any, int]:
        return dict(self.scheduler.hedges_refused())


def test_a_missed_first_token_is_asked_for_elsewhere():
    """Not before the floor; then once, on another replica, and the caller is told beside which lease."""
    fleet = Fleet()
    (first,) = fleet.arrive()
    assert first.lease.replica == "cheap"
    assert fleet.advance(0.49) == []
    (second,) = fleet.advance(0.01)
    assert (second.lease.replica, second.hedges) == ("dear", first.lease)
    assert second.lease.request.avoid == {"cheap"}
    assert second.lease.id != first.lease.id
    assert fleet.advance(100) == []  # neither of the two is hedged again
    assert fleet.refused == {}


def test_a_prediction_is_waited_for_by_its_ratio():
    """Where `after_ratio` times the prediction is longer than the floor, that counts."""
    fleet = Fleet(after_ratio=4.0, floor_s=0.001)
    (first,) = fleet.arrive(prompt_tokens=6000)
    expected_s = 4 * first.placement.score.ttft_s
    assert fleet.advance(expected_s * 0.99) == []
    error = fleet.weight_of("cheap")
    (second,) = fleet.advance(expected_s * (1 / (1 - error) - 0.98))
    assert second.hedges == first.lease


def test_predictions_that_have_been_wrong_are_waited_for_longer():
    """First tokens here take three times what is predicted, half of the time: so much more patience."""
    fleet = Fleet(CHEAP, floor_s=0.001)
    for number in range(60):
        fleet.now += 10
        (placed,) = fleet.arrive(may_hedge=False)
        fleet.answer(placed.lease, placed.placement.score.ttft_s * (3 if number % 2 else 1))
    fleet.scheduler.add_replica(DEAR, Lifecycle.READY, fleet.now)
    assert fleet.weight_of("cheap") > 0.25
    fleet.now += 10
    (first,) = fleet.arrive()
    assert first.lease.replica == "cheap"
    assert fleet.advance(3.5 * first.placement.score.ttft_s) == []
    deadline_s = fleet.scheduler.next_deadline()
    assert deadline_s is not None
    assert deadline_s - first.placement.score.ttft_s > fleet.now - 3.5 * first.placement.score.ttft_s


def test_nobody_is_late_by_predictions_that_nobody_has_judged():
    """A replica of which nothing is known cannot be overdue."""
    scheduler = Scheduler(Scheduling(), Queue())
    for replica in (CHEAP, DEAR):
        scheduler.add_replica(replica, Lifecycle.READY, 0.0)
    scheduler.submit(request(may_hedge=True), 0.0)
    assert len(scheduler.advance(0.0)) == 1
    assert scheduler.next_deadline() is None
    assert scheduler.advance(1000.0) == []


@pytest.mark.parametrize(
    "changes", [{"may_hedge": False}, {"service_tier": ServiceTier.BATCH, "may_hedge": False}], ids=["owner", "batch"]
)
def test_only_for_who_can_deal_with_two(changes: dict[str, Any]):
    """The owner of the request says so; otherwise nothing is watched and no timer set."""
    fleet = Fleet()
    fleet.arrive(**changes)
    assert fleet.scheduler.next_deadline() is None
    assert fleet.advance(100) == []


def test_it_can_be_switched_off():
    """No second placement, no timer; the budget is for others, too."""
    fleet = Fleet(enabled=False)
    fleet.arrive()
    assert (fleet.scheduler.next_deadline(), fleet.scheduler.retry_budget.left) == (None, MOST)
    assert fleet.advance(100) == []


@pytest.mark.parametrize("outcome", [None, *(o for o in (Outcome.CANCELLED, Outcome.FAILED))])
def test_who_has_a_token_or_has_gone_is_not_hedged(outcome: Outcome | None):
    """A first token, a client that left or an engine that failed: nothing is left to hedge, and no timer."""
    fleet = Fleet()
    (first,) = fleet.arrive()
    if outcome is None:
        fleet.scheduler.on_first_token(first.lease.id, fleet.now + 0.4)
    else:
        fleet.scheduler.finish(first.lease.id, fleet.now + 0.4, outcome=outcome)
    assert fleet.scheduler.next_deadline() is None
    assert fleet.advance(100) == []


def test_not_where_nobody_would_be_sooner():
    """The only other replica is busy with prompts for longer than the first has been waited for; looked at again until it is not."""
    slow = profile("slow", gpu="L4-24G", usd_per_hour=9.0, max_num_batched_tokens=100_000, kv_blocks=100_000)
    fleet = Fleet(CHEAP, slow)
    fleet.scheduler.set_lifecycle(ReplicaId("cheap"), Lifecycle.DRAINING, fleet.now)
    (busy,) = fleet.arrive(prompt_tokens=8000, may_hedge=False)
    assert busy.placement.score.ttft_s > 1
    fleet.scheduler.set_lifecycle(ReplicaId("cheap"), Lifecycle.READY, fleet.now)
    (first,) = fleet.arrive()
    assert first.lease.replica == "cheap"
    assert fleet.advance(0.5) == []
    assert fleet.refused == {NO_REPLICA: 1}
    fleet.scheduler.on_first_token(busy.lease.id, fleet.now)
    (second,) = fleet.to_deadline()
    assert (second.lease.replica, second.hedges) == ("slow", first.lease)
    assert fleet.refused == {NO_REPLICA: 1}  # a request is counted once


def test_not_where_somebody_else_waits_too():
    """When every replica keeps somebody waiting, the fleet is slow: nobody is sent twice, and the budget stays."""
    fleet = Fleet()
    (first,) = fleet.arrive()
    fleet.scheduler.set_lifecycle(ReplicaId("cheap"), Lifecycle.DRAINING, fleet.now)
    (other,) = fleet.arrive()
    fleet.scheduler.set_lifecycle(ReplicaId("cheap"), Lifecycle.READY, fleet.now)
    assert {first.lease.replica, other.lease.replica} == {"cheap", "dear"}
    budget = fleet.scheduler.retry_budget
    hedged = fleet.advance(0.5)
    assert len(hedged) == 1  # who is looked at first cannot know of the other yet
    fleet.scheduler.finish(hedged[0].lease.id, fleet.now, outcome=Outcome.CANCELLED)
    left = budget.left
    for _ in range(20):
        fleet.arrive()
        assert [one for one in fleet.advance(0.5) if one.hedges] == []
    assert budget.left >= left


def test_not_while_others_wait_for_room():
    """What room there is belongs to those who have no replica at all."""
    fleet = Fleet(profile("cheap", usd_per_hour=1.0, max_num_seqs=1), profile("dear", usd_per_hour=4.0, max_num_seqs=1))
    (first,) = fleet.arrive()
    (second,) = fleet.arrive(may_hedge=False)
    assert fleet.arrive(may_hedge=False) == []
    fleet.scheduler.on_first_token(second.lease.id, fleet.now)
    assert fleet.advance(0.6) == []
    assert fleet.refused == {NO_REPLICA: 1}
    fleet.scheduler.finish(second.lease.id, fleet.now, outcome=Outcome.COMPLETED, output_tokens=60)
    (waited,) = fleet.advance()
    assert waited.hedges is None
    fleet.scheduler.finish(waited.lease.id, fleet.now, outcome=Outcome.COMPLETED, output_tokens=60)
    assert [one.hedges for one in fleet.advance(1.0)] == [first.lease]


def test_not_while_others_wait_for_another_replica():
    """Also where the room would be of no use to them: a queue is a sign that the fleet is short of machines. Batch always waits."""
    reserved = profile("reserved", cost_tier=CostTier.RESERVED)
    fleet = Fleet(CHEAP, DEAR, reserved)
    fleet.scheduler.set_lifecycle(ReplicaId("reserved"), Lifecycle.DOWN, fleet.now)
    fleet.scheduler.set_lifecycle(ReplicaId("reserved"), Lifecycle.WARMING, fleet.now)
    only = {"cost_tiers": frozenset({CostTier.RESERVED}), "may_hedge": False}
    (first,) = fleet.arrive()
    waiting = fleet.scheduler.submit(request(arrived_s=fleet.now, **only), fleet.now)
    assert fleet.arrive(service_tier=ServiceTier.BATCH, **only) == []
    assert fleet.advance(0.5) == []
    assert fleet.refused == {NO_REPLICA: 1}
    fleet.scheduler.cancel(waiting, fleet.now)
    assert [one.hedges for one in fleet.advance(0.5)] == [first.lease]


def test_no_more_than_the_budget():
    """A tenth of the requests, after what was saved up: of a hundred that freeze, ten and ten are sent twice."""
    fleet = Fleet(profile("cheap", usd_per_hour=1.0, max_num_seqs=500, kv_blocks=100_000), DEAR)
    hedges = 0
    for _ in range(100):
        (first,) = (one for one in fleet.arrive() if not one.hedges)
        seconds = fleet.advance(0.5)
        hedges += len(seconds)
        for lease in (first.lease, *(second.lease for second in seconds)):
            fleet.scheduler.finish(lease.id, fleet.now, outcome=Outcome.CANCELLED)
    assert 18 <= hedges <= MOST + 10
    assert fleet.refused == {BUDGET: 100 - hedges}


def test_a_replica_that_was_beaten_is_left_alone_for_as_long():
    """It is taken to be as slow again, twice as long each time; its first token ends that."""
    fleet = Fleet()
    for beaten in range(3):
        (first,) = fleet.arrive()
        assert first.lease.replica == "cheap"
        (second,) = fleet.advance(0.5)
        fleet.scheduler.finish(first.lease.id, fleet.now, outcome=Outcome.CANCELLED)
        fleet.answer(second.lease)
        silent_s = 1.0 * 2**beaten  # at first the objective
        (next_one,) = fleet.arrive()
        assert next_one.lease.replica == "dear"
        fleet.answer(next_one.lease)
        fleet.advance(silent_s)
    (first,) = fleet.arrive()
    assert first.lease.replica == "cheap"
    fleet.answer(first.lease)
    (again,) = (
        fleet.arrive()
    )  # of that it knows nothing any more: once silent, it is left alone for as long as at first
    (second,) = fleet.advance(0.5)
    fleet.scheduler.finish(again.lease.id, fleet.now, outcome=Outcome.CANCELLED)
    fleet.answer(second.lease)
    fleet.advance(1.0)
    (once_more,) = fleet.arrive()
    assert (again.lease.replica, once_more.lease.replica) == ("cheap", "cheap")


def test_a_second_that_loses_says_nothing_against_the_first():
    """The first one gave its token after all."""
    fleet = Fleet()
    (first,) = fleet.arrive()
    (second,) = fleet.advance(0.5)
    fleet.scheduler.on_first_token(first.lease.id, fleet.now)
    fleet.scheduler.finish(second.lease.id, fleet.now, outcome=Outcome.CANCELLED)
    (next_one,) = fleet.arrive()
    assert next_one.lease.replica == "cheap"


def test_a_first_whose_replica_is_gone_may_be_beaten():
    """Removed while its last stream waited: the second replaces it, and nothing is left of it."""
    fleet = Fleet()
    (first,) = fleet.arrive()
    fleet.scheduler.remove_replica(ReplicaId("cheap"), fleet.now)
    (second,) = fleet.advance(0.5)
    fleet.scheduler.finish(first.lease.id, fleet.now, outcome=Outcome.CANCELLED)
    fleet.answer(second.lease)
    assert [state.profile.id for state in fleet.scheduler.states(fleet.now)] == ["dear"]


def test_a_document_is_overdue_when_its_longest_answer_should_have_ended():
    """It shows no first token: three times the time of all the tokens that it may have, not of those that are usual."""
    fleet = Fleet(streaming=False)
    (first,) = fleet.arrive(streaming=False, max_output_tokens=1000)
    score = first.placement.score
    longest_s = score.ttft_s + 999 * score.tpot_s
    assert fleet.advance(3 * longest_s - 0.01) == []
    (second,) = fleet.to_deadline()
    assert (second.hedges, second.lease.request.streaming) == (first.lease, False)


def test_a_document_without_a_bound_is_never_overdue():
    """Nobody can say how long its answer may be."""
    unbounded = [profile(name, max_model_len=None, kv_blocks=10**9) for name in ("a", "b")]
    fleet = Fleet(*unbounded, streaming=False)
    fleet.arrive(streaming=False, max_output_tokens=None)
    deadline_s = fleet.scheduler.next_deadline()
    assert deadline_s is None


def test_a_budget_counts_requests():
    """It begins full, holds no more than ten, and gives whole tries only."""
    budget = RetryBudget(0.25)
    assert [budget.take() for _ in range(12)] == [True] * 10 + [False] * 2
    for _ in range(3):
        budget.earn()
    assert not budget.take()
    budget.earn()
    assert budget.take()
    for _ in range(1000):
        budget.earn()
    assert budget.left == MOST
    assert not RetryBudget(0.0).take()


def test_an_answer_asked_for_twice_is_one_request():
    """Retries and seconds earn nothing: a budget that fed itself would be none."""
    fleet = Fleet()
    budget = fleet.scheduler.retry_budget
    while budget.take():
        pass
    before = budget.left
    fleet.arrive(avoid=frozenset({ReplicaId("dear")}))
    assert budget.left == before
    fleet.arrive()
    assert budget.left == pytest.approx(before + 0.1)
