"""Prefill waits while a stream has no time to spare: worked examples on one L4 and one H100."""

from typing import Any

import pytest

from batching.live_replica import _PACE_MARGIN_RATIO
from batching.replica import EngineLoad
from batching.request import Outcome, ServiceTier
from tests.support.scheduling import leases, placed, profile, request, scheduler

# An L4: 0.54 s for a chunk of 2,048 prompt tokens, which gives every stream one token: they lose all but the 0.1 s that a token may
# take by the objective, a little of which is kept in hand. Decoding takes 70 ms alone.
L4 = profile("l", gpu="L4-24G")
PATIENT = {"objectives": {"ttft_s": 1000.0}}


def streaming(built: Any, *, tier: ServiceTier = ServiceTier.DEFAULT):
    """One stream that has just had its first token, at time 0."""
    built.submit(request("stream", prompt_tokens=10, max_output_tokens=4000, service_tier=tier), 0.0)
    lease = leases(built.advance(0.0))[0]
    built.on_first_token(lease.id, 0.0)
    return lease


def decoding(built: Any, lease: Any, tokens: int):
    """So many tokens in all, 70 ms each; the time at which the last came."""
    for token in range(2, tokens + 1):
        built.on_tokens(lease.id, token, 0.07 * (token - 1))
    return 0.07 * (tokens - 1)


def test_prefill_waits_until_the_stream_has_earned_it():
    """A long prompt waits for its cost in the stream's credit, and is placed by the very token that completes it."""
    built = scheduler(L4, scheduling=PATIENT)
    lease = streaming(built)
    offer = built._fleet[L4.id].offer
    now, tokens = 0.0, 1
    built.submit(request("long", prompt_tokens=4000), now)
    assert built.advance(now) == []
    costs_s = 1.04 - 2 * 0.1 * _PACE_MARGIN_RATIO  # two chunks
    assert offer.due_s < offer.wanted_due_s == pytest.approx(costs_s, rel=0.05)
    while not (decisions := built.advance(now)):
        assert tokens < 100
        tokens, now = tokens + 1, now + 0.07
        built.on_tokens(lease.id, tokens, now)
    assert placed(decisions) == ["long"]
    spent_s = decisions[0].placement.score.prefill_s - 2 * offer.pace_s
    due_s = built._fleet[L4.id].pace.due_s(now)
    assert now + spent_s <= due_s < now + spent_s + 0.03  # a token sooner it would not have been enough


def test_a_short_prompt_goes_where_a_long_one_waits():
    """The guard weighs prefill, it does not close the door."""
    built = scheduler(L4, scheduling=PATIENT)
    streaming(built)
    built.submit(request("long", prompt_tokens=4000), 0.0)
    built.submit(request("short", prompt_tokens=50), 0.0)
    assert placed(built.advance(0.0)) == ["short"]


def test_what_was_admitted_counts():
    """Prompts on their way hold the streams up as well: each leaves less for the next."""
    taken = []
    for without in ((), ("itl_guard",)):
        built = scheduler(L4, scheduling={**PATIENT, "without": without})
        now = decoding(built, streaming(built), 7)
        for number in range(8):
            built.submit(request(f"r{number}", prompt_tokens=300), now)
        taken.append(len(placed(built.advance(now))))
    guarded, unguarded = taken
    assert unguarded == 7  # the sequence slots; the prefill budget would take thirteen
    assert 1 <= guarded < unguarded


def test_a_fast_machine_is_not_held_up():
    """Where even a full chunk takes less than the objective, prefill costs the streams nothing."""
    built = scheduler(profile("h"), scheduling=PATIENT)
    streaming(built)
    built.submit(request("long", prompt_tokens=8000), 0.0)
    assert placed(built.advance(0.0)) == ["long"]


@pytest.mark.parametrize("how", ["batch", "whole", "ended"])
def test_who_is_not_watched_holds_nothing_up(how: Any):
    """Batch work, whole-body answers, and what has ended have no stream to protect."""
    built = scheduler(L4, scheduling=PATIENT)
    if how == "whole":
        built.submit(request("whole", prompt_tokens=10, streaming=False), 0.0)
        built.advance(0.0)
        built.advance(0.5)
    else:
        tier = ServiceTier.BATCH if how == "batch" else ServiceTier.DEFAULT
        lease = streaming(built, tier=tier)
        if how == "ended":
            built.finish(lease.id, 0.5, outcome=Outcome.COMPLETED)
    built.submit(request("long", prompt_tokens=4000), 0.5)
    assert placed(built.advance(0.5)) == ["long"]


def test_a_stream_that_falls_silent_does_not_hold_a_replica_for_ever():
    """A stream whose tokens stopped coming is let go when it is too far behind, at the next probe if nothing else happens."""
    built = scheduler(L4, scheduling=PATIENT)
    streaming(built)
    built.submit(request("long", prompt_tokens=4000), 0.0)
    assert built.advance(0.0) == []
    built.observe(L4.id, EngineLoad(observed_s=0.1), 0.1)
    assert built.advance(0.1) == []
    built.observe(L4.id, EngineLoad(observed_s=1.1), 1.1)
    assert placed(built.advance(1.1)) == ["long"]


def test_streams_that_get_nothing_are_let_go():
    """An engine that stalls after each first token says nothing more: time alone lets the queue move on, at `next_deadline`."""
    wide = profile("a", gpu="A100-80G", max_num_seqs=600, kv_blocks=10**6, max_num_batched_tokens=10**6)
    built = scheduler(wide, queue={"max_wait_s": 1000.0})
    for number in range(400):
        built.submit(request(f"r{number}"), 0.0)
    now, running = 0.0, 0
    for _ in range(1000):
        decisions = built.advance(now)
        running += len(leases(decisions))
        for lease in leases(decisions):
            built.on_first_token(lease.id, now + 0.01)
        if running == 400:
            break
        due = built.next_deadline()
        assert due is not None
        now = max(now + 0.02, due)
    assert running == 400
    assert now < 100
