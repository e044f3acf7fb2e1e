"""Tenants of different weight: what they are served while both wait, what they may hold of a full queue, what goes before one."""

from batching.backlog import Backlog
from batching.lane import Lane
from batching.request import Outcome
from batching.ticket import Evicted
from config.schema import Floors
from tests.support.scheduling import leases, profile, request, scheduler


def test_tokens_are_charged_over_the_weight():
    """A tenant of weight 3 is charged a third, so that three times as much is served to it before it is the other's turn."""
    lane = Lane("m", Floors())
    lane.charge(1, "heavy", 300, weight=3.0)
    lane.charge(1, "light", 100)
    served = lane._counters[1].served
    assert served["heavy"] == served["light"] == 100


def test_what_goes_first_is_by_weight():
    """Of the others at most as much goes before a newcomer as its own, times their weight over its own."""
    backlog = Backlog()
    backlog.enter(1, "heavy", 10_000, 0.0, 4.0)
    assert backlog.before(1, "light", 100) == 400
    assert backlog.before(1, "as heavy", 100, weight=4.0) == 100
    backlog.enter(1, "light", 50, 0.0)
    assert backlog.before(1, "light", 100) == 50 + 600
    assert backlog.before(1, "heavy", 100) == 10_000 + 50
    backlog.leave(1, "heavy", 10_000, 0.0)
    backlog.leave(1, "light", 50, 0.0)
    assert backlog.before(1, "other", 100) == 0


def test_twice_the_weight_is_served_twice_as_much():
    """Two tenants with endless queues and equal requests: the one of weight 2 gets two places for each of the other's."""
    built = scheduler(profile(max_num_seqs=1))
    for number in range(30):
        built.submit(request(f"h{number}", tenant="heavy", weight=2.0), 0.0)
        built.submit(request(f"l{number}", tenant="light"), 0.0)
    running, order = leases(built.advance(0.0)), []
    for step in range(1, 31):
        order.append(running[0].request.tenant)
        built.finish(running[0].id, float(step), outcome=Outcome.COMPLETED, output_tokens=10)
        running = leases(built.advance(float(step)))
    assert 19 <= order.count("heavy") <= 21


def test_a_full_queue_makes_way_by_weight():
    """Where tenants hold equally much of a full queue, a newcomer takes the place of the one whose weight is less."""
    built = scheduler(profile(max_num_seqs=1), queue={"max_requests": 8, "max_wait_s": 1000})
    built.submit(request("running"), 0.0)
    built.advance(0.0)
    for number in range(4):
        built.submit(request(f"h{number}", tenant="heavy", weight=4.0), 0.0)
        built.submit(request(f"l{number}", tenant="light"), 0.0)
    built.submit(request("new", tenant="new"), 0.0)
    gone = [d.ticket.request.id for d in built.advance(0.0) if isinstance(d, Evicted)]
    assert gone == ["l3"]
