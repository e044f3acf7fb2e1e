"""The queue's order against a naive one that sorts everything for every question."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from batching.placement import Need
from batching.queue import Waiting, WaitingQueue
from batching.request import ServiceTier
from batching.ticket import Ticket, TicketId, TicketState
from config.schema import Queue
from tests.support.scheduling import request

AGING_S = 5.0
MAX_WAIT_S = 40.0


class QueueMachine(RuleBasedStateMachine):
    """The model keeps tickets in a list and ranks by arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ids = 0
        self.queue = WaitingQueue(Queue(max_wait_s=MAX_WAIT_S, aging_s=AGING_S))
        self.model: list[tuple[Ticket, float]] = []  # with the moment it leaves

    @rule(
        tenant=st.sampled_from("xyz"),
        tier=st.sampled_from(ServiceTier),
        deadline=st.one_of(st.none(), st.floats(1, 60)),
        tokens=st.integers(1, 500),
    )
    def add(self, tenant: str, tier: ServiceTier, deadline: float | None, tokens: int) -> None:
        self.ids += 1
        wanted = request(
            f"r{self.ids}",
            tenant=tenant,
            service_tier=tier,
            prompt_tokens=tokens,
            deadline_s=None if deadline is None else self.now + deadline,
        )
        ticket = Ticket(TicketId(self.ids), wanted, self.now)
        need = Need(
            request=wanted,
            ticket=ticket.id,
            forecast_tokens=1,
            expected_tokens=1,
            ttft_objective_s=1.0,
            tpot_objective_s=1.0,
        )
        self.queue.add(ticket, need)
        latest = self.now + MAX_WAIT_S
        own = latest if deadline is None else self.now + deadline
        self.model.append((ticket, own if tier is ServiceTier.BATCH else min(own, latest)))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.model:
            entry = data.draw(st.sampled_from(self.model))
            waiting = self.queue.get(entry[0])
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
        assert expired == [t for t, leave in sorted(self.model, key=lambda e: (e[1], e[0].id)) if leave <= self.now]
        self.model = [entry for entry in self.model if entry[1] > self.now]

    @rule(count=st.integers(1, 4))
    def place(self, count: int) -> None:
        """Who is popped has the best rank, nobody of its tenant goes before it, and a tenant's turn follows its counter."""
        self.queue.lift(self.now)
        lane = self.queue.lane("m")
        for _ in range(min(count, len(self.model))):
            waiting = lane.pop()
            assert waiting is not None
            self._is_next(waiting)
            self.queue.leave(waiting, TicketState.PLACED)
            self.model = [entry for entry in self.model if entry[0] is not waiting.ticket]
            lane.charge(
                waiting.rank, waiting.ticket.request.tenant, waiting.ticket.request.prompt_tokens, dispatch=True
            )

    @rule(count=st.integers(1, 4))
    def look_past(self, count: int) -> None:
        """Putting back what fitted nowhere leaves the order as it was."""
        self.queue.lift(self.now)
        lane = self.queue.lane("m")
        aside = [waiting for _ in range(count) if (waiting := lane.pop()) is not None]
        for waiting in aside:
            lane.push(waiting, arrives=False)
        again = [waiting for _ in range(count) if (waiting := lane.pop()) is not None]
        assert sorted(w.rank for w in again) == sorted(w.rank for w in aside)
        assert len({id(w) for w in again}) == len(aside)
        for waiting in again:
            lane.push(waiting, arrives=False)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.queue) == len(self.model) == self.queue.lane("m").size
        assert self.queue.tokens == sum(ticket.request.prompt_tokens for ticket, _ in self.model)
        assert self.queue.next_deadline() == min((leave for _, leave in self.model), default=None)

    def _rank(self, ticket: Ticket) -> int:
        lifts = sum(self.now >= ticket.queued_s + AGING_S * step for step in (1, 2, 3))
        return max(0, ticket.request.service_tier - lifts)

    def _is_next(self, waiting: Waiting) -> None:
        ticket = waiting.ticket
        assert self._rank(ticket) == min(self._rank(other) for other, _ in self.model) == waiting.rank
        peers = [(t, leave) for t, leave in self.model if self._rank(t) == waiting.rank]
        own = [
            (min(e[1], e[0].queued_s + MAX_WAIT_S), e[0].id)
            for e in peers
            if e[0].request.tenant == ticket.request.tenant
        ]
        assert min(own)[1] == ticket.id  # earliest deadline, then arrival
        served = self.queue.lane("m")._ranks[waiting.rank]._served
        assert served[ticket.request.tenant] == min(served[t.request.tenant] for t, _ in peers)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
