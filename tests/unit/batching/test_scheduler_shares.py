"""A scheduler that has a share of its replicas: never more than the share, and what does not fit it waits for more."""

from hypothesis import given, settings
from hypothesis import strategies as st

from batching.replica import EngineLoad
from batching.request import Outcome, ReplicaId
from batching.share_holder import Holding
from batching.shares import ALONE, NOTHING, WHOLE, HolderId, Share, ShareBook
from batching.ticket import Lease
from tests.support.scheduling import leases, placed, profile, request, scheduler

A = ReplicaId("a")
HALF = Share(WHOLE // 2)


def test_sequences_within_the_share():
    """Half of eight sequences are four; four more come with the other half."""
    one = scheduler(profile("a"))
    one.allot(A, HALF)
    for number in range(8):
        one.submit(request(f"r{number}"), 0.0)
    assert len(placed(one.advance(0.0))) == 4
    one.allot(A, ALONE)
    assert len(placed(one.advance(0.0))) == 4


def test_wider_than_the_share_waits_for_more():
    """It is not refused, its claim says what it needs, and it goes when the share has grown."""
    one = scheduler(profile("a"))
    one.allot(A, HALF)
    one.submit(request("wide", prompt_tokens=8000, max_output_tokens=100), 0.0)  # 507 of 1000 blocks
    assert one.advance(0.0) == []
    claim = one.claims()[A]
    assert claim.needed > claim.enforced == HALF.parts
    assert claim.needed < WHOLE
    one.allot(A, Share(claim.needed))
    assert placed(one.advance(0.0)) == ["wide"]
    assert one.claims()[A].in_use <= claim.needed


def test_wider_than_every_budget_needs_the_whole():
    """Alone it would be taken by an empty replica: here it waits until the replica is ours and nobody else's."""
    one = scheduler(profile("a", max_num_seqs=4))
    one.allot(A, Share(WHOLE - 1))
    one.submit(request("wide", sequences=6), 0.0)
    assert one.advance(0.0) == []
    assert one.claims()[A].needed == WHOLE
    one.allot(A, ALONE)
    assert placed(one.advance(0.0)) == ["wide"]


def test_nothing_is_placed_without_a_share():
    """Before the first answer everything waits."""
    one = scheduler(profile("a"))
    one.allot(A, NOTHING)
    one.submit(request(), 0.0)
    assert one.advance(0.0) == []


def test_what_others_run_is_not_foreign():
    """The engine's usage counts all gateways: what the others say they hold takes nothing from our share."""
    one = scheduler(profile("a"))
    one.allot(A, Share(WHOLE // 2, others_sequences=3, others_blocks=400))
    one.observe(A, EngineLoad(observed_s=0.0, kv_usage_ratio=0.4), 0.0)
    assert one.states(0.0)[0].foreign_blocks == 0
    one.observe(A, EngineLoad(observed_s=0.0, kv_usage_ratio=0.5), 0.0)
    assert one.states(0.0)[0].foreign_blocks == 100


def test_others_slow_the_steps():
    """Time per output token is predicted for the engine's whole batch."""
    one = scheduler(profile("a"))
    alone_s = one._fleet[A].offer.decode_s
    one.allot(A, Share(WHOLE // 2, others_sequences=200, others_blocks=900))
    assert one._fleet[A].offer.decode_s > alone_s


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6000), st.integers(1, 400), st.sampled_from((1, 1, 2, 5))), max_size=25),
    sites=st.integers(2, 3),
)
def test_all_is_served_within_the_budgets(sizes: list[tuple[int, int, int]], sites: int):
    """Several schedulers at one book: never more sequences or reserved blocks together than the replica has, and nobody starves."""
    book, names = ShareBook(), [HolderId(f"h{number}") for number in range(sites)]
    schedulers = [scheduler(profile("a"), queue={"max_wait_s": 1e6}) for _ in names]
    holdings = [Holding(one) for one in schedulers]
    for one in schedulers:
        one.allot(A, NOTHING)
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
        holdings[at].take(*book.answer(names[at]))
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
