"""A scheduler that has a share of its replicas: never more than the share, and what does not fit it waits for more."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.replica import EngineLoad
from batching.request import Outcome, ReplicaId
from batching.share_holder import Holding
from batching.shares import WHOLE, HolderId, Running, ShareBook
from batching.ticket import Lease
from tests.support.scheduling import leases, placed, profile, request, scheduler

A = ReplicaId("a")
HALF = WHOLE // 2


def test_sequences_within_the_share():
    """Half of eight sequences are four; four more come with the other half."""
    one = scheduler(profile("a"))
    one.stake.allot(A, HALF)
    for number in range(8):
        one.submit(request(f"r{number}"), 0.0)
    assert len(placed(one.advance(0.0))) == 4
    one.stake.allot(A, WHOLE)
    assert len(placed(one.advance(0.0))) == 4


def test_wider_than_the_share_waits_for_more():
    """It is not refused, its claim says what it needs, and it goes when the share has grown."""
    one = scheduler(profile("a"))
    one.stake.allot(A, HALF)
    one.submit(request("wide", prompt_tokens=8000, max_output_tokens=100), 0.0)  # 507 of 1000 blocks
    assert one.advance(0.0) == []
    claim = one.stake.claims()[A]
    assert claim.needed > claim.enforced == HALF
    assert claim.needed < WHOLE
    one.stake.allot(A, claim.needed)
    assert placed(one.advance(0.0)) == ["wide"]
    assert one.stake.claims()[A].in_use <= claim.needed


def test_wider_than_every_budget_needs_the_whole():
    """Alone it would be taken by an empty replica: here it waits until the replica is ours and nobody else's."""
    one = scheduler(profile("a", max_num_seqs=4))
    one.stake.allot(A, WHOLE - 1)
    one.submit(request("wide", sequences=6), 0.0)
    assert one.advance(0.0) == []
    assert one.stake.claims()[A].needed == WHOLE
    one.stake.allot(A, WHOLE)
    assert placed(one.advance(0.0)) == ["wide"]


def test_nothing_is_placed_without_a_share():
    """Before the first answer everything waits."""
    one = scheduler(profile("a"))
    one.stake.allot(A, 0)
    one.submit(request(), 0.0)
    assert one.advance(0.0) == []


def test_what_others_run_is_not_foreign():
    """The engine's usage counts all gateways: what the others say they hold takes nothing from our share."""
    one = scheduler(profile("a"))
    one.stake.allot(A, HALF)
    one.stake.beside(A, Running(3, 400), 0.0)
    one.observe(A, EngineLoad(observed_s=0.0, kv_usage_ratio=0.4), 0.0)
    assert one.states(0.0)[0].foreign_blocks == 0
    one.observe(A, EngineLoad(observed_s=0.0, kv_usage_ratio=0.5), 0.0)
    assert one.states(0.0)[0].foreign_blocks == 100


def test_others_slow_the_steps():
    """Time per output token is predicted for the engine's whole batch."""
    one = scheduler(profile("a"))
    alone_s = one._fleet[A].offer.decode_s
    one.stake.allot(A, HALF)
    one.stake.beside(A, Running(200, 900), 0.0)
    assert one._fleet[A].offer.decode_s > alone_s


def test_prefill_of_others_goes_first():
    """What others have to prefill there delays a first token as our own does, and the other replica is taken; until it is done."""
    one = scheduler(profile("a"), profile("b"))
    one.stake.beside(A, Running(1, 10, prefill_s=0.5), 1.0)
    assert one._fleet[A].offer.ahead_s(1.0) == pytest.approx(0.5)
    assert one._fleet[A].offer.ahead_s(1.3) == pytest.approx(0.2)  # the machine works meanwhile
    for number in range(2):
        one.submit(request(f"r{number}"), 1.0)
        assert [decision.lease.replica for decision in one.advance(1.0)] == ["b"]
    one.stake.beside(A, Running(3, 10, prefill_s=0.9), 1.3)
    assert one._fleet[A].offer.ahead_s(1.3) == pytest.approx(0.6)
    one.stake.beside(A, Running(2, 10, prefill_s=0.4), 1.4)  # a first token: what is left is counted from now
    assert one._fleet[A].offer.ahead_s(1.4) == pytest.approx(0.4)
    one.stake.beside(A, Running(), 1.5)
    assert one._fleet[A].offer.ahead_s(1.5) == 0.0


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6000), st.integers(1, 400), st.sampled_from((1, 1, 2, 5))), max_size=25),
    sites=st.integers(2, 3),
)
def test_all_is_served_within_the_budgets(sizes: list[tuple[int, int, int]], sites: int):
    """Several schedulers at one book: never more sequences or reserved blocks together than the replica has, and nobody starves."""
    book, names = ShareBook(), [HolderId(f"h{number}") for number in range(sites)]
    schedulers = [scheduler(profile("a"), queue={"max_wait_s": 1e6}) for _ in names]
    holdings = [Holding(one.stake) for one in schedulers]
    for one in schedulers:
        one.stake.allot(A, 0)
    for number, (prompt, output, sequences) in enumerate(sizes):
        schedulers[number % sites].submit(
            request(f"r{number}", prompt_tokens=prompt, max_output_tokens=output, sequences=sequences), 0.0
        )
    running: list[tuple[int, Lease]] = []
    done = 0
    for turn in range(60 * sites * (1 + len(sizes))):
        now, at = turn * 0.05, turn % sites
        number, claims = holdings[at].report()
        assert book.report(names[at], number, claims)
        holdings[at].take(*book.answer(names[at]), now)
        running += [(at, lease) for lease in leases(schedulers[at].advance(now))]
        states = [one.states(now)[0] for one in schedulers]
        assert sum(state.running for state in states) <= 8
        assert sum(state.reserved_blocks for state in states) <= 1000
        if running and turn % 2:  # some run on while others come
            where, lease = running.pop(0)
            schedulers[where].on_first_token(lease.id, now)
            schedulers[where].finish(lease.id, now, outcome=Outcome.COMPLETED, output_tokens=1)
            done += 1
        if done == len(sizes):
            return
    assert done == len(sizes)
