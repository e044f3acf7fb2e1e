"""`round_robin`: in turn, whatever anybody does."""

from batching.policies.simple import RoundRobin
from tests.support.scheduling import request
from tests.unit.batching.policies.candidates import A, B, C, candidate, place

ABC = [candidate("c"), candidate("a"), candidate("b")]


def test_takes_turns_in_order_of_id():
    """Whoever was chosen longest ago is next; who never was goes first, by id."""
    policy = RoundRobin()
    assert [place(policy, request(str(n)), ABC) for n in range(7)] == [A, B, C, A, B, C, A]


def test_ends_do_not_change_the_turn():
    """It counts nothing that ends."""
    policy = RoundRobin()
    first = request("1")
    assert place(policy, first, ABC) == A
    policy.finished(first, A, 1.0)
    assert place(policy, request("2"), ABC) == B


def test_absent_candidates_are_passed_over_and_keep_their_turn():
    """Replica b cannot take the second request and is due as soon as it can."""
    policy = RoundRobin()
    assert place(policy, request("1"), ABC) == A
    assert place(policy, request("2"), [ABC[0], ABC[1]]) == C
    assert place(policy, request("3"), ABC) == B


def test_scrapes_nobody():
    """There is no signal that could be old."""
    assert RoundRobin().scrape_interval_s is None


def test_a_forgotten_replica_begins_anew():
    """What comes back under its name was never chosen."""
    policy = RoundRobin()
    for number in range(3):
        place(policy, request(str(number)), ABC)
    policy.forget(C)
    assert place(policy, request("3"), ABC) == C
