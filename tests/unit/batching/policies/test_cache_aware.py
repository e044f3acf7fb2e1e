"""`cache_aware` (SMG): more than 0.3 matched pins to a holder, unless its load is above 1.5 times and 64 beyond the mean."""

from batching.policies.cache_aware import CacheAware
from batching.request import ReplicaId, Request
from tests.support.scheduling import request
from tests.unit.batching.policies.candidates import A, B, C, candidate, place

AB = [candidate("a"), candidate("b")]


def prompt(name: str, *hashes: int, tokens: int = 640) -> Request:
    """Chunks of 64 tokens."""
    return request(name, prompt_tokens=tokens, prefix_hashes=hashes, prefix_chunk_tokens=64)


def busy(policy: CacheAware, replica: ReplicaId, count: int) -> None:
    for number in range(count):
        policy.placed(request(f"{replica}{number}"), replica, 0.0)


def test_a_match_beyond_three_tenths_is_pinned():
    """Replica a holds 4 of 10 chunks: 256 / 640 = 0.4 > 0.3 -> a, though a has one in flight and b none."""
    policy = CacheAware()
    assert place(policy, prompt("1", 1, 2, 3, 4), AB) == A
    assert place(policy, prompt("2", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), AB) == A


def test_at_three_tenths_the_load_decides():
    """192 / 640 = 0.3, not more than 0.3: the least loaded, b. 192 / 639 = 0.3005 is more: a."""
    policy = CacheAware()
    policy.placed(prompt("0", 1, 2, 3), A, 0.0)
    assert policy.choose(prompt("1", 1, 2, 3, 14, tokens=639), AB, 0.0) == A
    policy = CacheAware()
    assert place(policy, prompt("1", 1, 2, 3), AB) == A
    assert place(policy, prompt("2", 1, 2, 3, 14, 15, 16, 17, 18, 19, 20), AB) == B


def test_the_deepest_match_decides_who_holds_it():
    """Replica a holds 1-2-3-4, b 1-2-3-4-5-6: for 1..6 the last matched chunk is b's alone; for 1..4 it is both's, and a has fewer."""
    policy = CacheAware()
    policy.placed(prompt("1", 1, 2, 3, 4), A, 0.0)
    policy.placed(prompt("2", 1, 2, 3, 4, 5, 6), B, 0.0)
    policy.placed(prompt("3", 1, 2, 3, 4, 5, 6), B, 0.0)
    assert policy.choose(prompt("4", 1, 2, 3, 4, 5, 6), AB, 0.0) == B
    assert policy.choose(prompt("5", 1, 2, 3, 4), AB, 0.0) == A


def test_the_spill_gate_needs_both_margins():
    """Two replicas, b idle, a with n: mean n/2, so 1.5 means is 0.75 n < n always; n > n/2 + 64 from n = 129 on."""
    policy = CacheAware()
    policy.placed(prompt("1", 1, 2, 3, 4), A, 0.0)
    busy(policy, A, 127)  # 128: 128 > 96, but not > 64 + 64
    assert policy.choose(prompt("2", 1, 2, 3, 4), AB, 0.0) == A
    busy(policy, A, 1)  # 129: 129 > 96.75 and > 64.5 + 64
    assert place(policy, prompt("3", 1, 2, 3, 4), AB) == B
    # b is a holder now, with 1 in flight against 129
    assert policy.choose(prompt("4", 1, 2, 3, 4), AB, 0.0) == B


def test_sixty_four_beyond_is_not_enough_up_to_one_and_a_half_means():
    """With a 300, b 100: mean 200; a is 100 beyond but not above 300: it keeps the request. At 302 (mean 201, 301.5) it spills."""
    policy = CacheAware()
    policy.placed(prompt("1", 1, 2, 3, 4), A, 0.0)
    busy(policy, A, 299)
    busy(policy, B, 100)
    assert policy.choose(prompt("2", 1, 2, 3, 4), AB, 0.0) == A
    busy(policy, A, 2)
    assert policy.choose(prompt("3", 1, 2, 3, 4), AB, 0.0) == B


def test_equally_loaded_the_one_that_was_sent_least_takes_it():
    """Nothing in flight anywhere; a was sent 1 before, b none: b, then (1, 1) by id: a."""
    policy = CacheAware()
    for number, winner in enumerate((A, B, A)):
        only = request(str(number))
        assert place(policy, only, AB) == winner
        policy.finished(only, winner, 1.0)


def test_equally_loaded_holders_are_drawn():
    """Both a and b hold all of it with one in flight each; c is idle and holds nothing."""
    chosen = set()
    for seed in range(30):
        policy = CacheAware(seed)
        policy.placed(prompt("1", 1, 2), A, 0.0)
        policy.placed(prompt("2", 1, 2), B, 0.0)
        chosen.add(policy.choose(prompt("3", 1, 2, tokens=128), [*AB, candidate("c")], 0.0))
    assert chosen == {A, B}


def test_a_holder_that_cannot_take_it_leaves_it_to_the_first_and_the_tree_as_it_is():
    """Only c holds it and c is no candidate: a, the first, which is not recorded: with c back c is the only holder."""
    policy = CacheAware()
    policy.placed(prompt("1", 1, 2, 3, 4), C, 0.0)
    busy(policy, A, 2)
    assert place(policy, prompt("2", 1, 2, 3, 4), AB) == A
    assert policy.choose(prompt("3", 1, 2, 3, 4), [*AB, candidate("c")], 0.0) == C


def test_a_forgotten_replica_holds_nothing():
    """Its cache is gone: the least loaded, b, takes what a held."""
    policy = CacheAware()
    policy.placed(prompt("1", 1, 2, 3, 4), A, 0.0)
    policy.forget(A)
    assert policy.choose(prompt("2", 1, 2, 3, 4), AB, 0.0) == B


def test_the_tree_is_bounded_in_characters():
    """67,108,864 characters are 4 of 4,194,304 tokens: of two prompts of three such chunks the older loses its deepest two."""
    policy = CacheAware()
    chunk = 67_108_864 // 4 // 4
    for name, hashes in (("1", (1, 2, 3)), ("2", (1, 7, 8))):
        policy.placed(request(name, prompt_tokens=3 * chunk, prefix_hashes=hashes, prefix_chunk_tokens=chunk), A, 0.0)
    assert policy._tree.deepest((1, 2, 3)) == (2, [A])  # 1, 7, 8 and 2 are left
    assert policy._tree.deepest((1, 7, 8)) == (3, [A])


def test_scrapes_nobody():
    """With the KV thresholds at their default it does not poll."""
    assert CacheAware().scrape_interval_s is None
