"""What binds a replica: sequences, prefill tokens, KV blocks - and what does not, where nothing is known."""

from typing import Any

import pytest

from batching.replica import EngineLoad, Lifecycle
from batching.request import Outcome, ReplicaId
from batching.scheduler import Scheduler
from config.schema import CostTier
from tests.support.scheduling import leases, placed, profile, request, scheduler, unknown_profile

A = ReplicaId("a")


def admit(built: Scheduler, count: int, now: float = 0.0, **changes: Any):
    for number in range(count):
        built.submit(request(f"r{number}", **changes), now)
    return built.advance(now)


@pytest.mark.parametrize(
    ("limits", "changes", "fit"),
    [
        ({"max_num_seqs": 3}, {}, 3),
        ({"max_num_seqs": 7}, {"sequences": 3}, 2),
        ({"max_num_seqs": 2}, {"sequences": 5}, 1),  # wider than the engine: alone
        ({"max_num_batched_tokens": 100}, {}, 2),  # two chunks of 100
        ({"max_num_batched_tokens": 128}, {}, 2),  # the third would make 300 > 256
        ({"max_num_batched_tokens": 16}, {}, 1),  # longer than the budget: alone
        ({"kv_blocks": 41}, {}, 4),  # 10 blocks each, 1 of watermark
        ({"kv_blocks": 40}, {}, 3),
        ({"kv_blocks": 8}, {}, 1),  # forecast beyond the cache, prompt within: alone
        ({"kv_blocks": 50}, {"sequences": 3}, 2),  # 6 shared + 3 x ceil((4 + 60) / 16) = 18
        (
            {"max_num_seqs": None, "kv_blocks": None, "max_num_batched_tokens": None},
            {},
            9,
        ),  # nothing told: nothing binds
    ],
)
def test_budgets_bind_in_the_engines_units(limits: Any, changes: Any, fit: int):
    """A replica is given what its tightest budget allows and the rest waits."""
    built = scheduler(profile(**limits))
    assert len(placed(admit(built, 9, **changes))) == (min(fit, 8) if limits.get("max_num_seqs", 8) else fit)
    built.check()


def test_first_token_gives_prefill_room_back():
    """The prefill budget counts prompts only until their first token."""
    built = scheduler(profile(max_num_batched_tokens=50))
    first = leases(admit(built, 2))
    assert len(first) == 1
    built.on_first_token(first[0].id, 0.1)
    assert placed(built.advance(0.1)) == ["r1"]
    built.finish(first[0].id, 0.2, outcome=Outcome.COMPLETED)
    assert built.states(0.2)[0].prefill_tokens == 100  # r1's alone: the first prompt is given back once


def test_a_first_token_nobody_sees_is_assumed():
    """A whole-body answer frees its prefill budget when the prediction says so, and a timer asks for that moment."""
    built = scheduler(profile(max_num_batched_tokens=50))
    assert len(leases(admit(built, 2, streaming=False))) == 1
    due = built.next_deadline()
    assert due is not None
    assert 0 < due < 1
    assert built.advance(due - 1e-6) == []
    assert placed(built.advance(due)) == ["r1"]


def test_growth_beyond_the_forecast_grows_the_reservation():
    """Reserved blocks follow what was emitted into the watermark and beyond, and the overrun is shown."""
    built = scheduler(profile(kv_blocks=21, max_num_seqs=8))
    lease, _ = leases(admit(built, 2))
    built.on_tokens(lease.id, 60, 1.0)
    assert built.states(1.0)[0].reserved_blocks == 20
    built.on_tokens(lease.id, 60 + 33, 1.0)  # three blocks more, one of them the watermark's
    state = built.states(1.0)[0]
    assert (state.reserved_blocks, state.held_blocks) == (23, 13 + 7)
    assert state.extras["overrun_blocks"] == 3
    built.on_tokens(lease.id, 1, 2.0)  # a late report
    assert built.states(2.0)[0].held_blocks == 20
    built.check()


