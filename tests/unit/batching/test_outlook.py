"""When a busy replica can take one more prompt, and how much of its cache prompts are believed to take."""

import pytest

from batching.live_replica import LiveReplica
from batching.outlook import PrefillLimit
from batching.placement import Need
from batching.request import Outcome, ReplicaId
from batching.scheduler import Scheduler
from config.schema import Objectives
from tests.support.scheduling import leases, placed, profile, request, scheduler

A = ReplicaId("a")
PATIENT = Objectives(ttft_s=100.0)


def prefilling(*prompts: int, **changes: int) -> Scheduler:
    """One replica to which these prompts were given at time 0; none has a first token."""
    built = scheduler(profile(**{"kv_blocks": 2000, **changes}), scheduling={"objectives": PATIENT})
    for number, prompt in enumerate(prompts):
        built.submit(request(f"r{number}", prompt_tokens=prompt), 0.0)
    assert len(placed(built.advance(0.0))) == len(prompts)
    return built


def live(built: Scheduler) -> LiveReplica:
    return built._fleet[A]


def need(built: Scheduler, prompt: int) -> Need:
    return built._filling.need(request("asked", prompt_tokens=prompt), 99)


def test_it_is_a_prompts_turn_when_enough_of_those_ahead_have_their_first_token():
    """Two steps of 2048 tokens may wait there: behind 4,000 a prompt of 300 must wait for the first of two, not for both."""
    built = prefilling(1000, 3000)
    first_s, second_s = (record.prefill_s for record in live(built).ledger.leases.values())
    assert live(built).seconds_until_turn(need(built, 90), 0.0) == 0.0
    assert live(built).seconds_until_turn(need(built, 300), 0.0) == pytest.approx(first_s)
    assert live(built).seconds_until_turn(need(built, 5000), 0.0) == pytest.approx(first_s + second_s)
    assert live(built).seconds_until_turn(need(built, 5000), 0.1) == pytest.approx(first_s + second_s - 0.1)


def test_an_overdue_prompt_is_not_taken_for_done():
    """Its first token is late: some of it is left, nobody knows how much."""
    built = prefilling(4000)
    assert 0 < live(built).seconds_until_turn(need(built, 5000), 9.0) < 0.1


def test_streams_gain_before_they_bear_a_long_prompt():
    """An L4's stream has begun: before a prompt of a second it is to get some tokens."""
    built = prefilling(100, gpu="L4-24G")  # type: ignore[arg-type]
    built.on_first_token(next(iter(live(built).ledger.leases)), 0.1)
    assert live(built).seconds_until_turn(need(built, 100), 0.1) == 0.0
    assert live(built).seconds_until_turn(need(built, 4000), 0.1) > 0.1


def test_without_a_limit_any_prompt_may_come_behind_any():
    """An engine that has not told its steps is sent whatever comes."""
    assert PrefillLimit().free(10**9) > 10**9
    assert PrefillLimit(budget=4096, open_up_to=2048).free(2049) == 2047


def test_prompts_are_believed_to_take_what_answers_leave_of_a_cache():
    """Nine tenths at first; with time by what was computed: nearly all beside short answers, half beside long ones."""
    fresh, brief, long = (prefilling(kv_blocks=10_000, max_model_len=131_072) for _ in range(3))
    for built, tokens in ((brief, 10), (long, 6000)):
        for number in range(60):
            built.submit(request(f"r{number}", prompt_tokens=6000, max_output_tokens=tokens), 0.0)
            lease = leases(built.advance(0.0))[0]
            built.on_first_token(lease.id, 0.0)
            built.on_tokens(lease.id, tokens, 0.0)
            built.finish(lease.id, 0.0, outcome=Outcome.COMPLETED)
    believed = [live(built).cached_chunks(16) for built in (fresh, brief, long)]
    assert believed == [9000, pytest.approx(9860, abs=30), pytest.approx(5260, abs=60)]
    assert live(scheduler(profile(kv_blocks=None))).cached_chunks(16) is None
