"""`slo_pack_load` (AIBrix): utilization + consumption <= 1, the fullest that fits, else held; against hand-worked sums.

A prompt of 1024 and an output of 256 tokens hold 1024 + 256/2 = 1152 tokens on average. Of 1000 blocks of 16 tokens that is
16,000 / 1152 = 13.9 requests, of 400 blocks 6400 / 1152 = 5.6; eight sequence slots cut the first to 8, so a request
consumes 1/8 = 0.125 of `a` and 1/5 = 0.2 of `b`.
"""

from typing import Any

import pytest

from batching.policies.slo_pack_load import SloPackLoad, _Cell, _profiled
from batching.request import Request
from tests.support.scheduling import MODEL, request
from tests.unit.batching.policies.candidates import A, B, C, candidate, load, place

EIGHTH = candidate("a")
FIFTH = candidate("b", kv_blocks=400)


def sized(name: str) -> Request:
    return request(name, prompt_tokens=1024)


def taught() -> SloPackLoad:
    """It has seen that such prompts get 256 tokens."""
    policy = SloPackLoad()
    policy.answered(sized("taught"), 256, 0.0)
    return policy


def test_fills_one_replica_before_the_next():
    """First: a 0.125, b 0.2 -> b. Then b 0.4, 0.6, 0.8, 1.0 -> b until 5 are there; then a, 0.125 at a time, 8 times; then held."""
    policy = taught()
    chosen = [place(policy, sized(str(n)), [EIGHTH, FIFTH]) for n in range(14)]
    assert chosen == [B] * 5 + [A] * 8 + [None]


def test_the_cap_is_one():
    """Thirteen slots: the fourteenth would be 1.08. Nine: nine ninths are one, though they add up to 1.0000000000000002."""
    for slots in (13, 9):
        policy, pool = taught(), [candidate("a", max_num_seqs=slots)]
        assert [place(policy, sized(str(n)), pool) for n in range(slots + 1)] == [A] * slots + [None]


def test_the_fullest_that_fits():
    """With a at 7/8 = 0.875, b at 2/5 = 0.4: a + 0.125 = 1.0 fits and is fuller than b + 0.2 = 0.6. The next: a would be 1.125: b."""
    policy = taught()
    for number in range(7):
        place(policy, sized(f"a{number}"), [EIGHTH])
    for number in range(2):
        place(policy, sized(f"b{number}"), [FIFTH])
    assert place(policy, sized("next"), [EIGHTH, FIFTH]) == A
    assert place(policy, sized("last"), [EIGHTH, FIFTH]) == B


def test_a_held_request_goes_where_one_ended():
    """With b full with 5 and a with 8; one of a's ends: 7/8 + 1/8 fits."""
    policy = taught()
    running = [sized(str(n)) for n in range(13)]
    for each in running:
        place(policy, each, [EIGHTH, FIFTH])
    assert policy.choose(sized("held"), [EIGHTH, FIFTH], 1.0) is None
    policy.finished(running[-1], A, 2.0)
    assert policy.choose(sized("held"), [EIGHTH, FIFTH], 2.0) == A


def test_equals_go_to_the_first():
    """Two alike, empty: by id; then the fuller one."""
    policy = taught()
    pool = [candidate("c"), candidate("a")]
    assert [place(policy, sized(str(n)), pool) for n in range(9)] == [A] * 8 + [C]


def test_the_engines_are_not_asked():
    """Utilization is what was sent and has not ended: a's full cache and queue are not seen."""
    policy = taught()
    assert policy.scrape_interval_s is None
    assert policy.choose(sized("1"), [candidate("a", load(waiting=50, kv=1.0))], 0.0) == A


def test_without_an_answer_seen_it_expects_one_token():
    """H100, 1024 + 1: step = 2 ms + B * 1025 * 0.0325 ms + B * (attention 0.56 ms + reading 0.05 ms) <= 100 ms: 98 / 33.9 = 2.9."""
    policy = SloPackLoad()
    assert [place(policy, sized(str(n)), [EIGHTH]) for n in range(3)] == [A, A, None]


