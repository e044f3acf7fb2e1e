"""Who waits for the replica that holds its beginning, and how long: `a` holds it and prefills another prompt, `b` is idle."""

from typing import Any

import pytest

from batching.replica import Lifecycle
from batching.request import Outcome, ReplicaId, ServiceTier
from batching.scheduler import Scheduler
from batching.shares import WHOLE, Running
from batching.ticket import Lease
from batching.window import Window
from tests.support.scheduling import leases, profile, request, scheduler

LARGE = {"kv_blocks": 20_000, "max_model_len": 131_072}
A, B = ReplicaId("a"), ReplicaId("b")
CHUNKS = {"prefix_hashes": tuple(range(16)), "prefix_chunk_tokens": 512}
# Computed anew these take an H100 0.3 s and more, with 8,192 of them cached a few milliseconds.
TURN = {"prompt_tokens": 8500, **CHUNKS}


def busy(*, other_tokens: int = 6000, scheduling: Any = None, **changes: Any) -> tuple[Scheduler, Lease]:
    """`a` has answered the conversation's first turn and prefills another prompt since time 1; that one's lease."""
    built = scheduler(profile("a", **{**LARGE, **changes}), scheduling=scheduling)
    built.submit(request("first", prompt_tokens=8200, **CHUNKS), 0.0)
    lease = leases(built.advance(0.0))[0]
    built.on_first_token(lease.id, 0.4)
    built.finish(lease.id, 0.5, outcome=Outcome.COMPLETED, output_tokens=10)
    built.submit(request("other", arrived_s=1.0, prompt_tokens=other_tokens), 1.0)
    other = leases(built.advance(1.0))[0]
    built.add_replica(profile("b", **LARGE), Lifecycle.READY, 1.0)
    return built, other


def ask(built: Scheduler, name: str = "turn", now: float = 1.0, **changes: Any) -> list[tuple[str, str]]:
    """(request, replica) of what is placed when one more turn of the conversation arrives."""
    built.submit(request(name, **{"arrived_s": now, **TURN, **changes}), now)
    return where(built, now)


def where(built: Scheduler, now: float) -> list[tuple[str, str]]:
    return [(lease.request.id, lease.replica) for lease in leases(built.advance(now))]


def test_held_until_the_holder_has_prefilled_what_was_before_it():
    """`b` would compute all of it; `a` has room a moment later and takes it then, without a timer. The log says so."""
    built, other = busy()
    assert ask(built) == []
    assert where(built, 1.1) == []
    built.on_first_token(other.id, 1.2)
    (decision,) = built.advance(1.2)
    placement = decision.placement
    assert (placement.replica, placement.held_for, placement.score.cached_tokens) == (A, A, 8192)
    assert placement.explain().endswith("held for a")


def test_held_once_and_no_longer_than_the_guess_was_good_for():
    """The other prompt takes longer than expected: a timer names the moment from which any room will do."""
    built, _ = busy()
    assert ask(built) == []
    until_s = built.next_deadline()
    assert until_s is not None
    assert 1.2 < until_s < 1.6
    assert where(built, until_s - 0.001) == []
    (decision,) = built.advance(until_s)
    assert (decision.placement.replica, decision.placement.held_for) == (B, A)


def test_switched_off_any_room_is_taken_at_once():
    """The earliest first token of those to be had now."""
    built, _ = busy(scheduling={"without": ["prefix_hold"]})
    assert ask(built) == [("turn", "b")]


@pytest.mark.parametrize(
    "changes",
    [
        {"prefix_hashes": tuple(range(2))},  # little of it is cached: computed sooner than the holder has room
        {"prefix_hashes": tuple(range(100, 116))},  # nobody holds any of it
        {"service_tier": ServiceTier.BATCH},  # nobody watches
        {"arrived_s": -9.0},  # too late for anybody
        {"arrived_s": -6.3},  # in time on `b`, if it goes there now
        {"avoid": frozenset({A})},
        {"sequences": 8},  # the holder lacks slots, and nobody knows when answers end
    ],
    ids=str,
)
def test_who_has_nothing_to_gain_is_not_held(changes: Any):
    """It goes to the replica with room at once, and nothing says that it was held."""
    built, _ = busy()
    built.submit(request("turn", **{"arrived_s": 1.0, **TURN, **changes}), 1.0)
    (decision,) = built.advance(1.0)
    assert (decision.placement.replica, decision.placement.held_for) == (B, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"other_tokens": 60_000},  # seconds of prefill
        {"usd_per_hour": 36.0},  # dearer than computing all of it on `b`
        {"max_num_seqs": 1},
        {"kv_blocks": 900},  # full of the other's and its own blocks
    ],
    ids=str,
)
def test_nobody_is_held_for_a_holder_that_is_not_worth_it(changes: Any):
    """Too late, too dear, or without the slots and the blocks."""
    built, _ = busy(**changes)
    assert ask(built) == [("turn", "b")]


