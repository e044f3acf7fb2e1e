"""The queue's order against a naive one that sorts everything for every question."""

from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from batching.backlog import work_of
from batching.crowd import Held
from batching.lane import LATE, RESUMES, Lane, Waiting
from batching.placement import Need
from batching.queue import WaitingQueue
from batching.request import ServiceTier
from batching.ticket import Ticket, TicketId, TicketState
from config.schema import Floors, Queue
from tests.support.scheduling import request

AGING_S = 5.0
MAX_WAIT_S = 40.0
BATCH = LATE + 1
FLOORS = Floors()


@dataclass(eq=False)
class Entry:
    """What the model knows of a ticket: when it leaves, when its first token is due, when it turns late (None: never)."""

    ticket: Ticket
    leave_s: float
    due_s: float
    late_s: float | None

    def rank(self, now: float) -> int:
        tier = self.ticket.request.service_tier
        if self.resumes:
            return 0
        if tier is ServiceTier.BATCH:
            return BATCH
        if self.late_s is not None and self.late_s <= now:
            return LATE
        return int(tier)

    def goes_by(self, now: float) -> int:
        """If it is the first of its rank."""
        rank = self.rank(now)
        lifts = (now >= self.ticket.queued_s + AGING_S, now >= self.ticket.queued_s + AGING_S + AGING_S)
        return rank if rank >= LATE else max(0, rank - sum(lifts))

    @property
    def resumes(self) -> bool:
        return self.ticket.request.resumes

    def order(self, now: float) -> tuple[float, ...]:
        """Inside a tenant: what is due first, or must leave first; the late by arrival, batch as it has no objective."""
        if self.rank(now) == LATE:
            return (self.ticket.queued_s, self.leave_s, self.ticket.id)
        latest = min(self.due_s, self.leave_s, self.ticket.queued_s + MAX_WAIT_S)
        return (latest, self.leave_s, self.ticket.id)


