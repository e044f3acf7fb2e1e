"""`llm_d`: hold while the pool is saturated, else 3 prefix + 2 queue + 2 kv + 2 no-hit-LRU, against hand-worked sums."""

from typing import Any

import pytest

from batching.policies.llm_d import LlmD, saturation
from batching.request import Request
from tests.support.scheduling import request
from tests.unit.batching.policies.candidates import A, B, C, candidate, load, place


def prompt(name: str, *hashes: int, tokens: int = 640) -> Request:
    """Chunks of 64 tokens, the size of the original's blocks."""
    return request(name, prompt_tokens=tokens, prefix_hashes=hashes, prefix_chunk_tokens=64)


SATURATION = {
    # max(4/5, 0.4/0.8) = 0.8
    "the queue binds": ([load(waiting=4, kv=0.4)], 0.8),
    # max(1/5, 0.6/0.8) = 0.75
    "the cache binds": ([load(waiting=1, kv=0.6)], 0.75),
    # (10/5 + 0) / 2 = 1.0
    "one twice full and one empty are a full pool": ([load(waiting=10), load()], 1.0),
    # (9/5 + 0) / 2 = 0.9: the busy one may yet be chosen
    "just below": ([load(waiting=9), load()], 0.9),
    # (1.0 + 0.5) / 2
    "never scraped is full": ([None, load(kv=0.4)], 0.75),
    # the zero of what was not said
    "an engine that tells nothing is empty": ([load(waiting=None, kv=None)], 0.0),
}


@pytest.mark.parametrize("row", SATURATION.values(), ids=SATURATION)
def test_saturation(row: Any):
    """The mean of max(waiting / 5, kv / 0.8); held from 1.0 on."""
    loads, expected = row
    pool = [candidate(name, told) for name, told in zip("ab", loads, strict=False)]
    assert saturation(pool, 0.0) == pytest.approx(expected)
    assert (LlmD().choose(request(), pool, 0.0) is None) == (expected >= 1.0)


def test_reports_older_than_200_ms_count_as_full():
    """At 0.2 s both count for what they said, 0; beyond, each counts 1.0: held, however idle they are."""
    pool = [candidate("a", load()), candidate("b", load())]
    assert saturation(pool, 0.2) == 0.0
    assert saturation(pool, 0.201) == 1.0
    assert LlmD().choose(request(), pool, 0.201) is None


def test_sees_fifty_milliseconds_old_numbers():
    """The original's scrape interval: what goes out between two scrapes is not seen."""
    policy = LlmD()
    assert policy.scrape_interval_s == 0.05
    pool = [candidate("a", load(waiting=4))]  # saturation 0.8
    assert [place(policy, request(str(n)), pool, 0.04) for n in range(50)] == [A] * 50


def test_a_held_request_goes_out_with_the_next_scrape():
    """Saturation 1.2, then 0.8."""
    policy = LlmD()
    assert policy.choose(request(), [candidate("a", load(waiting=6))], 0.0) is None
    assert policy.choose(request(), [candidate("a", load(waiting=4, at=0.05))], 0.05) == A


def test_a_prefix_outweighs_a_longer_queue():
    """Replica a holds 5 of 10 blocks. a: 3 * 0.5 + 2 * 0 + 2 * 0.9 + 1 = 4.3; b: 0 + 2 * 1 + 2 * 0.7 + 1 = 4.4 -> b.

    With 6 of 10 blocks a: 1.8 + 0 + 1.8 + 1 = 4.6 -> a.
    """
    pool = [candidate("a", load(waiting=2, kv=0.1)), candidate("b", load(waiting=1, kv=0.3))]
    policy = LlmD()
    policy.placed(prompt("1", 1, 2, 3, 4, 5), A, 0.0)
    half = prompt("2", 1, 2, 3, 4, 5, 16, 17, 18, 19, 20)
    assert policy._blend(pool, policy.prefix_scores(half)) == pytest.approx([4.3, 4.4])
    assert policy.choose(half, pool, 0.0) == B
    policy.placed(prompt("3", 1, 2, 3, 4, 5, 16), A, 0.0)
    assert policy.choose(prompt("4", 1, 2, 3, 4, 5, 16, 17, 18, 19, 20), pool, 0.0) == A


