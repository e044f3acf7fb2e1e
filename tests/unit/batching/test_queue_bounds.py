"""The queue's bounds, in total and per service tier, and who makes way when they are met."""

from typing import Any

import pytest

from batching.crowd import Held
from batching.replica import Lifecycle
from batching.request import Reason, Rejected, ServiceTier
from batching.scheduler import Scheduler
from tests.support.scheduling import evicted, profile, request, scheduler

PRIORITY, DEFAULT, FLEX, BATCH = ServiceTier


def waiting(**queue: Any) -> Scheduler:
    """Nothing is placed: its one replica is still starting."""
    built = scheduler(queue={"max_wait_s": 1000.0, **queue})
    built.add_replica(profile(), Lifecycle.STARTING, 0.0)
    return built


def come(built: Scheduler, *names: str, **changes: Any) -> list[str | None]:
    """What each is told: None where it may wait."""
    told: list[str | None] = []
    for name in names:
        try:
            built.submit(request(name, **changes), 0.0)
            told.append(None)
        except Rejected as rejected:
            told.append(rejected.reason.value)
    return told


def test_a_flood_of_flex_leaves_room_for_the_others():
    """Flex may fill its share of the queue and no more, however empty the rest of it is."""
    built = waiting(max_requests=10)
    assert come(built, *"abcdefg", service_tier=FLEX) == [None] * 5 + ["queue_full"] * 2
    assert come(built, *"hijkl") == [None] * 5
    assert built.advance(0.0) == []


@pytest.mark.parametrize(
    ("queue", "changes", "limit"),
    [
        ({"max_requests": 6, "tier_shares": {"flex": 0.5}}, {}, 3),
        ({"max_tokens": 600, "tier_shares": {"flex": 0.5}}, {}, 300),
        ({"max_bytes": 600, "tier_shares": {"flex": 0.5}}, {"body_bytes": 100}, 300),
    ],
)
def test_each_bound_has_its_share(queue: Any, changes: Any, limit: int):
    """Requests, tokens and bytes alike; the refusal names the number that was met."""
    built = waiting(**queue)
    assert come(built, *"abc", service_tier=FLEX, **changes) == [None] * 3
    with pytest.raises(Rejected) as refused:
        built.submit(request("d", service_tier=FLEX, **changes), 0.0)
    assert (refused.value.reason, refused.value.limit) == (Reason.QUEUE_FULL, limit)


def test_the_lowest_tier_makes_way_newest_first():
    """In a full queue a higher tier's arrival takes the place of the newest of the lowest tier, which is told when to return."""
    built = waiting(max_requests=4, tier_shares={"flex": 1, "batch": 1})
    come(built, "b1", "b2", service_tier=BATCH)
    come(built, "f1", "f2", service_tier=FLEX)
    assert come(built, *"123") == [None] * 3
    decisions = built.advance(0.0)
    assert evicted(decisions) == [("b2", "shed"), ("b1", "shed"), ("f2", "shed")]
    assert all(decision.retry_after_s for decision in decisions)  # type: ignore[union-attr]
    assert come(built, "f3", service_tier=FLEX) == ["queue_full"]
    assert come(built, "p", service_tier=PRIORITY) == [None]
    assert evicted(built.advance(0.0)) == [("f1", "shed")]
    assert come(built, "p2", service_tier=PRIORITY) == [None]
    assert evicted(built.advance(0.0)) == [("3", "shed")]


def test_as_many_go_as_are_needed_and_none_where_all_would_not_do():
    """Room for a large one is made of several small ones; where even they are too little nobody goes."""
    built = waiting(max_tokens=1000, tier_shares={"flex": 1})
    come(built, *"abcd", service_tier=FLEX, prompt_tokens=200)
    assert come(built, "large", prompt_tokens=600) == [None]
    assert evicted(built.advance(0.0)) == [("d", "shed"), ("c", "shed")]
    assert come(built, "larger", prompt_tokens=900) == ["queue_full"]
    assert built.advance(0.0) == []
    assert built.queued == 3


def test_one_tenants_flood_does_not_keep_out_another():
    """In one tier whoever has more than the newcomer's tenant makes way, until both have as much."""
    built = waiting(max_requests=6)
    come(built, *"abcdef", tenant="greedy")
    assert come(built, "g", tenant="greedy") == ["queue_full"]
    assert come(built, *"1234", tenant="modest") == [None, None, None, "queue_full"]
    assert evicted(built.advance(0.0)) == [("f", "shed"), ("e", "shed"), ("d", "shed")]


def test_of_several_tenants_the_one_with_most_makes_way():
    """What counts is the share of all three bounds: few large bodies are more than many small ones."""
    built = waiting(max_requests=10, max_bytes=10_000)
    come(built, *"abcd", tenant="many", body_bytes=10)
    come(built, "x", "y", tenant="large", body_bytes=4_000)
    assert come(built, "new", tenant="new", body_bytes=3_000) == [None]
    assert evicted(built.advance(0.0)) == [("y", "shed")]


def test_what_resumes_is_neither_refused_nor_shed():
    """Its client has part of the answer: no bound, drain or flood is for it, and nobody takes its place."""
    built = waiting(max_requests=2)
    assert come(built, "r1", "r2", "r3", resumes=True, service_tier=BATCH, deadline_s=0.0) == [None] * 3
    assert come(built, "p", service_tier=PRIORITY) == ["queue_full"]
    assert built.advance(0.0) == []
    assert built.drain(0.0) == []
    assert come(built, "r4", resumes=True) == [None]
    assert come(built, "other") == ["draining"]
    assert built.queued == 4


def test_who_is_shed_is_told_before_a_drain_tells_the_others():
    """A drain that comes between an arrival and the next pass forgets nobody."""
    built = waiting(max_requests=1, tier_shares={"flex": 1})
    come(built, "f", service_tier=FLEX)
    come(built, "d")
    assert evicted(built.drain(0.0)) == [("f", "shed"), ("d", "draining")]


def test_a_burst_of_two_hundred_fits_the_default_queue():
    """Even of flex, and on a fleet that has not begun."""
    built = waiting()
    assert come(built, *(f"f{number}" for number in range(200)), service_tier=FLEX) == [None] * 200
    assert come(built, *(f"d{number}" for number in range(200))) == [None] * 200


def test_what_the_tiers_hold_is_counted_and_given_back():
    """However they leave, nothing stays counted."""
    built = waiting()
    tickets = [built.submit(request(str(n), tenant=str(n % 3), body_bytes=10), 0.0) for n in range(9)]
    built._queue.settle()
    crowd = built._queue.crowd
    assert crowd.held(DEFAULT) == Held(9, 900, 90)
    for ticket in tickets:
        built.cancel(ticket, 1.0)
    assert crowd.held(DEFAULT) == Held(0, 0, 0)
    assert crowd._tiers[DEFAULT].tenants == crowd._tiers[DEFAULT].levels == {}
