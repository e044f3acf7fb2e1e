"""Replicas that will be gone: what they still take, and who waits for them."""

from math import inf
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from batching.audit import Audit
from batching.placement import Need, place
from batching.policies import BASELINES
from batching.replica import Lifecycle
from batching.request import Outcome, ReplicaId
from batching.scheduler import Scheduler
from batching.ticket import Placed
from batching.window import Window
from config.schema import CostTier, Queue, Scheduling
from tests.support.scheduling import leases, placed, profile, request, scheduler

A, B = ReplicaId("a"), ReplicaId("b")


def doomed(*others: Any, left_s: float, **changes: Any):
    """A notice runs for `a`, of which so much is left at time 0."""
    built = scheduler(profile("a", **changes), *others)
    built.set_lifecycle(A, Lifecycle.RECLAIMING, 0.0)
    built.set_window(A, Window(left_s), 0.0)
    return built


def asked(built: Any, tokens: int, *, now: float = 0.0, name: str = "r", **changes: Any) -> list[str]:
    built.submit(request(name, max_output_tokens=tokens, arrived_s=now, **changes), now)
    return placed(built.advance(now))


def test_what_ends_in_time_is_placed_and_what_does_not_waits():
    """A short answer goes to a replica that has seconds left, a long one waits for another."""
    built = doomed(left_s=5.0)
    assert asked(built, 20, name="short") == ["short"]
    assert asked(built, 5000, name="long") == []
    assert built.queued == 1


def test_no_notice_takes_no_work_without_an_end():
    """Reclaiming alone, or draining whatever the window: nothing is placed."""
    built = scheduler(profile("a"))
    built.add_replica(profile("z"), Lifecycle.STARTING, 0.0)  # for which requests may wait
    built.set_lifecycle(A, Lifecycle.RECLAIMING, 0.0)
    assert asked(built, 1) == []
    built.set_window(A, Window(longest_s=9.0), 0.0)
    assert placed(built.advance(0.0)) == []
    built.set_lifecycle(A, Lifecycle.DRAINING, 0.0)
    built.set_window(A, Window(99.0), 0.0)
    assert placed(built.advance(0.0)) == []


def test_time_shrinks_the_window():
    """The same request that fits at first does not a few seconds later, and nothing fits when the time is over."""
    built = doomed(left_s=5.0)
    assert asked(built, 50, now=0.0, name="first") == ["first"]
    assert asked(built, 50, now=4.9, name="second") == []
    assert asked(built, 1, now=5.1, name="third") == []


def test_a_window_taken_back_lets_everything_in():
    """A notice that was withdrawn: who waited is placed at once."""
    built = doomed(left_s=1.0)
    assert asked(built, 5000) == []
    built.set_lifecycle(A, Lifecycle.READY, 0.5)
    built.set_window(A, None, 0.5)
    assert placed(built.advance(0.5)) == ["r"]


def test_a_hint_bounds_the_run_of_new_work_only():
    """While it is ready: short work as ever, long work elsewhere, and what runs is left alone."""
    built = scheduler(profile("a"), profile("b", usd_per_hour=99.0))
    first = asked(built, 5000, name="long")
    built.set_window(A, Window(longest_s=10.0), 0.0)
    assert first == ["long"]
    for name, tokens, where in (("short", 20, A), ("longer", 5000, B)):
        built.submit(request(name, max_output_tokens=tokens), 0.0)
        assert [lease.replica for lease in leases(built.advance(0.0))] == [where]
    assert built.leases_on(A) == 2


def test_errors_of_predictions_narrow_the_window():
    """Where predictions have been right it is used nearly to its end; where nobody knows, they may be off by two."""
    right, wrong = Audit(), Audit()
    for _ in range(30):
        right.observe([(0, 1.0, 1.0, 1.0), (1, 0.01, 0.01, 0.01)])
        wrong.observe([(0, 1.0, 1.0, 4.0), (1, 0.01, 0.01, 0.04)])
    ends = [
        window.surely_ended_s(0.0, 1.0, 0.01, 101)
        for window in (Window(9.0).judged_by(right), Window(9.0).judged_by(Audit()), Window(9.0).judged_by(wrong))
    ]
    assert ends == pytest.approx([2.0, 4.0, 8.0])


def test_documents_alone_judge_by_whole_answers():
    """A replica that only ever gave documents has shown neither a first token nor a pace."""
    audit = Audit()
    for _ in range(30):
        audit.observe([(4, 1.0, 1.0, 1.0)])
    assert Window(9.0).judged_by(audit)[2:] == pytest.approx((1.0, 1.0))


