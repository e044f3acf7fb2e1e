"""Who can still meet its objective goes before who cannot any more; the late are not forgotten."""

from itertools import pairwise
from typing import Any

from batching.request import Outcome, ServiceTier
from batching.scheduler import Scheduler
from tests.support.scheduling import leases, placed, profile, request, scheduler


def occupied(**options: Any):
    """One slot, taken; the objective is a first token within a second."""
    built = scheduler(profile(max_num_seqs=1), **options)
    built.submit(request("first"), 0.0)
    return built, leases(built.advance(0.0))[0]


def arrive(built: Scheduler, now: float, *names: str, tier: ServiceTier = ServiceTier.DEFAULT, **changes: Any):
    for name in names:
        built.submit(request(name, arrived_s=now, service_tier=tier, **changes), now)
    assert placed(built.advance(now)) == []


def serve(built: Scheduler, lease: Any, now: float, rounds: int):
    """Ends what runs, a millisecond a round; who came next."""
    order = []
    for number in range(rounds):
        built.finish(lease.id, now + number / 1000, outcome=Outcome.COMPLETED)
        decisions = built.advance(now + number / 1000)
        order += placed(decisions)
        lease = leases(decisions)[0]
    return order


def test_who_can_still_be_in_time_goes_first():
    """In an overloaded queue the last to come are served in time, whatever their tier; those that missed it come afterwards."""
    built, lease = occupied()
    arrive(built, 0.0, "late0", "late1")
    arrive(built, 0.1, "urgent", tier=ServiceTier.PRIORITY)
    arrive(built, 1.5, "flex", tier=ServiceTier.FLEX)
    arrive(built, 1.6, "young")
    arrive(built, 1.7, "bulk", tier=ServiceTier.BATCH)
    assert serve(built, lease, 2.0, 6) == ["young", "flex", "late0", "late1", "urgent", "bulk"]


def test_without_it_the_earliest_due_goes_first():
    """Switched off, an overloaded queue serves everybody late, in order of what is due; tiers are strict."""
    built, lease = occupied(scheduling={"without": {"late_last"}})
    arrive(built, 0.0, "late0", "late1")
    arrive(built, 0.1, "urgent", tier=ServiceTier.PRIORITY)
    arrive(built, 1.6, "young")
    assert serve(built, lease, 2.0, 4) == ["urgent", "late0", "late1", "young"]


def test_the_late_go_in_order_of_arrival():
    """Among those that are late what was due first no longer matters."""
    built, lease = occupied()
    arrive(built, 0.0, "long", prompt_tokens=2000)  # due after 2 s
    arrive(built, 0.5, "short")  # due after 1.5
    early = serve(*occupied_with(("long", 0.0, 2000), ("short", 0.5, 100)), now=0.6, rounds=2)
    assert early == ["short", "long"]
    assert serve(built, lease, 3.0, 2) == ["long", "short"]


def occupied_with(*arrivals: tuple[str, float, int]):
    built, lease = occupied()
    for name, now, prompt in arrivals:
        arrive(built, now, name, prompt_tokens=prompt)
    return built, lease


def test_the_late_share_by_tokens_served():
    """Tenants take turns among the late as everywhere, by the same counters."""
    built, lease = occupied()
    arrive(built, 0.0, "x0", "x1", "x2", tenant="x")
    arrive(built, 0.1, "y0", tenant="y")
    assert serve(built, lease, 2.0, 4) == ["x0", "y0", "x1", "x2"]


def test_a_request_that_comes_too_late_is_late_at_once():
    """Time spent elsewhere counts: a retry whose objective has passed does not go before others."""
    built, lease = occupied()
    built.submit(request("retry", arrived_s=-5.0), 0.1)
    built.advance(0.1)
    arrive(built, 0.2, "young")
    assert serve(built, lease, 0.3, 2) == ["young", "retry"]


def test_who_turns_late_is_told_by_a_timer():
    """The moment at which one can be in time no longer is a deadline of the scheduler's, and then it yields."""
    built, lease = occupied()
    arrive(built, 0.0, "r")
    due_s = built.next_deadline()
    assert due_s is not None
    assert 0.8 < due_s < 0.9  # a second, less what an idle H100 needs and a tenth
    arrive(built, due_s - 0.01, "young")
    assert serve(built, lease, due_s - 0.005, 1) == ["r"]
    built, lease = occupied()
    arrive(built, 0.0, "r")
    arrive(built, due_s - 0.01, "young")
    assert serve(built, lease, due_s, 1) == ["young"]


def test_the_late_have_a_floor():
    """However many come that can be in time, their share of the prompt tokens goes to those that are late."""
    built, lease = occupied(queue={"max_wait_s": 600.0, "floors": {"late": 0.1}})
    arrive(built, 0.0, *(f"late{number}" for number in range(20)))
    order = []
    for number in range(100):
        now = 2.0 + number * 0.01
        arrive(built, now, f"young{number}")
        built.finish(lease.id, now, outcome=Outcome.COMPLETED)
        decisions = built.advance(now)
        order += placed(decisions)
        lease = leases(decisions)[0]
    late = [index for index, name in enumerate(order) if name.startswith("late")]
    assert len(late) in {9, 10}
    assert [order[index] for index in late] == [f"late{number}" for number in range(len(late))]
    assert max(after - before for before, after in pairwise(late)) <= 11