PROFILES = {
    # prefill 4 tokens a step and sequence: 5 * 0.0325 ms compute; attention 1.06e-9 * 4 * 512 = 0.0022 ms; reading
    # 4.89e-8 * 1152 = 0.0563 ms: 98 / (0.1624 + 0.0585) = 443.6
    "computing binds": (_Cell("H100-80G", 1, 1.0, None, None, 10, 8), 443),
    # 1 M tokens of KV: 1,000,000 / 1152 = 868 > 443; half of that binds: 400,000 / 1152 = 347.2
    "KV memory binds": (_Cell("H100-80G", 1, 1.0, 400_000, None, 10, 8), 347),
    "sequence slots bind": (_Cell("H100-80G", 1, 1.0, 400_000, 256, 10, 8), 256),
    # at a tenth of the speed: overhead 20 ms, 80 / (1.624 + 0.585) = 36.2; reading the weights 59.9: 20.1 / 0.585 = 34.3 binds
    "reading the weights binds": (_Cell("H100-80G", 1, 0.1, None, None, 10, 8), 34),
    # 8192 + 1: one alone takes 0.27 s, but its own prefill is not between its tokens
    "one always may": (_Cell("H100-80G", 1, 1.0, None, None, 13, 0), 1),
    # at a twentieth: 40 ms + 120 ms of weights > 100 ms
    "too slow for the objective at all": (_Cell("H100-80G", 1, 0.05, None, None, 10, 8), 0),
}


@pytest.mark.parametrize("row", PROFILES.values(), ids=PROFILES)
def test_profile(row: Any):
    """Requests in flight that keep 0.1 s a token; the sums stand beside the rows."""
    cell, expected = row
    assert _profiled(cell) == expected


def test_without_a_profile_the_fewest_in_flight():
    """An unknown GPU gets nothing while a known one is there, and if all are unknown or too slow that is the fallback: a, b, a."""
    policy = taught()
    unknown = [candidate("a", gpu="unknown"), candidate("b", speed=0.05)]
    assert place(policy, sized("1"), [*unknown, candidate("c")]) == C
    assert [place(policy, sized(str(n)), unknown) for n in (2, 3, 4)] == [A, B, A]
    assert not {A, B} & policy._utilization.keys()


def test_a_full_replica_holds_also_beside_one_without_a_profile():
    """Capacity reached is a reason to wait; that of the other is none."""
    policy = taught()
    pool = [EIGHTH, candidate("b", gpu="unknown")]
    assert [place(policy, sized(str(n)), pool) for n in range(9)] == [A] * 8 + [None]


def test_an_idle_replica_is_empty_whatever_sums_were_rounded_to():
    """Thirds and sevenths come and go; at the end nothing is left, and a whole replica's worth fits."""
    policy = SloPackLoad()
    third, seventh = candidate("a", max_num_seqs=3), candidate("a", max_num_seqs=7)
    policy.answered(sized("taught"), 256, 0.0)
    for _ in range(100):
        running = [sized(str(n)) for n in range(3)]
        assert [place(policy, each, [pool]) for each, pool in zip(running, [third, seventh, third], strict=True)] == [
            A
        ] * 3
        for each in running:
            policy.finished(each, A, 1.0)
        assert not policy._utilization
    assert place(policy, sized("whole"), [candidate("a", max_num_seqs=1)]) == A


def test_forgetting_a_replica_keeps_what_it_owes():
    """Its requests end by themselves."""
    policy = taught()
    only = sized("1")
    place(policy, only, [EIGHTH])
    policy.forget(A)
    assert policy._utilization == {A: 0.125}
    policy.finished(only, A, 1.0)
    assert not policy._utilization
    assert not policy._consumed


def test_outputs_are_learned_for_each_model():
    """Another model's answers say nothing of this one's."""
    policy = taught()
    assert policy._outputs[MODEL].predict(1024) == 256
    assert policy._outputs["other"].predict(1024) == 1
