"""What a decision costs, counted in ticket-replica tests rather than in time."""

import sys
from typing import Any, Self

import pytest

from batching.request import Outcome, ServiceTier
from config.schema import Mechanism
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
    assert built.evaluations - before <= 2 * 5


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


class Calls:
    """Counts function calls, Python's and C's, while it is entered: what is done, however fast the machine does it."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, _frame: object, event: str, _arg: object):
        self.count += event in {"call", "c_call"}


def half_full(replicas: int, **changes: Any):
    """Every replica has one of its two slots taken."""
    built = scheduler(*(profile(f"a{number:04}", max_num_seqs=2, **changes) for number in range(replicas)))
    for number in range(replicas):
        built.submit(request(f"r{number}"), 0.0)
    return built, leases(built.advance(0.0))


def calls_of_an_arrival(replicas: int):
    """Function calls from a request's coming to its placement, a few replicas having changed since the last."""
    built, running = half_full(replicas)
    calls = Calls()
    for step in range(2):  # the first finds all that it must look at for the first time
        for lease in running[:5]:
            built.on_tokens(lease.id, 20 * (step + 1), 0.1)
        built.advance(0.1)
        with calls:
            built.submit(request(f"new{step}"), 0.1)
            assert len(built.advance(0.1)) == 1
        if step == 0:
            calls.count = 0
    return calls.count


def test_an_arrival_costs_hardly_more_on_many_replicas():
    """Five hundred replicas are scored in as many calls as two hundred: a column at a time, reading what has changed."""
    few, many = calls_of_an_arrival(200), calls_of_an_arrival(500)
    assert many <= 1.02 * few
    assert few <= 265


def test_one_requests_life_is_few_calls():
    """On eight replicas with room, while nobody waits: what its own events cost, one by one."""
    built, running = half_full(8)
    for lease in running:
        built.on_first_token(lease.id, 0.1)
    built.advance(0.1)
    for step in (1, 2):  # the first finds all that it must look at for the first time
        with Calls() as arrives:
            built.submit(request("new"), 0.2)
            decisions = built.advance(0.2)
        [lease] = leases(decisions)
        with Calls() as begins:
            built.on_first_token(lease.id, 0.3)
        with Calls() as passes:
            assert built.advance(0.3) == []
            built.next_deadline()
        [other] = [one for one in running if one.replica == lease.replica]
        with Calls() as leads:  # the first of its batch in each step, at a block's end
            built.on_tokens(other.id, 20 * step, 0.4)
        with Calls() as follows:
            built.on_tokens(lease.id, 5, 0.4)
        with Calls() as ends:
            built.finish(lease.id, 0.5, outcome=Outcome.COMPLETED, output_tokens=20, cached_tokens=0)
    assert arrives.count <= 255
    assert begins.count <= 49
    assert passes.count <= 16
    assert leads.count <= 51
    assert follows.count <= 13
    assert ends.count <= 75


def test_a_full_replica_costs_an_arrival_nothing():
    """Only replicas with slots are looked at."""
    built, running = saturated(0)
    built.finish(running[0].id, 1.0, outcome=Outcome.COMPLETED)
    assert built.advance(1.0) == []
    before = built.evaluations
    built.submit(request("new"), 1.0)
    assert len(built.advance(1.0)) == 1
    assert built.evaluations - before == 1


def test_an_arrival_that_fits_nowhere_costs_the_same_on_any_fleet():
    """Nothing of it is asked of each replica."""
    counts = []
    for replicas in (10, 200):
        built, _ = half_full(replicas)
        for number in range(replicas):
            built.submit(request(f"s{number}"), 0.0)
        assert len(built.advance(0.0)) == replicas
        built.submit(request("first"), 0.1)  # who comes first finds out that nobody has room
        assert built.advance(0.1) == []
        with Calls() as calls:
            built.submit(request("late"), 0.1)
            assert built.advance(0.1) == []
        counts.append(calls.count)
    assert counts[1] == counts[0]


def calls_of_ten_endings(waiting: int, **scheduling: Any):
    """Function calls in which ten that run end and ten that wait are placed; every tier waits, half of them late."""
    built = scheduler(
        *(profile(f"a{number}", max_num_seqs=2) for number in range(REPLICAS)),
        scheduling=scheduling,
        queue={"max_requests": 20_000, "aging_s": 0.5},
    )
    for number in range(2 * REPLICAS):
        built.submit(request(f"r{number}"), 0.0)
    running = leases(built.advance(0.0))
    for number in range(waiting):
        arrived_s = 0.0 if number % 2 else 2.0
        tier = ServiceTier(number % 4)
        built.submit(request(f"w{number}", arrived_s=arrived_s, service_tier=tier, tenant=f"t{number % 7}"), 2.0)
    assert built.advance(2.0) == []
    with Calls() as calls:
        for step, lease in enumerate(running[:10]):
            built.finish(lease.id, 2.0 + step / 1000, outcome=Outcome.COMPLETED)
            assert len(built.advance(2.0 + step / 1000)) == 1
    return calls.count


@pytest.mark.parametrize("mechanism", [None, *Mechanism])
def test_what_waits_costs_hardly_more_than_its_logarithm(mechanism: Any):
    """A hundred times as many wait, and ten decisions take at most three times as many calls: heaps, no scans."""
    without = [mechanism] if mechanism else []
    few, many = (calls_of_ten_endings(waiting, without=without) for waiting in (60, 6000))
    assert many <= 3 * few


def test_turning_late_is_paid_once_by_each():
    """When thousands become late together, each moves once and is tested no more than the pass looks past."""
    built, running = saturated(3000)
    before = built.evaluations
    with Calls() as calls:
        built.advance(1.0)
    assert calls.count < 3000 * 100
    assert built.evaluations - before == 0  # no replica has room
    with Calls() as calls:
        built.finish(running[0].id, 1.1, outcome=Outcome.COMPLETED)
        assert len(built.advance(1.1)) == 1
    assert calls.count < 3000 * 10  # heaps drop what has left them
    assert built.evaluations - before <= REPLICAS


def test_held_requests_are_looked_past_within_the_limit():
    """Those that wait for a better replica are tested once when they come; then they cost a pass its limit at most."""
    built = scheduler(
        profile("h100", max_num_seqs=1),
        profile("l4", gpu="L4-24G", usd_per_hour=9.0),
        scheduling={"objectives": {"ttft_s_per_prompt_token": 0}, "bypass_limit": 64},
        queue={"max_requests": 20_000},
    )
    built.submit(request("first"), 0.0)
    lease = leases(built.advance(0.0))[0]
    assert lease.replica == "h100"
    for number in range(500):
        built.submit(request(f"r{number}", prompt_tokens=8000), 0.0)
    assert built.advance(0.0) == []
    assert built.evaluations <= 2 * 501
    before = built.evaluations
    built.finish(lease.id, 0.1, outcome=Outcome.COMPLETED)
    assert [d.placement.replica for d in built.advance(0.1)] == ["h100"]
    assert built.evaluations - before <= 2 * 64 + 2
