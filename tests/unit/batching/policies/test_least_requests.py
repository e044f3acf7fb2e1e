"""`least_requests`: the fewest in flight, counted by the gateway itself."""

from batching.policies.simple import LeastRequests
from tests.support.scheduling import request
from tests.unit.batching.policies.candidates import A, B, candidate, load, place

AB = [candidate("a"), candidate("b")]


def test_the_fewest_in_flight_take_the_next():
    """With a 1, b 0 -> b; a 1, b 1 -> a, chosen longer ago; a 2, b 1 -> b; b's two end: a 2, b 0 -> b twice, then b was last: a."""
    policy = LeastRequests()
    requests = [request(str(n)) for n in range(4)]
    assert [place(policy, r, AB) for r in requests] == [A, B, A, B]
    for ended in (requests[1], requests[3]):
        policy.finished(ended, B, 1.0)
    assert [place(policy, request(str(n)), AB) for n in range(4, 7)] == [B, B, A]


def test_engines_are_not_asked():
    """A long queue in the engine is not seen."""
    policy = LeastRequests()
    assert policy.scrape_interval_s is None
    assert place(policy, request(), [candidate("a", load(waiting=99)), candidate("b", load())]) == A


def test_forgetting_a_replica_keeps_what_is_in_flight_there():
    """Its requests still end, each once, and the count ends at zero."""
    policy = LeastRequests()
    only = request()
    place(policy, only, AB)
    policy.forget(A)
    assert policy.in_flight[A] == 1
    policy.finished(only, A, 1.0)
    assert not policy.in_flight
