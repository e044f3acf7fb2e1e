"""The scheduler against a naive model, under any interleaving of arrivals, tokens, endings and changes of the fleet."""

from math import ceil
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from batching.placement import blocks_if_fits
from batching.replica import TRANSITIONS, EngineLoad, Lifecycle
from batching.request import Outcome, Rejected, ReplicaId, ServiceTier
from batching.scheduler import Scheduler
from batching.ticket import Decision, Evicted, Lease, LeaseId, Placed, Ticket, TicketState
from config.schema import CostTier, ModelKind, Queue, Scheduling
from tests.support.scheduling import profile, request

MODELS = ("m", "n")
PROFILES = (
    profile("a", kv_blocks=40, max_num_seqs=4, max_num_batched_tokens=256, max_model_len=600),
    profile("b", kv_blocks=80, max_num_seqs=3, gpu="A10-24G", cost_tier=CostTier.SPOT, usd_per_hour=0.5),
    profile("c", kv_blocks=None, max_num_seqs=None, max_num_batched_tokens=None, block_size=None, max_model_len=None),
    profile("d", models=dict.fromkeys(MODELS, ModelKind.CHAT), kv_blocks=60, cost_tier=CostTier.RESERVED),
)
CONFIG = Scheduling(head_protection_s=1.0)


