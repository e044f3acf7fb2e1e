"""`prefix_aware` (production-stack): the longest match, any among equals; the lowest QPS only below a minimum match."""

from batching.policies.prefix_aware import PrefixAware
from batching.request import Request
from tests.support.scheduling import request
from tests.unit.batching.policies.candidates import A, B, C, candidate, load, place

ABC = [candidate(name) for name in "abc"]


def prompt(name: str, *hashes: int) -> Request:
    return request(name, prompt_tokens=640, prefix_hashes=hashes, prefix_chunk_tokens=64)


def test_the_longest_match_wins_whatever_the_load():
    """Replica a holds two chunks, b three: b, with forty in flight and a long queue."""
    policy = PrefixAware()
    policy.placed(prompt("1", 1, 2), A, 0.0)
    policy.placed(prompt("2", 1, 2, 3), B, 0.0)
    for number in range(40):
        policy.placed(request(f"busy{number}"), B, 0.0)
    pool = [candidate("a", load()), candidate("b", load(waiting=99, kv=1.0)), candidate("c", load())]
    assert policy.choose(prompt("3", 1, 2, 3, 4), pool, 0.0) == B


def test_of_equal_matches_any():
    """Both a and b hold as much; c holds nothing and is never chosen."""
    chosen = set()
    for seed in range(30):
        policy = PrefixAware(seed)
        policy.placed(prompt("1", 1, 2), A, 0.0)
        policy.placed(prompt("2", 1, 2), B, 0.0)
        chosen.add(policy.choose(prompt("3", 1, 2, 3), ABC, 0.0))
    assert chosen == {A, B}


def test_without_a_match_any():
    """A match of 0 is not below the default minimum of 0, so the QPS is not looked at: busy a is chosen too."""
    chosen = set()
    for seed in range(30):
        policy = PrefixAware(seed)
        policy.placed(prompt("1", 1), A, 0.0)
        chosen.add(policy.choose(prompt("2", 9), ABC, 0.0))
    assert chosen == {A, B, C}


def test_only_candidates_are_matched():
    """Replica b holds most but cannot take it: a, which holds less."""
    policy = PrefixAware()
    policy.placed(prompt("1", 1), A, 0.0)
    policy.placed(prompt("2", 1, 2, 3), B, 0.0)
    assert policy.choose(prompt("3", 1, 2, 3), [ABC[0], ABC[2]], 0.0) == A


def test_below_the_minimum_match_the_lowest_qps_of_a_minute():
    """Minimum 128 tokens, two chunks. a got 2 requests at 0 s, b 1 at 30 s, c none ever: c; with 3 to c: b (1 < 2 < 3).

    At 60 s all are in: b; at 60.5 s a's are out of the window and b's is in: a. 64 tokens of match are too few, 128 are not.
    """
    policy = PrefixAware(min_match_tokens=128)
    for number, (replica, now) in enumerate(((A, 0.0), (A, 0.0), (B, 30.0))):
        policy.placed(prompt(str(number), 1), replica, now)
    assert policy.choose(prompt("3", 1, 9), ABC, 31.0) == C
    for number in range(3):
        policy.placed(request(f"c{number}"), C, 32.0)
    assert policy.choose(prompt("4", 1, 9), ABC, 33.0) == B
    assert policy.choose(prompt("5", 1, 9), ABC, 60.0) == B
    assert policy.choose(prompt("5", 1, 9), ABC, 60.5) == A
    policy.placed(prompt("6", 1, 2), B, 61.0)
    assert policy.choose(prompt("7", 1, 2), ABC, 62.0) == B


def test_what_was_seen_is_never_evicted():
    """Ten thousand other prompts later it still is the holder's."""
    policy = PrefixAware()
    policy.placed(prompt("first", 1, 2), A, 0.0)
    for number in range(10_000):
        policy.placed(prompt(str(number), 10 + number), B, 0.0)
    assert policy.choose(prompt("again", 1, 2), ABC, 0.0) == A


def test_a_forgotten_replica_holds_nothing_and_never_had_a_request():
    """A new pod has a new address there."""
    policy = PrefixAware(min_match_tokens=64)
    for number, replica in enumerate((A, B, C)):
        place(policy, prompt(str(number), 1), [candidate(replica)])
    policy.forget(C)
    assert policy.choose(prompt("3", 9), ABC, 1.0) == C
    assert policy.choose(prompt("4", 1), ABC, 1.0) in {A, B}


def test_scrapes_nobody():
    """It is told engine statistics (30 s old) and does not use them."""
    assert PrefixAware().scrape_interval_s is None
