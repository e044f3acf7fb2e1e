"""`dynamo`: max(active prefill + prompt - overlap, 0) + decode, in blocks of 16 tokens, against hand-worked sums."""

from typing import Any

import pytest

from batching.policies.dynamo import Dynamo
from batching.request import ReplicaId, Request
from tests.support.scheduling import request
from tests.unit.batching.policies.candidates import A, B, candidate, place

AB = [candidate("a"), candidate("b")]  # 2048 tokens a step


def prompt(name: str, *hashes: int, tokens: int = 640, **changes: object) -> Request:
    """Chunks of 64 tokens: 4 blocks each."""
    return request(name, prompt_tokens=tokens, prefix_hashes=hashes, prefix_chunk_tokens=64, **changes)


def run(policy: Dynamo, replica: ReplicaId, sent: Request, *, prefilled: bool = True) -> Request:
    """Sends it there by hand."""
    policy.placed(sent, replica, 0.0)
    if prefilled:
        policy.first_token(sent, replica, 0.0)
    return sent


def warm(policy: Dynamo, replica: ReplicaId, *hashes: int) -> None:
    """Lets a prompt run through, so that only its cache is left."""
    only = [c for c in AB if c.id == replica]
    sent = prompt("warm", *hashes)
    assert place(policy, sent, only) == replica
    policy.first_token(sent, replica, 0.0)
    policy.finished(sent, replica, 0.0)


def test_overlap_is_saved_prefill():
    """Replica a holds 4 of 10 chunks: prefill 40 - 16 = 24, decode 40: 64; b: 40 + 40 = 80 -> a."""
    policy = Dynamo()
    warm(policy, A, 1, 2, 3, 4)
    ten = prompt("2", *range(1, 11))
    assert [policy._cost(ten, ten.prefix_hashes, c.id, cached) for c, cached in zip(AB, (4, 0), strict=True)] == [
        64,
        80,
    ]
    assert place(policy, ten, AB) == A


def test_decoding_elsewhere_outweighs_overlap():
    """Replica a has the overlap, saving 16 blocks, but decodes a prompt of 272 tokens = 17 blocks: 24 + 40 + 17 = 81 against 80 -> b.

    With 256 tokens = 16 blocks the two are equal, 80: any.
    """
    for tokens, winners in ((272, {B}), (256, {A, B})):
        chosen = set()
        for seed in range(20):
            policy = Dynamo(seed)
            warm(policy, A, 1, 2, 3, 4)
            run(policy, A, request("busy", prompt_tokens=tokens))
            chosen.add(policy.choose(prompt("2", *range(1, 11)), AB, 0.0))
        assert chosen == winners


def test_prefill_counts_until_the_first_token():
    """Replica a prefills 160 tokens: 10 + 7 of the next (100 tokens = 6.25 blocks prefill, 7 decode) + 10 decode; after it only the 10."""
    policy = Dynamo()
    first = run(policy, A, request("1", prompt_tokens=160), prefilled=False)
    run(policy, B, request("2", prompt_tokens=240))
    following = request("3", prompt_tokens=100)
    # a: 10 + 6.25 + 10 + 7 = 33.25; b: 6.25 + 15 + 7 = 28.25
    assert [policy._cost(following, (), replica, 0) for replica in (A, B)] == [33.25, 28.25]
    assert policy.choose(following, AB, 0.0) == B
    policy.first_token(first, A, 1.0)
    # a: 6.25 + 10 + 7 = 23.25
    assert policy.choose(following, AB, 1.0) == A


def test_chunks_in_use_are_decoded_with_once():
    """1-2-3-4 runs twice on a: 16 blocks. A third with 1-2-3-4-5 adds 4, one without any 20: decode 20 there, 36 for the other.

    Costs on a: prefill 20 - 16 = 4 + 20 = 24 (cached: it was prefilled), and 20 + 36 = 56.
    """
    policy = Dynamo()
    warm(policy, A, 1, 2, 3, 4)
    twins = [run(policy, A, prompt(name, 1, 2, 3, 4, tokens=256)) for name in ("2", "3")]
    assert policy._cost(prompt("4", 1, 2, 3, 4, 5, tokens=320), (1, 2, 3, 4, 5), A, 4) == 24
    assert policy._cost(prompt("5", 6, 7, 8, 9, 10, tokens=320), (6, 7, 8, 9, 10), A, 0) == 56
    policy.finished(twins[0], A, 1.0)
    assert policy._cost(prompt("6", tokens=16), (), A, 0) == 1 + 16 + 1
    policy.finished(twins[1], A, 1.0)
    assert policy._cost(prompt("7", tokens=16), (), A, 0) == 1 + 0 + 1


