"""`llm_d_sticky`: replicas with 0.8 of the prompt, unless they are 18 s of prefill (286,704 tokens) behind the others."""

from batching.policies.llm_d_sticky import LlmDSticky
from batching.request import ReplicaId, Request
from tests.support.scheduling import request
from tests.unit.batching.policies.candidates import A, B, candidate, load

LONGER_QUEUE = [candidate("a", load(waiting=4, kv=0.75)), candidate("b", load())]
"""Unfiltered a scores 3 s + 0 + 0.5 + 1 and b 0 + 2 + 2 + 1 = 5: b wins even against a whole hit (4.5)."""


def prompt(name: str, *hashes: int, tokens: int = 640) -> Request:
    return request(name, prompt_tokens=tokens, prefix_hashes=hashes, prefix_chunk_tokens=64)


def warm(*hashes: int) -> LlmDSticky:
    """Replica a holds these, and nothing is in flight."""
    policy = LlmDSticky()
    first = prompt("warm", *hashes)
    policy.placed(first, A, 0.0)
    policy.finished(first, A, 0.0)
    return policy


def behind(policy: LlmDSticky, tokens: int, replica: ReplicaId = A) -> Request:
    """Sends it a cold prompt that is not prefilled yet."""
    cold = request("cold", prompt_tokens=tokens)
    policy.placed(cold, replica, 0.0)
    return cold


def test_eight_tenths_stick():
    """80 of 100 blocks: only a is scored. 79 of 100: both, and b's empty queue wins."""
    hundred = prompt("2", *range(100), tokens=6400)
    assert warm(*range(80)).choose(hundred, LONGER_QUEUE, 0.0) == A
    assert warm(*range(79)).choose(hundred, LONGER_QUEUE, 0.0) == B


def test_eighteen_seconds_of_prefill_break_it():
    """18 s * 15,928 tokens/s = 286,704 tokens: with as many in flight it sticks, with one more it does not."""
    policy = warm(1)
    behind(policy, 286_704)
    assert policy.choose(prompt("2", 1, tokens=64), LONGER_QUEUE, 0.0) == A
    policy = warm(1)
    behind(policy, 286_705)
    assert policy.choose(prompt("2", 1, tokens=64), LONGER_QUEUE, 0.0) == B


def test_the_penalty_is_against_the_best_of_the_others():
    """With a 300,000 and b 20,000 tokens: 280,000 apart, 17.6 s: it sticks."""
    policy = warm(1)
    behind(policy, 300_000)
    policy.placed(request("other", prompt_tokens=20_000), B, 0.0)
    assert policy.choose(prompt("2", 1, tokens=64), LONGER_QUEUE, 0.0) == A


def test_the_first_token_or_the_end_releases_the_tokens():
    """After either a is not behind any more; after both, nothing is counted twice."""
    for release in ("first_token", "finished"):
        policy = warm(1)
        cold = behind(policy, 300_000)
        assert policy.choose(prompt("2", 1, tokens=64), LONGER_QUEUE, 0.0) == B
        getattr(policy, release)(cold, A, 1.0)
        assert policy.choose(prompt("3", 1, tokens=64), LONGER_QUEUE, 0.0) == A
        if release == "first_token":
            policy.finished(cold, A, 2.0)
        assert not policy._tokens
        assert not policy._prefilling


def test_only_uncached_tokens_are_in_flight():
    """5 of 10 blocks are there: 320 of 640 tokens."""
    policy = warm(1, 2, 3, 4, 5)
    policy.placed(prompt("2", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), A, 0.0)
    assert policy._tokens == {A: 320}


def test_a_saturated_pool_holds_all_the_same():
    """Saturation is asked before stickiness: (6/5 + 4/5) / 2 = 1.0."""
    pool = [candidate("a", load(waiting=6)), candidate("b", load(waiting=4))]
    assert warm(1).choose(prompt("2", 1, tokens=64), pool, 0.0) is None


def test_stuck_to_nobody_after_forgetting():
    """The cache of a is gone: both are scored, b wins."""
    policy = warm(1)
    policy.forget(A)
    assert policy.choose(prompt("2", 1, tokens=64), LONGER_QUEUE, 0.0) == B


def test_sees_fifty_milliseconds_old_numbers():
    """As `llm_d`."""
    assert LlmDSticky().scrape_interval_s == 0.05
