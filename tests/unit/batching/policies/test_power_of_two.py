"""`power_of_two` (SMG): `least_load` over a random pair."""

from collections import Counter

from batching.policies.power_of_two import PowerOfTwo
from tests.support.scheduling import request
from tests.unit.batching.policies.candidates import A, B, C, candidate, load, place


def test_the_worst_of_three_is_never_chosen():
    """Scores 1.024, 0.512 and 0 s: of the pairs ab, ac, bc each a third, c wins two and b one; a loses both of its."""
    chosen: Counter[object] = Counter()
    for seed in range(600):
        polled = [candidate("a", load(waiting=2)), candidate("b", load(waiting=1)), candidate("c", load())]
        chosen[PowerOfTwo(seed).choose(request(), polled, 0.0)] += 1
    assert chosen[A] == 0
    assert 330 <= chosen[C] <= 470  # 400 expected, deviation 11.5
    assert chosen[B] == 600 - chosen[C]


def test_two_candidates_are_the_pair():
    """a: 3 * 0.512 + 0.0375 = 1.5735 s; b: 1.024 + 0.15 = 1.174 s -> b under every seed."""
    polled = [candidate("a", load(waiting=3, kv=0.2)), candidate("b", load(waiting=2, kv=0.5))]
    assert {PowerOfTwo(seed).choose(request(), polled, 0.0) for seed in range(20)} == {B}


def test_one_candidate_is_taken():
    """There is nobody to compare it with."""
    assert PowerOfTwo().choose(request(), [candidate("a", load(waiting=99, kv=1.0))], 0.0) == A


def test_credit_since_the_poll_turns_the_pair():
    """With a 0.512 s, b 1.024 s: a; then a has 1.024 s too: any; after both were sent one more, a poll wipes it all: a."""
    policy = PowerOfTwo()
    polled = [candidate("a", load(waiting=1)), candidate("b", load(waiting=2))]
    assert place(policy, request("0"), polled) == A
    assert {place(policy, request(str(n)), polled) for n in (1, 2)} == {A, B}
    again = [candidate("a", load(waiting=1, at=10.0)), candidate("b", load(waiting=2, at=10.0))]
    assert place(policy, request("3"), again) == A


def test_a_dark_pair_goes_by_requests_in_flight():
    """With a 5, b 3: b."""
    policy = PowerOfTwo()
    for number in range(8):
        policy.placed(request(str(number)), A if number < 5 else B, 0.0)
    assert policy.choose(request(), [candidate("a"), candidate("b")], 0.0) == B


def test_sees_ten_seconds_old_numbers():
    """Polls as `least_load` does."""
    assert PowerOfTwo().scrape_interval_s == 10.0