def test_no_head_waits_for_a_replica_that_goes():
    """What fits nowhere gets another replica reserved, not the one that will be gone."""
    built = doomed(profile("b", max_num_seqs=1), left_s=30.0, max_num_seqs=1)
    for name in ("x", "y"):
        built.submit(request(name, max_output_tokens=20), 0.0)
    running = {lease.replica: lease for lease in leases(built.advance(0.0))}
    assert running.keys() == {A, B}
    built.submit(request("head", prompt_tokens=200, max_output_tokens=6000, tenant="slow"), 0.0)
    built.advance(0.0)
    fleet = built._fleet
    for second in range(1, 4):
        built.submit(request(f"s{second}", max_output_tokens=20, tenant="quick"), float(second))
        built.finish(running.pop(A).id, float(second), outcome=Outcome.COMPLETED, output_tokens=20)
        for lease in leases(built.advance(float(second))):
            running[lease.replica] = lease
    assert fleet[A].offer.protected_for is None
    assert fleet[B].offer.protected_for is not None


def test_protection_ends_when_a_notice_comes():
    """A replica that was kept for a head is everybody's who ends in time."""
    built = scheduler(profile("a", max_num_seqs=1), profile("b", max_num_seqs=1))
    built._fleet.protect(A, 99)
    waiting = "head"
    built.submit(request("x", max_output_tokens=20), 0.0)
    built.advance(0.0)
    built.submit(request(waiting, max_output_tokens=5000), 0.0)
    built.advance(0.0)
    entry = next(iter(built._queue))
    lane = built._queue.lanes["m"]
    built._fleet.protect(A, entry.ticket.id)
    entry.protected_at = A
    lane.protected.append(entry)
    built.set_lifecycle(A, Lifecycle.RECLAIMING, 0.0)
    built.set_window(A, Window(20.0), 0.0)
    built.advance(0.0)
    assert built._fleet[A].offer.protected_for is None
    assert asked(built, 20, name="short") == ["short"]


@settings(max_examples=200, deadline=None)
@given(
    left_s=st.floats(0.0, 20.0),
    steps=st.lists(
        st.tuples(st.floats(0.0, 0.5), st.integers(1, 3000), st.integers(1, 4000), st.booleans()),
        min_size=1,
        max_size=30,
    ),
)
def test_everything_on_a_doomed_replica_is_predicted_to_end_in_time(left_s: float, steps: Any):
    """Whatever comes when, and however full it is: first token and the forecast answer end before it goes, with room for error."""
    built = scheduler(profile("a", cost_tier=CostTier.SPOT, usd_per_hour=0.1), profile("b", usd_per_hour=9.0))
    built.set_lifecycle(A, Lifecycle.RECLAIMING, 0.0)
    built.set_window(A, Window(left_s), 0.0)
    now, running = 0.0, []
    for number, (pause_s, prompt, output, ends) in enumerate(steps):
        now += pause_s
        if ends and running:
            built.finish(running.pop(0).id, now, outcome=Outcome.CANCELLED)
        built.submit(request(f"r{number}", prompt_tokens=prompt, max_output_tokens=output, arrived_s=now), now)
        for decision in built.advance(now):
            assert isinstance(decision, Placed)
            running.append(decision.lease)
            record, score = built._fleet.leases[decision.lease.id], decision.placement.score
            event(f"on {decision.lease.replica}")
            if decision.lease.replica == A:
                window = built._fleet[A].offer.window
                assert window is not None
                predicted_s = score.ttft_s + score.tpot_s * (record.forecast_tokens - 1)
                assert now + predicted_s <= left_s
                assert now + 2 * predicted_s <= left_s + 1e-6  # nobody has judged its predictions yet
        built.check()


def test_a_window_without_bounds_bounds_nothing():
    """Neither an end nor a longest run: as no window at all."""
    need = Need(request(), 1, 60, 60, inf, inf)
    built = scheduler(profile("a"))
    built.set_window(A, Window(), 0.0)
    with_window = place(need, built._fleet.roomy("m"), 0.0)
    built.set_window(A, None, 0.0)
    assert with_window == place(need, built._fleet.roomy("m"), 0.0) is not None


def test_other_routers_rules_know_of_no_deadline():
    """A baseline is not shown a replica that goes: it could not tell what still fits there."""
    built = Scheduler(Scheduling(), Queue(), policy=BASELINES["round_robin"](0))
    for name in ("a", "b"):
        built.add_replica(profile(name), Lifecycle.READY, 0.0)
    built.set_lifecycle(A, Lifecycle.RECLAIMING, 0.0)
    built.set_window(A, Window(600.0), 0.0)
    for number in range(4):
        built.submit(request(f"r{number}", max_output_tokens=1), 0.0)
    assert {lease.replica for lease in leases(built.advance(0.0))} == {B}