def test_foreign_blocks_bind_while_the_report_is_fresh():
    """What the engine holds beyond our leases is not ours to give, until the report is stale - and a timer says when."""
    built = scheduler(profile(kv_blocks=100))
    admit(built, 1)
    built.observe(A, EngineLoad(observed_s=0.0, kv_usage_ratio=0.87), 0.0)
    assert built.states(0.0)[0].foreign_blocks == 80
    built.submit(request("late"), 1.0)
    assert built.advance(1.0) == []
    assert built.next_deadline() == 10.0
    assert placed(built.advance(10.0)) == ["late"]


def test_foreign_blocks_are_fixed_when_reported():
    """Our leases end and the figure does not grow by them: the report was about a moment that is gone."""
    built = scheduler(profile(kv_blocks=100))
    lease = leases(admit(built, 1))[0]
    built.observe(A, EngineLoad(observed_s=0.0, kv_usage_ratio=0.07), 0.0)
    built.finish(lease.id, 0.5, outcome=Outcome.COMPLETED)
    assert built.states(0.5)[0].foreign_blocks == 0


def test_a_report_stale_on_arrival_changes_nothing():
    """An old figure is shown with its age and used for nothing."""
    built = scheduler(profile(kv_blocks=100))
    built.observe(A, EngineLoad(observed_s=-20.0, kv_usage_ratio=1.0), 0.0)
    state = built.states(0.0)[0]
    assert (state.foreign_blocks, state.load_age_s) == (0, 20.0)
    assert placed(admit(built, 1)) == ["r0"]


def test_a_report_of_one_that_is_going_is_forgotten_with_it():
    """Its last leases run and its engine still tells of itself; when the report is stale there may be nobody left."""
    built = scheduler(profile())
    built.submit(request(), 0.0)
    [lease] = leases(built.advance(0.0))
    built.remove_replica(A, 1.0)
    built.observe(A, EngineLoad(observed_s=1.0, kv_usage_ratio=0.5), 1.0)
    built.finish(lease.id, 2.0, outcome=Outcome.COMPLETED)
    assert built.advance(20.0) == []
    assert built.next_deadline() is None


def test_an_idle_fleet_of_unknown_load_always_places():
    """Unknown is not zero: an engine that says nothing gets work."""
    assert placed(admit(scheduler(unknown_profile()), 1, prompt_tokens=100_000)) == ["r0"]


def test_a_lease_is_given_back_once():
    """The second `finish` says so and changes nothing; progress after it is ignored."""
    built = scheduler(profile())
    lease = leases(admit(built, 1))[0]
    assert built.finish(lease.id, 1.0, outcome=Outcome.FAILED)
    assert not built.finish(lease.id, 1.0, outcome=Outcome.COMPLETED)
    built.on_first_token(lease.id, 1.0)
    built.on_tokens(lease.id, 50, 1.0)
    assert built.states(1.0)[0].reserved_blocks == built.states(1.0)[0].running == 0
    built.check()


def test_capacity_and_price_may_change_at_run_time():
    """A larger cache admits what waited; a new block size recounts live leases."""
    built = scheduler(profile(kv_blocks=11))
    assert len(placed(admit(built, 2))) == 1
    built.update_profile(profile(kv_blocks=60, block_size=8, usd_per_hour=9.0, cost_tier=CostTier.SPOT), 1.0)
    assert built.states(1.0)[0].reserved_blocks == 20
    assert placed(built.advance(1.0)) == ["r1"]
    built.check()


def test_transitions_outside_the_table_raise():
    """A replica that is down does not drain; repeating a state is no transition."""
    built = scheduler(profile())
    built.set_lifecycle(A, Lifecycle.READY, 0.0)
    built.set_lifecycle(A, Lifecycle.DOWN, 0.0)
    with pytest.raises(ValueError, match="cannot go from down to draining"):
        built.set_lifecycle(A, Lifecycle.DRAINING, 0.0)


def test_ids_are_unique_until_removed():
    """Adding a present id raises; a removed one may return while its last leases run."""
    built = scheduler(profile())
    with pytest.raises(ValueError, match="in the fleet already"):
        built.add_replica(profile(), Lifecycle.READY, 0.0)
    admit(built, 1)
    built.remove_replica(A, 1.0)
    built.add_replica(profile(max_num_seqs=2), Lifecycle.READY, 1.0)
    assert placed(admit(built, 3, now=2.0)) == ["r0"]  # one of two slots is still leased