def test_a_held_request_stands_in_nobodys_way():
    """Others take the room that it does not want, also for long, and no replica is kept for it."""
    built, other = busy(scheduling={"head_protection_s": 0.001})
    assert ask(built) == []
    for step in range(3):
        now = 1.0 + step / 100
        assert ask(built, f"r{step}", now, prompt_tokens=300, prefix_hashes=()) == [(f"r{step}", "b")]
        assert all(live.offer.protected_for is None for live in built._fleet)
    built.on_first_token(other.id, 1.2)
    assert where(built, 1.2) == [("turn", "a")]


def test_another_holder_that_has_room_is_as_good():
    """It is the beginning that is waited for, not the replica."""
    built, _ = busy()
    built.add_replica(profile("c", **LARGE), Lifecycle.STARTING, 1.0)
    built.prefixes.correct(ReplicaId("c"), held=CHUNKS["prefix_hashes"])
    assert ask(built) == []
    built.set_lifecycle(ReplicaId("c"), Lifecycle.READY, 1.05)
    built.prefixes.correct(ReplicaId("c"), held=CHUNKS["prefix_hashes"])
    assert where(built, 1.3) == [("turn", "c")]


@pytest.mark.parametrize("lifecycle", [Lifecycle.DOWN, Lifecycle.DRAINING])
def test_let_go_when_the_holder_takes_no_more_work(lifecycle: Lifecycle):
    """What is not ready is no reason to wait."""
    built, _ = busy()
    assert ask(built) == []
    built.set_lifecycle(A, lifecycle, 1.05)
    assert where(built, 1.05) == [("turn", "b")]


def test_let_go_when_the_holder_is_removed():
    """And whoever comes then is not held for it either."""
    built, _ = busy()
    assert ask(built) == []
    built.remove_replica(A, 1.05)
    assert where(built, 1.05) == [("turn", "b")]


def test_two_are_held_for_one_holder():
    """Each for as long as its own guess is good; who finds the holder busy with the other then goes elsewhere."""
    built, other = busy()
    assert ask(built) == []
    assert ask(built, "again", 1.01) == []
    built.on_first_token(other.id, 1.2)
    taken = where(built, 1.2)
    while built.queued:
        now = built.next_deadline()
        assert now is not None
        taken += where(built, now)
    assert sorted(name for name, _ in taken) == ["again", "turn"]


def test_nobody_is_held_for_a_replica_that_goes():
    """However much of the prompt it holds: what waits for it may be left with nothing. One that may go is waited for."""
    built, _ = busy()
    built.set_window(A, Window(600.0), 1.0)
    assert ask(built) == [("turn", "b")]
    built, _ = busy()
    built.set_window(A, Window(longest_s=600.0), 1.0)
    assert ask(built) == []


def test_who_is_held_is_let_go_when_a_notice_comes():
    """At once, not when the timer says so."""
    built, _ = busy()
    assert ask(built) == []
    built.set_lifecycle(A, Lifecycle.RECLAIMING, 1.01)
    built.set_window(A, Window(600.0), 1.01)
    assert where(built, 1.01) == [("turn", "b")]


# -- a replica that several gateways share ---------------------------------------------------------------------------


def sharing(*, others: int, parts: int = WHOLE // 8) -> Scheduler:
    """`a` holds the beginning and has eight sequences, of which this gateway may use one, and does; `others` run there."""
    built = scheduler(profile("a", **LARGE), profile("b", **LARGE))
    built.prefixes.correct(A, held=CHUNKS["prefix_hashes"])
    built.submit(request("running", prompt_tokens=8200, **CHUNKS), 0.0)
    lease = leases(built.advance(0.0))[0]
    assert lease.replica == A
    built.on_first_token(lease.id, 0.4)
    built.stake.allot(A, parts)
    built.stake.beside(A, Running(others), 0.4)
    return built


def test_held_for_a_share_that_others_do_not_use():
    """The holder has room, but not here: it is asked for more - it alone -, and has the request when more has come."""
    built = sharing(others=2)
    assert ask(built) == []
    claims = built.stake.claims()
    assert (claims[A].short, claims[B].short) == (True, False)
    assert claims[B].needed == 0
    built.stake.allot(A, WHOLE // 4)
    assert where(built, 1.06) == [("turn", "a")]


def test_not_held_where_others_have_the_rest():
    """A share that cannot come is not waited for."""
    assert ask(sharing(others=7)) == [("turn", "b")]


def test_a_share_that_does_not_come_is_waited_for_briefly():
    """A sixth of a second later it takes what there is, and asks for nothing of the holder alone any more."""
    built = sharing(others=2)
    assert ask(built) == []
    until_s = built.next_deadline()
    assert until_s == pytest.approx(1.16)
    assert where(built, until_s) == [("turn", "b")]


def test_what_is_sooner_computed_anew_is_not_held_for_a_share():
    """A twentieth of a second's wait for a beginning of some hundred tokens does not pay."""
    built = sharing(others=2)
    short = {"prefix_hashes": CHUNKS["prefix_hashes"][:1], "prefix_chunk_tokens": 512}
    assert ask(built, prompt_tokens=600, **short) == [("turn", "b")]
