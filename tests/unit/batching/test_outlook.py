"""When a busy replica can take one more prompt."""

import pytest

from batching.live_replica import LiveReplica
from batching.outlook import PrefillLimit
from batching.placement import Need
from batching.request import ReplicaId
from batching.scheduler import Scheduler
from config.schema import Objectives
from tests.support.scheduling import placed, profile, request, scheduler

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