class QueueMachine(RuleBasedStateMachine):
    """The model keeps tickets in a list and ranks by arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ids = 0
        self.queue = WaitingQueue(Queue(max_wait_s=MAX_WAIT_S, aging_s=AGING_S))
        self.model: list[Entry] = []
        self.credits = [0.0] * 5
        self.floors = (0.0, FLOORS.default, FLOORS.flex, FLOORS.late, FLOORS.batch)

    @rule(
        tenant=st.sampled_from("xyz"),
        tier=st.sampled_from(ServiceTier),
        deadline=st.one_of(st.none(), st.floats(1, 60)),
        objective=st.sampled_from((0.5, 3.0, 50.0)),
        late=st.one_of(st.none(), st.floats(-1, 20)),
        tokens=st.integers(1, 500),
        resumes=st.sampled_from((False, False, False, False, True)),
    )
    def add(
        self,
        tenant: str,
        tier: ServiceTier,
        deadline: float | None,
        objective: float,
        late: float | None,
        tokens: int,
        resumes: bool,
    ) -> None:
        self.ids += 1
        wanted = request(
            f"r{self.ids}",
            tenant=tenant,
            arrived_s=self.now,
            service_tier=tier,
            prompt_tokens=tokens,
            resumes=resumes,
            deadline_s=None if deadline is None else self.now + deadline,
        )
        ticket = Ticket(TicketId(self.ids), wanted, self.now)
        need = Need(
            request=wanted,
            ticket=ticket.id,
            forecast_tokens=1,
            expected_tokens=1,
            ttft_objective_s=inf if tier is ServiceTier.BATCH else objective,
            tpot_objective_s=1.0,
        )
        late_s = None if late is None or resumes or tier is ServiceTier.BATCH else self.now + late
        self.queue.add(ticket, need, late_s)
        latest = self.now + MAX_WAIT_S
        own = latest if deadline is None else self.now + deadline
        leave_s = own if tier is ServiceTier.BATCH else min(own, latest)
        self.model.append(Entry(ticket, leave_s, need.first_token_due_s, late_s))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.model:
            entry = data.draw(st.sampled_from(self.model))
            waiting = self.queue.get(entry.ticket)
            assert waiting is not None
            self.queue.leave(waiting, TicketState.CANCELLED)
            self.model.remove(entry)

    @rule(seconds=st.sampled_from((0.5, 2.0, 6.0, 30.0)))
    def elapse(self, seconds: float) -> None:
        self.now += seconds
        expired = []
        for waiting in self.queue.expired(self.now):
            self.queue.leave(waiting, TicketState.EVICTED)
            expired.append(waiting.ticket)
        leaving = sorted(self.model, key=lambda e: (e.leave_s, e.ticket.id))
        assert expired == [entry.ticket for entry in leaving if entry.leave_s <= self.now]
        self.model = [entry for entry in self.model if entry.leave_s > self.now]

    @rule(count=st.integers(1, 4))
    def place(self, count: int) -> None:
        """Who is next has the best rank or its floor's turn, nobody of its tenant goes before it, and a turn follows its counter."""
        lane = self._lane()
        for _ in range(min(count, len(self.model))):
            head = lane.peek(self.now)
            assert head is not None
            went_by, waiting = head
            self._is_next(went_by, waiting)
            lane.take(waiting)
            resumes = waiting.ticket.request.resumes
            request = waiting.ticket.request
            self.queue.leave(waiting, TicketState.PLACED)
            self.model = [entry for entry in self.model if entry.ticket is not waiting.ticket]
            if not resumes:  # its prompt was charged when it was placed first
                self._credit(waiting.rank, request.prompt_tokens)
                lane.charge(waiting.rank, request.tenant, request.prompt_tokens, dispatch=True)

    @rule(
        some=st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(ServiceTier)), min_size=2, max_size=6),
        seconds=st.sampled_from((2.0, 6.0, 11.0)),
        count=st.integers(1, 4),
    )
    def grow_old(self, some: list[tuple[str, ServiceTier]], seconds: float, count: int) -> None:
        """Several that wait for long, some that have just come, and room for a few."""
        for tenant, tier in some[1:]:
            self.add(tenant, tier, None, 50.0, None, 100, resumes=False)
        self.elapse(seconds)
        self.add(*some[0], None, 50.0, None, 100, resumes=False)
        self.place(count)

    @rule(count=st.integers(1, 4))
    def look_past(self, count: int) -> None:
        """Putting back what fitted nowhere leaves the order of ranks as it was; tenants served equally take turns.

        Whose floor's turn it is depends on the head's size, and so on whose turn it is.
        """
        lane = self._lane()
        lane.by_floor = False
        # Nobody has aged: of tenants served equally another is first then.
        aside, again = self._out(lane, count), self._out(lane, count)
        lane.by_floor = True
        assert [w.rank for w in again] == [w.rank for w in aside]
        assert len({id(w) for w in again}) == len(aside)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.queue) == len(self.model) == self.queue.lane("m").size
        assert self.queue.tokens == sum(entry.ticket.request.prompt_tokens for entry in self.model)

    @invariant()
    def what_waits_is_what_is_ahead(self) -> None:
        """Work by rank and, of whoever may be shed, requests and tokens by tier add up to those who wait."""
        backlog, crowd = self.queue.lane("m").backlog, self.queue.crowd
        self.queue.turn_late(self.now)
        work = [0] * 5
        for waiting in self.queue:
            work[waiting.rank] += waiting.work
            assert waiting.work == work_of(waiting.need)
        assert backlog.work == work
        assert [sum(share.work for share in shares.values()) for shares in backlog._shares] == work
        for tier in ServiceTier:
            own = [e.ticket.request for e in self.model if e.ticket.request.service_tier is tier and not e.resumes]
            assert crowd.held(tier) == Held(len(own), sum(one.prompt_tokens for one in own), 0)

    @invariant()
    def the_next_deadline_is_a_leave_or_a_turn(self) -> None:
        """Somebody leaves, or turns late who has not; a turn that is overdue counts until it is taken."""
        due = self.queue.next_deadline()
        leaves = [entry.leave_s for entry in self.model]
        turns = [e.late_s for e in self.model if e.late_s is not None and e.late_s > self.now]
        if due is None or due > self.now:
            assert due == min(leaves + turns, default=None)

    def _lane(self) -> Lane:
        self.queue.turn_late(self.now)
        return self.queue.lane("m")

    def _out(self, lane: Lane, count: int) -> list[Waiting]:
        """The next so many, each put back."""
        out = []
        for _ in range(count):
            if (head := lane.peek()) is not None:
                lane.take(head[1])
                out.append(head[1])
        for waiting in out:
            lane.push(waiting, arrives=False)
        return out

    def _credit(self, served: int, tokens: int) -> None:
        ranks = {entry.rank(self.now) for entry in self.model if not entry.resumes}
        for rank, floor in enumerate(self.floors):
            if rank == served:
                self.credits[rank] = max(0.0, self.credits[rank] - (1 - floor) * tokens)
            elif rank in ranks:
                self.credits[rank] += floor * tokens

    def _is_next(self, went_by: int, waiting: Waiting) -> None:
        ticket = waiting.ticket
        if resuming := [entry for entry in self.model if entry.resumes]:
            assert went_by == RESUMES
            assert ticket is min(resuming, key=lambda e: (e.ticket.queued_s, e.leave_s, e.ticket.id)).ticket
            return
        ranks = {entry.ticket: entry.rank(self.now) for entry in self.model}
        assert ranks[ticket] == waiting.rank
        best = min(ranks.values())
        if went_by >= 0:
            self._is_no_later_than(best, waiting)
        else:
            assert waiting.rank > best
            assert self.credits[waiting.rank] == pytest.approx(self.queue.lane("m")._credits[waiting.rank])
            assert self.credits[waiting.rank] + 1e-6 >= ticket.request.prompt_tokens
        peers = [entry for entry in self.model if ranks[entry.ticket] == waiting.rank]
        own = [entry for entry in peers if entry.ticket.request.tenant == ticket.request.tenant]
        assert min(own, key=lambda entry: entry.order(self.now)).ticket is ticket
        served = self.queue.lane("m")._counters[waiting.rank].served
        assert served[ticket.request.tenant] == min(served[entry.ticket.request.tenant] for entry in peers)

    def _is_no_later_than(self, best: int, waiting: Waiting) -> None:
        """Nobody has the best rank but him, or whoever does has not aged as much, or was served as much."""
        if waiting.rank == BATCH:
            assert best == BATCH
            return
        went_by = {entry.ticket: entry.goes_by(self.now) for entry in self.model}[waiting.ticket]
        served = self.queue.lane("m")._counters[0].served
        own = served[waiting.ticket.request.tenant]
        for rank in {entry.rank(self.now) for entry in self.model} - {waiting.rank, BATCH}:
            # Its first is not known here where tenants were served alike: one of them must come later.
            those = [entry for entry in self.model if entry.rank(self.now) == rank]
            least = min(served[entry.ticket.request.tenant] for entry in those)
            firsts = [e for e in those if served[e.ticket.request.tenant] == least]
            by_tenant = {e.ticket.request.tenant for e in firsts}
            heads = [
                min((e for e in firsts if e.ticket.request.tenant == tenant), key=lambda e: e.order(self.now))
                for tenant in by_tenant
            ]
            assert any((e.goes_by(self.now), least) >= (went_by, own) for e in heads)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
