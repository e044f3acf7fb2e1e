"""What the tenants of one process should have of replicas that others use, too: by tenants and weights, not by queues or processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.replica import Lifecycle
from batching.request import ReplicaId
from batching.shares import WHOLE
from batching.tenant_demand import REST, Demand, Demands, fair_parts, named
from tests.support.scheduling import leases, profile, request, scheduler

DEMANDS = st.dictionaries(
    st.sampled_from("abcde"),
    st.tuples(st.sampled_from((0.5, 1.0, 4.0)), st.integers(1, WHOLE)).map(lambda d: Demand(*d)),
    min_size=1,
)


def of(parts: float, weight: float = 1.0) -> Demand:
    return Demand(weight, int(parts * WHOLE))


def fair(*processes: Demands) -> list[float]:
    """Of the whole, to the third decimal."""
    return [
        round(fair_parts(own, [*processes[:at], *processes[at + 1 :]]) / WHOLE, 3) for at, own in enumerate(processes)
    ]


def test_four_tenants_have_a_quarter_each_wherever_they_are():
    """One fills a gateway alone, three share the other: a quarter and three."""
    assert fair({"greedy": of(1)}, {"a": of(1), "b": of(1), "c": of(1)}) == [0.25, 0.75]


def test_the_part_of_one_that_spreads_is_split():
    """At four gateways it has a quarter of its half at each; who is at one of them only has his half there."""
    assert fair({"greedy": of(1), "a": of(1)}, *[{"greedy": of(1)}] * 3) == [0.625, 0.125, 0.125, 0.125]


def test_nobody_has_more_than_it_wants():
    """Beside a modest tenant the other two have equal parts of what it leaves."""
    assert fair({"a": of(1), "modest": of(0.1)}, {"b": of(1)}) == [0.55, 0.45]


def test_weights_count():
    """Of weight 3, three times as much."""
    assert fair({"a": of(1, 3.0)}, {"b": of(1)}) == [0.75, 0.25]


def test_where_all_have_room_nothing_is_kept_from_anybody():
    """Together they want no more than there is."""
    assert fair({"a": of(0.4)}, {"b": of(0.6)}, {}) == [1.0, 1.0, 1.0]


def test_many_are_told_as_one():
    """The largest by name, the rest together, with all their weight: it comes to the same."""
    many: Demands = {f"t{number:03}": of(0.01 + number / 10_000) for number in range(100)}
    short = named(many, 32)
    assert len(short) == 33
    assert short[REST].weight == 68
    whole, told = (fair_parts({"own": of(1)}, [demands]) for demands in (many, short))
    assert told == pytest.approx(whole, rel=0.1)


@given(st.lists(DEMANDS, min_size=1, max_size=4))
def test_all_parts_together_are_the_whole(processes: list[Demands]):
    """Where more is wanted than there is; and no process has more than it wants."""
    weights = {tenant: demand.weight for demands in processes for tenant, demand in demands.items()}
    same = [{tenant: Demand(weights[tenant], d.parts) for tenant, d in demands.items()} for demands in processes]
    wanted = [sum(demand.parts for demand in demands.values()) for demands in same]
    found = [fair_parts(own, [*same[:at], *same[at + 1 :]]) for at, own in enumerate(same)]
    if sum(wanted) <= WHOLE:
        assert found == [WHOLE] * len(found)
    else:
        assert sum(found) == pytest.approx(WHOLE, abs=len(found))
        assert all(parts <= most + 1 for parts, most in zip(found, wanted, strict=True))


def test_a_claim_wants_no_more_than_the_fair_part():
    """What runs and waits here, and what another process says of its tenants, make the fair part: a quarter of a full replica."""
    one, two = scheduler(profile(max_num_seqs=8)), scheduler(profile(max_num_seqs=8))
    for number in range(20):
        one.submit(request(f"g{number}", tenant="greedy"), 0.0)
        for tenant in "abc":
            two.submit(request(f"{tenant}{number}", tenant=tenant), 0.0)
    assert len(leases(one.advance(0.0))) == 8
    assert one.stake.claims()[ReplicaId("a")].wanted == WHOLE
    words = two.stake.service.tell("two", 0.0)
    one.stake.service.hear([words], 0.1)
    one.stake.service.tell("one", 0.1)
    assert one.stake.service.fair_parts("m") == WHOLE // 4
    assert one.stake.claims()[ReplicaId("a")].wanted == WHOLE // 4
    one.stake.service.tell("one", 4.0)  # it was not heard again: it wants nothing any more
    assert one.stake.claims()[ReplicaId("a")].wanted == WHOLE


def test_a_replica_of_two_models_is_wanted_for_both():
    """Each model's tenants have their part."""
    built = scheduler(profile(max_num_seqs=4, models={"m": profile().models["m"], "n": profile().models["m"]}))
    built.add_replica(profile("b"), Lifecycle.READY, 0.0)
    for number in range(30):
        built.submit(request(f"m{number}"), 0.0)
        built.submit(request(f"n{number}", model="n"), 0.0)
    built.advance(0.0)
    built.stake.service.tell("one", 0.0)
    assert built.stake.claims()[ReplicaId("a")].wanted == WHOLE
