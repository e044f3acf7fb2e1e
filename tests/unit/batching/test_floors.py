"""A share of the prompt tokens for each class that waits; the rest is strict order."""

from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.lane import _CREDIT_LIMIT, LATE
from batching.placement import Need
from batching.queue import WaitingQueue
from batching.request import Outcome, ServiceTier
from batching.ticket import Ticket, TicketId, TicketState
from config.schema import Floors, Queue
from tests.support.scheduling import leases, placed, profile, request, scheduler

BATCH = LATE + 1
TIERS = (*tuple(ServiceTier)[:3], ServiceTier.DEFAULT, ServiceTier.BATCH)  # by rank
SHARES = Floors()
FLOORS = (0.0, SHARES.default, SHARES.flex, SHARES.late, SHARES.batch)


class Contended:
    """One lane in which a ticket of each rank always waits; each turn the next is placed and replaced."""

    def __init__(self, ranks: Any = range(5), **options: Any) -> None:
        self.queue = WaitingQueue(Queue(max_wait_s=1e9, aging_s=1e9), **options)
        self.ids = count(1)
        self.served = [0] * 5
        self.sizes = Random(1)
        for rank in ranks:
            self.arrive(rank)

    def arrive(self, rank: int, tokens: int | None = None):
        wanted = request(service_tier=TIERS[rank], prompt_tokens=tokens or self.sizes.randint(1, 4000))
        ticket = Ticket(TicketId(next(self.ids)), wanted, 0.0)
        need = Need(
            request=wanted,
            ticket=ticket.id,
            forecast_tokens=1,
            expected_tokens=1,
            ttft_objective_s=1e6,
            tpot_objective_s=1.0,
        )
        self.queue.add(ticket, need, 0.0 if rank == LATE else None)

    def turn(self):
        """(by which rank it went, its own rank, its tokens)."""
        lane = self.queue.lane("m")
        head = lane.peek()
        assert head is not None
        went_by, waiting = head
        lane.take(waiting)
        rank, tokens = waiting.rank, waiting.ticket.request.prompt_tokens
        self.queue.leave(waiting, TicketState.PLACED)
        self.arrive(rank)
        lane.charge(rank, "anonymous", tokens, dispatch=True)
        self.served[rank] += tokens
        return went_by, rank, tokens


@settings(deadline=None)
@given(st.sets(st.integers(0, 4), min_size=2), st.integers(0, 99))
def test_who_waits_gets_its_share_within_a_heads_size(ranks: set[int], seed: int):
    """At every moment of a long contended run each class has had its floor of all prompt tokens, but for a head or so.

    A turn comes when the credit covers the head, and may be taken first by the heads of other floors, whose shares add up to less
    than one half: 1.5 times the longest prompt.
    """
    lane = Contended(sorted(ranks))
    lane.sizes = Random(seed)
    for _ in range(400):
        lane.turn()
        for rank in ranks:
            assert lane.served[rank] >= FLOORS[rank] * sum(lane.served) - 1.5 * 4000


@settings(deadline=None)
@given(st.sets(st.integers(0, 4), min_size=2))
def test_a_floor_is_no_more_than_a_share(ranks: set[int]):
    """Whoever goes by its floor gets that share and no more: the best rank that waits has all the rest."""
    lane = Contended(sorted(ranks))
    for _ in range(400):
        went_by, rank, _ = lane.turn()
        assert (went_by == rank == min(ranks)) or (went_by == -1 and rank > min(ranks))
    for rank in sorted(ranks)[1:]:
        assert lane.served[rank] <= FLOORS[rank] * sum(lane.served) + 1


def test_without_floors_the_order_is_strict():
    """Switched off, the best rank that waits takes all."""
    lane = Contended(with_floors=False)
    assert {lane.turn()[:2] for _ in range(200)} == {(0, 0)}


def test_who_did_not_wait_has_no_credit():
    """Tokens placed while nobody of a class waited are not owed to it."""
    lane = Contended([0])
    for _ in range(400):
        lane.turn()
    lane.arrive(BATCH, 100)
    assert lane.turn()[1] == 0


def test_credit_is_bounded():
    """A class whose long prompts fitted nowhere for hours does not shut out the others for minutes."""
    lane = Contended([0, BATCH])
    inner = lane.queue.lane("m")
    for _ in range(9999):
        inner.charge(0, "x", 4000, dispatch=True)
    by_floor = 0
    while lane.turn()[0] == -1:
        by_floor += 1
    assert lane.served[BATCH] <= _CREDIT_LIMIT / (1 - FLOORS[BATCH])
    assert by_floor > 10


def test_a_prompt_beyond_the_credit_limit_has_its_turn():
    """The bound on credit is no bound on prompts: the longest context goes by a full credit."""
    lane = Contended([0])
    lane.arrive(BATCH, 2 * _CREDIT_LIMIT)
    turns = [lane.turn()[1] for _ in range(2000)]
    assert turns.count(BATCH) >= 1


def test_a_floor_serves_every_tenant_in_turn():
    """What goes by a floor is charged like everything else: tenants of the class take turns."""
    built = scheduler(profile(max_num_seqs=1), queue={"max_wait_s": 600.0})
    built.submit(request("first"), 0.0)
    lease = leases(built.advance(0.0))[0]
    for number in range(4):
        built.submit(request(f"x{number}", tenant="x", service_tier=ServiceTier.BATCH), 0.0)
        built.submit(request(f"y{number}", tenant="y", service_tier=ServiceTier.BATCH), 0.0)
    order = []
    for number in range(90):
        now = 0.01 * (number + 1)
        built.submit(request(f"p{number}", arrived_s=now, service_tier=ServiceTier.PRIORITY), now)
        built.finish(lease.id, now, outcome=Outcome.COMPLETED)
        decisions = built.advance(now)
        order += placed(decisions)
        lease = leases(decisions)[0]
    assert [name for name in order if not name.startswith("p")] == ["x0", "y0", "x1", "y1"]


@pytest.mark.parametrize(("tier", "rank"), [(ServiceTier.DEFAULT, 1), (ServiceTier.FLEX, 2), (ServiceTier.BATCH, 4)])
def test_nobody_starves_under_endless_priority(tier: ServiceTier, rank: int):
    """However much priority comes, a class of equal prompts has one of 1 / floor of the turns."""
    built = scheduler(profile(max_num_seqs=1), queue={"max_wait_s": 600.0, "aging_s": 600.0})
    built.submit(request("first"), 0.0)
    lease = leases(built.advance(0.0))[0]
    for number in range(20):
        built.submit(request(f"w{number}", service_tier=tier, arrived_s=2.0), 0.0)
    turns = []
    for number in range(100):
        now = 0.01 * (number + 1)
        built.submit(request(f"p{number}", arrived_s=now, service_tier=ServiceTier.PRIORITY), now)
        built.finish(lease.id, now, outcome=Outcome.COMPLETED)
        decisions = built.advance(now)
        turns += [name for name in placed(decisions) if name.startswith("w")]
        lease = leases(decisions)[0]
    assert len(turns) == pytest.approx(100 * FLOORS[rank], abs=1)
