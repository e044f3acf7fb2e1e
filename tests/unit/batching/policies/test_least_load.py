"""`least_load` (SMG): (waiting + sent since the poll) * 1024 / 2000 + 0.15 k/(1-k), in seconds, against hand-worked sums."""

from typing import Any

import pytest

from batching.policies.least_load import LeastLoad
from tests.support.scheduling import request
from tests.unit.batching.policies.candidates import A, B, C, candidate, load, place

ROWS = {
    # a: 3 * 1024 / 2000 + 0.15 * 0.2/0.8 = 1.536 + 0.0375 = 1.5735 s; b: 1.024 + 0.15 * 0.5/0.5 = 1.174 s
    "a queue shorter by one outweighs a fuller cache": (load(waiting=3, kv=0.2), load(waiting=2, kv=0.5), B),
    # a: 0.512 + 0 = 0.512 s; b: 0 + 0.15 * 0.8/0.2 = 0.6 s
    "a cache at 0.8 costs more than one request waiting": (load(waiting=1), load(kv=0.8), A),
    # a: 0.512 s; b: 0.15 * 0.75/0.25 = 0.45 s
    "at 0.75 it costs less": (load(waiting=1), load(kv=0.75), B),
    # k = 1 counts as 0.999: 0.15 * 999 = 149.85 s; a: 293 * 0.512 = 150.016 s
    "a full cache is worth 292 requests, not infinitely many": (load(waiting=293), load(kv=1.0), B),
    # a: 292 * 0.512 = 149.504 s < 149.85 s
    "and not 293": (load(waiting=292), load(kv=1.0), A),
    # a has no depth to tell: 0; b: 0.512 s
    "an engine that tells no queue has none": (load(waiting=None), load(waiting=1), A),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_score(row: Any):
    """The least expected wait takes the request; the comment beside each row is the sum."""
    of_a, of_b, winner = row
    assert LeastLoad().choose(request(), [candidate("a", of_a), candidate("b", of_b)], 0.0) == winner


def test_what_was_sent_since_the_poll_counts_until_the_next():
    """Each sent adds 0.512 s. a waiting 0, b waiting 2: a, a (0.512), then 1.024 = 1.024: a tie, so the fourth goes to the other.

    The poll at 10 s says the same again and wipes the credit: a.
    """
    policy = LeastLoad()
    polled = [candidate("a", load()), candidate("b", load(waiting=2))]
    assert [place(policy, request(str(n)), polled) for n in range(2)] == [A, A]
    assert {place(policy, request(str(n)), polled) for n in range(2, 4)} == {A, B}
    again = [candidate("a", load(at=10.0)), candidate("b", load(waiting=2, at=10.0))]
    assert place(policy, request("4"), again) == A


def test_the_size_of_a_request_is_not_known():
    """Over HTTP every request counts 1024 tokens: after a long one to a (0.512 s), b is next and then the two are equal again."""
    policy = LeastLoad()
    first = place(policy, request("0", prompt_tokens=8000), [candidate("a", load()), candidate("b", load())])
    second = place(policy, request("1", prompt_tokens=10), [candidate("a", load()), candidate("b", load())])
    assert {first, second} == {A, B}


def test_a_dark_replica_among_others_is_scored_by_its_requests_in_flight():
    """Replica b told nothing. a: 0.15 * 0.9/0.1 = 1.35 s. b with 2 in flight: 2 * 1024 / 2000 = 1.024 s -> b; with 3: 1.536 s -> a."""
    policy = LeastLoad()
    for number in range(2):
        policy.placed(request(str(number)), B, 0.0)
    polled = [candidate("a", load(kv=0.9)), candidate("b")]
    assert place(policy, request("2"), polled) == B
    assert place(policy, request("3"), polled) == A


def test_a_poll_without_the_kv_gauge_is_no_poll():
    """A report of vLLM is refused without it: b is dark with nothing in flight, 0 s; a is idle but at 0.1: 0.0167 s."""
    polled = [candidate("a", load(kv=0.1)), candidate("b", load(waiting=50, kv=None))]
    assert LeastLoad().choose(request(), polled, 0.0) == B


def test_with_all_dark_the_shortest_queue_wins():
    """With a 2, b 1, c 3 in flight -> b."""
    policy = LeastLoad()
    for number, replica in enumerate((A, A, B, C, C, C)):
        policy.placed(request(str(number)), replica, 0.0)
    assert policy.choose(request(), [candidate(name) for name in "abc"], 0.0) == B


def test_equals_are_drawn_by_the_seed():
    """Every one of three idle replicas is somebody's choice, and a seed's always the same."""
    idle = [candidate(name, load()) for name in "abc"]
    chosen = [LeastLoad(seed).choose(request(), idle, 0.0) for seed in range(30)]
    assert set(chosen) == {A, B, C}
    assert chosen == [LeastLoad(seed).choose(request(), idle, 0.0) for seed in range(30)]


def test_sees_ten_seconds_old_numbers():
    """The original's load_check_interval."""
    assert LeastLoad().scrape_interval_s == 10.0


def test_a_forgotten_replica_has_no_credit():
    """Four sent to a would be 2.048 s; forgotten, it is 0 s against b's 0.512 s."""
    policy = LeastLoad()
    polled = [candidate("a", load()), candidate("b", load(waiting=1))]
    policy.choose(request(), polled, 0.0)
    for number in range(4):
        policy.placed(request(str(number)), A, 0.0)
    assert policy.choose(request(), polled, 0.0) == B
    policy.forget(A)
    assert policy.choose(request(), polled, 0.0) == A
