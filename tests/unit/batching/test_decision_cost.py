"""What a decision costs, counted in ticket-replica tests rather than in time."""

from typing import Any

import pytest

from batching.request import Outcome
from tests.support.scheduling import leases, profile, request, scheduler

REPLICAS = 10


def saturated(waiting: Any):
    built = scheduler(
        *(profile(f"a{number}", max_num_seqs=2) for number in range(REPLICAS)), queue={"max_requests": 20_000}
    )
    for number in range(2 * REPLICAS + waiting):
        built.submit(request(f"r{number}", tenant=f"t{number % 7}"), 0.0)
    return built, leases(built.advance(0.0))


@pytest.mark.parametrize("waiting", [10, 100, 3000])
def test_an_ending_costs_the_same_however_many_wait(waiting: Any):
    """One slot freed is one placement, tested against the replica that freed it."""
    built, running = saturated(waiting)
    before = built.evaluations
    for lease in running[:5]:
        built.finish(lease.id, 1.0, outcome=Outcome.COMPLETED)
        assert len(built.advance(1.0)) == 1
    assert built.evaluations - before <= 5 * REPLICAS


@pytest.mark.parametrize("waiting", [0, 1000])
def test_nothing_changed_costs_nothing(waiting: Any):
    """Time and tokens alone make no room: no ticket is tested again."""
    built, running = saturated(waiting)
    before = built.evaluations
    for step in range(50):
        built.on_tokens(running[0].id, step, 1.0)
        assert built.advance(1.0 + step / 100) == []
    assert built.evaluations == before


def test_an_arrival_that_fits_nowhere_is_not_tested():
    """A fleet without room is seen without looking at what waits."""
    built, _ = saturated(1000)
    before = built.evaluations
    built.submit(request("late"), 1.0)
    assert built.advance(1.0) == []
    assert built.evaluations == before


def test_a_pass_looks_past_a_bounded_number():
    """Heads that do not fit cost at most `bypass_limit` tests a pass, each only where room grew."""
    built = scheduler(profile("a", kv_blocks=100), profile("b", kv_blocks=100), queue={"max_requests": 20_000})
    built.submit(request("x"), 0.0)
    built.submit(request("y"), 0.0)
    first, _ = leases(built.advance(0.0))
    for number in range(500):
        built.submit(request(f"r{number}", prompt_tokens=1500), 0.0)
    built.submit(request("z"), 0.0)
    assert built.advance(0.0)[0].ticket.request.id == "z"
    before = built.evaluations
    built.on_first_token(first.id, 0.5)
    built.advance(0.5)
    assert built.evaluations - before <= 64
