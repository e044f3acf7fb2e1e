"""Who waits for a better replica, and how long: a cheap L4 with room beside a busy H100."""

from typing import Any

import pytest

from batching.replica import TRANSITIONS, Lifecycle
from batching.request import Outcome, ServiceTier
from batching.window import Window
from tests.support.scheduling import leases, placed, profile, request, scheduler

L4 = profile("l4", gpu="L4-24G", usd_per_hour=0.8)
H100 = profile("h100", max_num_seqs=1)
# Of 3,000 prompt tokens an L4 makes a first one in 0.8 s, an H100 in 0.1 s.
STRICT = {"objectives": {"ttft_s": 0.5, "ttft_s_per_prompt_token": 0}}
LONG = {"prompt_tokens": 3000}


def busy(*, without: Any = (), **changes: Any):
    """The H100's only slot is taken, the L4 is idle; the lease that takes it."""
    built = scheduler(H100, scheduling={**STRICT, "without": without})
    built.submit(request("first"), 0.0)
    lease = leases(built.advance(0.0))[0]
    built.add_replica(L4, Lifecycle.READY, 0.0)
    built.submit(request("r", **{**LONG, **changes}), 0.0)
    return built, lease


def test_held_for_a_replica_that_will_meet_the_objective():
    """The L4 has room and would be late: the request waits for the H100, and goes there when it has room in time."""
    built, lease = busy()
    assert built.advance(0.0) == []
    built.finish(lease.id, 0.2, outcome=Outcome.COMPLETED)
    assert [(d.ticket.request.id, d.placement.replica) for d in built.advance(0.2)] == [("r", "h100")]


def test_held_no_longer_than_it_can_be_met():
    """When not even an idle H100 could still meet it, any room will do: a timer names that moment."""
    built, _ = busy()
    assert built.advance(0.0) == []
    due_s = built.next_deadline()
    assert due_s == pytest.approx(0.5 - 0.05 - 0.11, abs=0.02)
    assert built.advance(due_s - 0.001) == []
    decisions = built.advance(due_s)
    assert [(d.ticket.request.id, d.placement.replica, d.placement.reason) for d in decisions] == [
        ("r", "l4", "fallback")
    ]


@pytest.mark.parametrize("mechanism", ["hold", "late_last"])
def test_without_it_any_room_is_taken_at_once(mechanism: str):
    """Switched off, the earliest first token that is to be had now wins."""
    built, _ = busy(without={mechanism})
    assert [d.placement.replica for d in built.advance(0.0)] == ["l4"]


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tokens": 300},  # the L4 meets it
        {"service_tier": ServiceTier.BATCH},  # nobody watches
        {"arrived_s": -9.0},  # too late for anybody
    ],
    ids=str,
)
def test_who_has_nothing_to_gain_is_not_held(changes: Any):
    """What the L4 can do in time, what has no objective and what has missed it goes to the L4 at once."""
    built, _ = busy(**changes)
    assert [d.placement.replica for d in built.advance(0.0)] == ["l4"]


def test_a_held_request_stands_in_nobodys_way():
    """The room it does not want is given to whom it is good enough for."""
    built, _ = busy()
    built.submit(request("short", prompt_tokens=300), 0.0)
    assert [(d.ticket.request.id, d.placement.replica) for d in built.advance(0.0)] == [("short", "l4")]


@pytest.mark.parametrize("lifecycle", [Lifecycle.DOWN, Lifecycle.DRAINING])
def test_nobody_is_held_for_what_is_not_ready(lifecycle: Lifecycle):
    """A quick replica that takes no work is no reason to wait."""
    built = scheduler(L4, H100, scheduling=STRICT)
    assert lifecycle in TRANSITIONS[Lifecycle.READY]
    built.set_lifecycle(H100.id, lifecycle, 0.0)
    built.submit(request("r", **LONG), 0.0)
    assert [d.placement.replica for d in built.advance(0.0)] == ["l4"]


def test_nobody_is_held_for_an_objective_that_no_replica_meets():
    """A TPOT below every machine's is no reason to wait: the earliest first token, at once and not at the end of all patience."""
    built = scheduler(L4, scheduling={"objectives": {"tpot_s": 0.05}})
    built.submit(request("r"), 0.0)
    assert placed(built.advance(0.0)) == ["r"]


def test_who_came_before_any_replica_was_ready_is_not_held():
    """With nobody ready nobody can say what could be met: the first that becomes ready takes what waits, however late."""
    built = scheduler()
    built.add_replica(L4, Lifecycle.STARTING, 0.0)
    built.submit(request("r"), 0.0)
    assert built.advance(0.0) == []
    built.set_lifecycle(L4.id, Lifecycle.READY, 7.0)
    assert placed(built.advance(7.0)) == ["r"]


@pytest.mark.parametrize("window", [None, Window(600.0)])
def test_not_held_for_a_replica_that_goes(window: Any):
    """The H100 would meet the objective; where it will not be there, the L4 takes the request at once."""
    built = scheduler(H100, scheduling=STRICT)
    built.submit(request("first"), 0.0)
    assert placed(built.advance(0.0)) == ["first"]
    built.add_replica(L4, Lifecycle.READY, 0.0)
    built.set_window(H100.id, window, 1.0)
    built.submit(request("r", arrived_s=1.0, **LONG), 1.0)
    assert placed(built.advance(1.0)) == ([] if window is None else ["r"])