def test_the_queue_is_scored_between_the_shortest_and_the_longest():
    """With a 0, b 1, c 4 waiting; kv 0.5, 0.2, 0. A hit of c's (1 of 10 blocks) makes the no-hit-LRU neutral, 1 for all.

    a: 2 * 4/4 + 2 * 0.5 + 1 = 4.0; b: 2 * 3/4 + 2 * 0.8 + 1 = 4.1; c: 0.3 + 0 + 2 + 1 = 3.3 -> b.
    """
    policy = LlmD()
    policy.placed(prompt("1", 1), C, 0.0)
    pool = [candidate("a", load(kv=0.5)), candidate("b", load(waiting=1, kv=0.2)), candidate("c", load(waiting=4))]
    assert policy._blend(pool, policy.prefix_scores(prompt("2", 1))) == pytest.approx([4.0, 4.1, 3.3])
    assert policy.choose(prompt("2", 1), pool, 0.0) == B


def test_cold_requests_go_round():
    """Equal queues (2 each) and caches: the no-hit-LRU decides. Never used, in order: 1, 1/2, 0 -> a; then b, c, and a again."""
    policy = LlmD()
    pool = [candidate(name, load()) for name in "abc"]
    assert policy._blend(pool, {}) == pytest.approx([2 + 2 + 2, 2 + 2 + 1, 2 + 2 + 0])
    chosen = [place(policy, prompt(str(n), n + 100), pool) for n in range(5)]
    assert chosen == [A, B, C, A, B]


def test_a_warm_request_does_not_move_the_cold_order():
    """A hit on a, then a cold one: of a (used) and b (never) b is first."""
    policy = LlmD()
    pool = [candidate("a", load()), candidate("b", load())]
    assert place(policy, prompt("1", 1), pool) == A
    assert place(policy, prompt("2", 1), pool) == A
    assert place(policy, prompt("3", 9), pool) == B


def test_equals_are_drawn_by_the_seed():
    """Both hold it: the no-hit-LRU is neutral and all else equal."""
    chosen = []
    for seed in range(30):
        policy = LlmD(seed)
        for name, replica in (("1", A), ("2", B)):
            policy.placed(prompt(name, 1), replica, 0.0)
        chosen.append(policy.choose(prompt("3", 1), [candidate("a", load()), candidate("b", load())], 0.0))
    assert set(chosen) == {A, B}


def test_the_index_of_a_server_is_as_large_as_its_cache():
    """2 KV blocks told, so 2 blocks of 64 tokens: of three chunks the first is lost, and with it the match."""
    policy = LlmD()
    pool = [candidate("a", load(), kv_blocks=2)]
    assert place(policy, prompt("1", 1, 2), pool) == A
    assert policy.prefix_scores(prompt("2", 1, 2)) == {A: 0.2}
    assert place(policy, prompt("3", 1, 2, 3), pool) == A
    assert policy.prefix_scores(prompt("4", 1, 2, 3)) == {}


def test_a_server_that_tells_no_size_has_31250_blocks():
    """Of sixteen prompts of 2000 blocks, 32,000, the oldest 750 are lost."""
    policy = LlmD()
    for number in range(16):
        hashes = range(number * 2000, number * 2000 + 2000)
        assert (
            place(policy, prompt(str(number), *hashes, tokens=128_000), [candidate("a", load(), kv_blocks=None)]) == A
        )
    assert len(policy._index) == 31_250
    assert policy.prefix_scores(prompt("first", 749)) == {}
    assert policy.prefix_scores(prompt("first", 750)) == {A: 0.1}


def test_prompts_count_up_to_131072_tokens():
    """Of 262,144 tokens only 2048 blocks are looked at: 1024 of them held are a half."""
    policy = LlmD()
    policy.placed(prompt("1", *range(1024), tokens=65_536), A, 0.0)
    assert policy.prefix_scores(prompt("2", *range(4096), tokens=262_144)) == {A: 0.5}


def test_coarse_chunks_count_as_blocks():
    """One chunk of 512 tokens is 8 blocks; a prompt of 700 tokens has 10: 0.8."""
    policy = LlmD()
    coarse = request("1", prompt_tokens=700, prefix_hashes=(1,), prefix_chunk_tokens=512)
    policy.placed(coarse, A, 0.0)
    assert policy.prefix_scores(coarse) == {A: 0.8}


def test_a_forgotten_replica_holds_nothing():
    """Its cache is gone, and so is its place in the cold order: it is new."""
    policy = LlmD()
    pool = [candidate("a", load()), candidate("b", load())]
    assert [place(policy, prompt(str(n), n), pool) for n in (1, 2)] == [A, B]
    policy.forget(A)
    policy.forget(B)
    assert policy.prefix_scores(prompt("3", 1)) == {}
    assert place(policy, prompt("4", 1), pool) == A