class SchedulerMachine(RuleBasedStateMachine):
    """Tickets and leases as a reader of the contract would keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.count = 0
        self.scheduler = Scheduler(CONFIG, Queue(max_requests=30, max_wait_s=20.0, aging_s=2.0))
        self.waiting: dict[int, Ticket] = {}
        self.ended: set[int] = set()
        self.leases: dict[LeaseId, Lease] = {}
        self.emitted: dict[LeaseId, int] = {}
        self.last: dict[tuple[str, str, ServiceTier], int] = {}

    @initialize(known=st.booleans())
    def fleet(self, known: bool):
        for replica in PROFILES if known else PROFILES[2:3]:
            self.scheduler.add_replica(replica, Lifecycle.READY, 0.0)

    # -- what may happen ---------------------------------------------------------------------------------------------

    @rule(
        model=st.sampled_from(MODELS),
        tenant=st.sampled_from("xyz"),
        tier=st.sampled_from(ServiceTier),
        prompts=st.lists(st.integers(1, 500), min_size=1, max_size=8),
        output=st.one_of(st.none(), st.integers(1, 400)),
        sequences=st.sampled_from((1, 1, 1, 3)),
        prefix=st.integers(0, 3),
        deadline=st.one_of(st.none(), st.floats(0.5, 30)),
        streaming=st.booleans(),
    )
    def submit(
        self,
        model: str,
        tenant: str,
        tier: ServiceTier,
        prompts: list[int],
        output: int | None,
        sequences: int,
        prefix: int,
        deadline: float | None,
        streaming: bool,
    ):
        for prompt in prompts:
            self._submit(
                model=model,
                tenant=tenant,
                service_tier=tier,
                prompt_tokens=prompt,
                max_output_tokens=output,
                sequences=sequences,
                prefix_hashes=tuple(range(prefix)),
                prefix_chunk_tokens=64,
                deadline_s=None if deadline is None else self.now + deadline,
                streaming=streaming,
            )
        self.advance()

    def _submit(self, **values: Any):
        self.count += 1
        try:
            ticket = self.scheduler.submit(request(f"r{self.count}", **values), self.now)
        except Rejected:
            return
        assert ticket.state is TicketState.QUEUED
        self.waiting[ticket.id] = ticket

    @rule(data=st.data())
    def cancel(self, data: st.DataObject):
        if self.waiting:
            ticket = self.waiting.pop(data.draw(st.sampled_from(sorted(self.waiting))))
            assert self.scheduler.cancel(ticket, self.now)
            assert not self.scheduler.cancel(ticket, self.now)
            assert ticket.state is TicketState.CANCELLED
            self.ended.add(ticket.id)

    @rule(seconds=st.sampled_from((0.01, 0.3, 1.1, 7.0)))
    def elapse(self, seconds: float):
        self.now += seconds

    @rule(data=st.data(), tokens=st.integers(0, 150))
    def emit(self, data: st.DataObject, tokens: int):
        if self.leases:
            lease_id = data.draw(st.sampled_from(sorted(self.leases)))
            self.scheduler.on_first_token(lease_id, self.now)
            self.emitted[lease_id] += tokens
            self.scheduler.on_tokens(lease_id, self.emitted[lease_id], self.now)
        self.advance()

    @rule(
        data=st.data(),
        outcome=st.sampled_from((Outcome.COMPLETED, Outcome.CANCELLED, Outcome.FAILED)),
        times=st.integers(1, 3),
    )
    def finish(self, data: st.DataObject, outcome: Outcome, times: int):
        for _ in range(min(times, len(self.leases))):
            lease_id = data.draw(st.sampled_from(sorted(self.leases)))
            del self.leases[lease_id]
            tokens = self.emitted.pop(lease_id)
            assert self.scheduler.finish(lease_id, self.now, outcome=outcome, cached_tokens=10, output_tokens=tokens)
            assert not self.scheduler.finish(lease_id, self.now, outcome=outcome)
        self.advance()

    @rule(data=st.data())
    def lifecycle(self, data: st.DataObject):
        states = self.scheduler.states(self.now)
        state = data.draw(st.sampled_from(states))
        target = data.draw(st.sampled_from(sorted(TRANSITIONS[state.lifecycle])))
        self.scheduler.set_lifecycle(state.profile.id, target, self.now)

    @rule()
    def recover(self):
        """As many bad states as good ones would leave little to schedule on."""
        for state in self.scheduler.states(self.now):
            if Lifecycle.READY in TRANSITIONS[state.lifecycle]:
                self.scheduler.set_lifecycle(state.profile.id, Lifecycle.READY, self.now)
        self.advance()

    @rule(
        data=st.data(),
        usage=st.one_of(st.none(), st.floats(0, 1)),
        waiting=st.one_of(st.none(), st.integers(0, 3)),
        age=st.sampled_from((0.0, 0.5, 20.0)),
    )
    def observe(self, data: st.DataObject, usage: float | None, waiting: Any, age: float):
        state = data.draw(st.sampled_from(self.scheduler.states(self.now)))
        load = EngineLoad(observed_s=self.now - age, waiting=waiting, kv_usage_ratio=usage)
        self.scheduler.observe(state.profile.id, load, self.now)

    @rule(name=st.sampled_from(PROFILES), kv_blocks=st.sampled_from((20, 50, 90)), usd=st.floats(0, 10))
    def update(self, name: Any, kv_blocks: int, usd: float):
        present = {state.profile.id for state in self.scheduler.states(self.now)}
        if name.id in present:
            self.scheduler.update_profile(
                profile(name.id, models=name.models, kv_blocks=kv_blocks, usd_per_hour=usd), self.now
            )

    @rule()
    def advance(self):
        before = {state.profile.id: state for state in self.scheduler.states(self.now)}
        decisions = self.scheduler.advance(self.now)
        for decision in decisions:
            self._take(decision)
        self._within_budgets(before, decisions)
        self._work_conserving()
        assert self.scheduler.advance(self.now) == []

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def ledgers_add_up(self):
        self.scheduler.check()
        states = self.scheduler.states(self.now)
        assert sum(state.running for state in states) == sum(x.request.sequences for x in self.leases.values())

    @invariant()
    def queue_counts_what_waits(self):
        statistics = self.scheduler.queue_statistics(self.now)
        assert sum(row.depth for row in statistics) == len(self.waiting)
        assert sum(row.tokens for row in statistics) == sum(t.request.prompt_tokens for t in self.waiting.values())
        assert all(ticket.state is TicketState.QUEUED for ticket in self.waiting.values())

    def teardown(self):
        """However it went: leases end, replicas come back, and what still waits is placed or leaves at its deadline."""
        for lease_id in list(self.leases):
            assert self.scheduler.finish(lease_id, self.now, outcome=Outcome.FAILED)
        self.leases.clear()
        for _ in range(200):
            due = self.scheduler.next_deadline()
            for decision in self.scheduler.advance(self.now):
                self._take(decision)
            for lease_id in list(self.leases):
                self.scheduler.finish(lease_id, self.now, outcome=Outcome.COMPLETED, output_tokens=5)
            self.leases.clear()
            if not self.waiting:
                break
            self.now = max(self.now, due or self.now)
        assert not self.waiting
        assert all(state.reserved_blocks == state.running == 0 for state in self.scheduler.states(self.now))

    def _take(self, decision: Decision) -> None:
        ticket = self.waiting.pop(decision.ticket.id)  # KeyError: decided twice, or never queued
        assert ticket.id not in self.ended
        self.ended.add(ticket.id)
        if isinstance(decision, Evicted):
            assert ticket.state is TicketState.EVICTED
            return
        assert ticket.state is TicketState.PLACED
        assert decision.lease.id not in self.leases
        assert decision.lease.replica == decision.placement.replica
        self.leases[decision.lease.id] = decision.lease
        self.emitted[decision.lease.id] = 0

    def _within_budgets(self, before: Any, decisions: list[Decision]) -> None:
        """Replays the placements on the state before: each fitted when it was made, or the replica was empty."""
        records = self.scheduler._fleet.leases
        used = {name: [s.running, s.prefill_tokens, s.reserved_blocks] for name, s in before.items()}
        for placed in (d for d in decisions if isinstance(d, Placed)):
            state, record = before[placed.lease.replica], records[placed.lease.id]
            # What `advance` lets go of first (stale figures, assumed first tokens) is on neither side of the comparison.
            now = next(s for s in self.scheduler.states(self.now) if s.profile.id == placed.lease.replica)
            budget = used[placed.lease.replica]
            blank = budget[0] == 0
            budget[0] += placed.lease.request.sequences
            budget[2] += record.reserved_blocks
            limits = state.profile
            assert state.lifecycle is Lifecycle.READY
            if blank:
                continue
            assert state.max_num_seqs is None or budget[0] <= state.max_num_seqs
            if limits.kv_blocks is not None:
                free = limits.kv_blocks - ceil(CONFIG.kv_watermark_ratio * limits.kv_blocks) - now.foreign_blocks
                assert budget[2] <= free
        for state in self.scheduler.states(self.now):
            took = [d for d in decisions if isinstance(d, Placed) and d.lease.replica == state.profile.id]
            budget_tokens = state.profile.max_num_batched_tokens
            if took and budget_tokens and state.prefill_tokens > CONFIG.prefill_chunks * budget_tokens:
                unprefilled = [
                    r for r in self.scheduler._fleet[state.profile.id].ledger.leases.values() if r.prefill_tokens
                ]
                assert len(unprefilled) == 1  # a prompt longer than the budget, alone

    def _work_conserving(self) -> None:
        for waiting in self.scheduler._queue:
            for live in self.scheduler._fleet.serving(waiting.ticket.request.model):
                assert blocks_if_fits(waiting.need, live.offer) is None, (waiting, live)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_replica_ids_of_the_machine_are_distinct():
    """The naive model keys budgets by replica id, so ids must differ."""
    assert {replica.id for replica in PROFILES} == {ReplicaId(name) for name in "abcd"}