def test_more_overlap_than_prompt_costs_nothing_not_less():
    """The prefill term ends at 0."""
    assert Dynamo()._cost(prompt("1", 1, tokens=32), (1,), A, 1) == 0 + 4


def test_held_while_everybody_prefills_more_than_two_steps():
    """2 * 2048 = 4096: with 4097 tokens on a and 4096 on b it goes out (to b, the cheaper); with 4097 on both it is held.

    A first token on a lets it go.
    """
    policy = Dynamo()
    first = run(policy, A, request("1", prompt_tokens=4097), prefilled=False)
    run(policy, B, request("2", prompt_tokens=4096), prefilled=False)
    assert policy.choose(request("3"), AB, 0.0) == B
    run(policy, B, request("4", prompt_tokens=1), prefilled=False)
    assert policy.choose(request("5"), AB, 0.0) is None
    policy.first_token(first, A, 1.0)
    assert policy.choose(request("5"), AB, 1.0) == A


def test_a_busy_worker_may_still_be_the_cheapest():
    """The threshold holds a request, it does not filter: a is above it, b is not but decodes 1000 blocks more."""
    policy = Dynamo()
    run(policy, A, request("1", prompt_tokens=4112), prefilled=False)  # prefill 257 + decode 257 = 514
    run(policy, B, request("2", prompt_tokens=16_000))  # decode 1000
    assert policy.choose(request("3"), AB, 0.0) == A


@pytest.mark.parametrize(("threshold", "held"), [(None, False), (0.0, True), (2.0, True), (3.0, False)])
def test_the_threshold_is_a_knob(threshold: Any, held: bool):
    """5000 tokens are 2.4 steps of 2048: above 0 and 2, below 3; None switches the queue off."""
    policy = Dynamo(queue_threshold=threshold)
    run(policy, A, request("1", prompt_tokens=5000), prefilled=False)
    assert (policy.choose(request("2"), AB[:1], 0.0) is None) is held


def test_a_worker_that_tells_no_step_size_is_never_busy():
    """There is nothing to compare with."""
    policy = Dynamo()
    run(policy, A, request("1", prompt_tokens=50_000), prefilled=False)
    assert policy.choose(request("2"), [candidate("a", max_num_batched_tokens=None)], 0.0) == A


def test_the_cache_is_bounded_by_the_replicas_blocks():
    """8 blocks of 16 tokens are two chunks of 64: of three the deepest is lost; another prompt of two takes the place of all."""
    policy = Dynamo()
    small = [candidate("a", kv_blocks=8)]
    for name, hashes in (("1", (1, 2, 3)), ("2", (8, 9))):
        sent = prompt(name, *hashes)
        assert place(policy, sent, small) == A
        policy.first_token(sent, A, 0.0)
        policy.finished(sent, A, 0.0)
        assert policy._cached.counts((1, 2, 3)) == ({A: 2} if name == "1" else {})
    assert policy._cached.counts((8, 9)) == {A: 2}


def test_only_what_was_prefilled_is_cached():
    """Events come from the engine: nothing at placement, nothing from a stream that failed before its first token."""
    policy = Dynamo()
    sent = prompt("1", 1, 2)
    assert place(policy, sent, AB[:1]) == A
    assert policy._cached.counts((1, 2)) == {}
    policy.finished(sent, A, 1.0)
    assert policy._cached.counts((1, 2)) == {}
    whole = prompt("2", 1, 2, streaming=False)  # nobody reports its first token
    assert place(policy, whole, AB[:1]) == A
    policy.finished(whole, A, 2.0)
    assert policy._cached.counts((1, 2)) == {A: 2}


def test_equals_are_drawn_by_the_seed():
    """Two idle workers."""
    assert {Dynamo(seed).choose(request(), AB, 0.0) for seed in range(20)} == {A, B}


def test_a_forgotten_replica_caches_nothing_and_its_requests_still_end():
    """The overlap is gone; what runs is counted until it finishes."""
    policy = Dynamo()
    warm(policy, A, 1, 2)
    running = run(policy, A, request("1", prompt_tokens=160))
    policy.forget(A)
    assert policy._cached.counts((1, 2)) == {}
    assert policy._cost(request("2", prompt_tokens=16), (), A, 0) == 1 + 10 + 1
    policy.finished(running, A, 1.0)
    assert not policy._sequences


def test_scrapes_nobody():
    """It counts its active sequences itself."""
    assert Dynamo().scrape_interval_s is None
