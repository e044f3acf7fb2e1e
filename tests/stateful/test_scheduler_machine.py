"""The scheduler against a naive model, under any interleaving of arrivals, tokens, endings and changes of the fleet."""

from collections.abc import Set as AbstractSet
from dataclasses import replace
from math import ceil, inf, sqrt
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from batching.blocks import blocks_for
from batching.decision_record import offer_values, told
from batching.fleet import _REPACE_S
from batching.kv_forecast import HORIZONS
from batching.lane import Waiting
from batching.ledger import LeaseRecord
from batching.live_replica import _TIGHT_RATIO, LiveReplica
from batching.placement import Score, blocks_if_fits, cached_on, could_ever_hold, place, score_with_room
from batching.replica import TRANSITIONS, EngineLoad, Lifecycle
from batching.request import Outcome, Reason, Rejected, ReplicaId, Request, ServiceTier
from batching.scheduler import Scheduler
from batching.ticket import Decision, Evicted, Lease, LeaseId, Ticket, TicketState
from batching.window import Window
from config.schema import CostTier, Mechanism, ModelKind, Queue, Scheduling, TierShares
from tests.support.scheduling import profile, request

MODELS = ("m", "n")
PROFILES = (
    profile("a", kv_blocks=40, max_num_seqs=4, max_num_batched_tokens=256, max_model_len=600),
    profile("b", kv_blocks=80, max_num_seqs=3, gpu="A10-24G", cost_tier=CostTier.SPOT, usd_per_hour=0.5),
    profile("c", kv_blocks=None, max_num_seqs=None, max_num_batched_tokens=None, block_size=None, max_model_len=None),
    profile("d", models=dict.fromkeys(MODELS, ModelKind.CHAT), kv_blocks=60, cost_tier=CostTier.RESERVED),
)
WAITING, BYTES, WATERMARK, CHUNKS = 30, 4000, 0.02, 2.0
SHARES = TierShares(flex=0.6, batch=0.4)


class SchedulerMachine(RuleBasedStateMachine):
    """Tickets and leases as a reader of the contract would keep them."""

    profiles = PROFILES
    scale = 1  # of prompts, shared beginnings and caches

    def __init__(self, without: AbstractSet[Mechanism] = frozenset()) -> None:
        super().__init__()
        self.now = 0.0
        self.count = 0
        self.without = without
        config = Scheduling(
            head_protection_s=1.0,
            bypass_limit=WAITING,
            kv_watermark_ratio=WATERMARK,
            prefill_chunks=CHUNKS,
            without=frozenset(without),
        )
        self.scheduler = Scheduler(
            config, Queue(max_requests=WAITING, max_bytes=BYTES, max_wait_s=20.0, aging_s=2.0, tier_shares=SHARES)
        )
        fleet: Any = self.scheduler._fleet
        self.open, fleet.open = fleet.open, self._opening
        self.late_at: dict[int, float] = {}  # of those that may be held: until when
        self.waiting: dict[int, Ticket] = {}
        self.ended: set[int] = set()
        self.leases: dict[LeaseId, Lease] = {}
        self.emitted: dict[LeaseId, int] = {}
        self.last: dict[tuple[str, str, ServiceTier], int] = {}

    @initialize(known=st.booleans())
    def fleet(self, known: bool):
        for replica in self.profiles if known else self.profiles[2:3]:
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
        age=st.sampled_from((0.0, 0.0, 0.7, 3.0)),
        known=st.booleans(),
        body=st.sampled_from((0, 100, 1000)),
        resumes=st.sampled_from((False, False, False, True)),
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
        age: float,
        known: bool,
        body: int,
        resumes: bool,
    ):
        for prompt in prompts:
            self._submit(
                model=model,
                tenant=tenant,
                service_tier=tier,
                prompt_tokens=prompt * self.scale,
                max_output_tokens=output,
                sequences=sequences,
                prefix_hashes=tuple(range(prefix)),
                prefix_chunk_tokens=64 * self.scale,
                deadline_s=None if deadline is None else self.now + deadline,
                streaming=streaming,
                arrived_s=self.now - age,
                known_output_tokens=output if known else None,
                body_bytes=body,
                resumes=resumes,
                fingerprint=prompt,
            )
        self.advance()

    def _submit(self, **values: Any):
        self.count += 1
        wanted, shed = request(f"r{self.count}", **values), len(self.scheduler._shed)
        before = list(self.waiting.values())
        rejected: Rejected | None = None
        try:
            ticket = self.scheduler.submit(wanted, self.now)
        except Rejected as refused:
            rejected = refused
        if rejected is not None:
            assert len(self.scheduler._shed) == shed  # nobody goes for one that does not come
            assert not (wanted.resumes and rejected.reason in {Reason.QUEUE_FULL, Reason.OVERLOAD, Reason.DEADLINE})
            return
        for gone in self.scheduler._shed[shed:]:
            self._made_way(gone, wanted, [one for one in before if one.state is TicketState.QUEUED])
        self._within_bounds(wanted)
        assert ticket.state is TicketState.QUEUED
        self.waiting[ticket.id] = ticket
        waiting = self.scheduler._queue.get(ticket)
        assert waiting is not None
        if waiting.may_hold and not self.without & {Mechanism.HOLD, Mechanism.LATE_LAST}:
            late_s = self.scheduler._filling.late_at_s(waiting.need, self.now)
            assert late_s is not None
            self.late_at[ticket.id] = late_s

    def _made_way(self, gone: Decision, wanted: Request, stay: list[Ticket]) -> None:
        """Of the lowest tier that waits, or of the newcomer's own where a tenant has more of it."""
        assert isinstance(gone, Evicted)
        assert gone.reason is Reason.SHED
        left = gone.ticket.request
        assert not left.resumes
        assert not wanted.resumes
        assert left.service_tier >= wanted.service_tier
        if left.service_tier == wanted.service_tier:
            assert left.tenant != wanted.tenant
        elif not any(one.request.service_tier == left.service_tier for one in stay):
            event("shed: a whole tier")
        for one in stay:
            same = one.request.service_tier == left.service_tier and one.request.tenant == left.tenant
            assert not (same and one.id > gone.ticket.id and not one.request.resumes), "the newest goes first"

    def _within_bounds(self, wanted: Request) -> None:
        """In total and of each tier, as far as anybody can be refused; what resumes may be beyond them."""
        requests = [one.request for one in self.waiting.values() if one.state is TicketState.QUEUED] + [wanted]
        if wanted.resumes:
            return
        assert len(requests) <= WAITING
        assert sum(one.body_bytes for one in requests) <= BYTES
        for tier in ServiceTier:
            share = getattr(SHARES, tier.label)
            own = [one for one in requests if one.service_tier is tier and not one.resumes]
            assert len(own) <= max(1, int(share * WAITING))
            assert sum(one.body_bytes for one in own) <= int(share * BYTES)

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

    @rule(
        data=st.data(),
        left_s=st.one_of(st.none(), st.sampled_from((-1.0, 0.5, 3.0, 15.0))),
        longest_s=st.sampled_from((inf, inf, 0.3, 3.0)),
        reclaims=st.booleans(),
    )
    def notice(self, data: st.DataObject, left_s: float | None, longest_s: float, reclaims: bool):
        """A replica will be gone, or perhaps, or that was taken back."""
        state = data.draw(st.sampled_from(self.scheduler.states(self.now)))
        if reclaims and Lifecycle.RECLAIMING in TRANSITIONS[state.lifecycle]:
            self.scheduler.set_lifecycle(state.profile.id, Lifecycle.RECLAIMING, self.now)
        window = None if left_s is None else Window(self.now + left_s, longest_s)
        self.scheduler.set_window(state.profile.id, window, self.now)
        self.advance()

    @rule()
    def recover(self):
        """As many bad states as good ones would leave little to schedule on."""
        for state in self.scheduler.states(self.now):
            self.scheduler.set_window(state.profile.id, None, self.now)
            if Lifecycle.READY in TRANSITIONS[state.lifecycle]:
                self.scheduler.set_lifecycle(state.profile.id, Lifecycle.READY, self.now)
        self.advance()

    @rule(
        data=st.data(),
        usage=st.one_of(st.none(), st.floats(0, 1)),
        waiting=st.one_of(st.none(), st.integers(0, 3)),
        age=st.sampled_from((0.0, 0.5, 20.0)),
        preemptions=st.one_of(st.none(), st.integers(0, 5)),
    )
    def observe(self, data: st.DataObject, usage: float | None, waiting: Any, age: float, preemptions: Any):
        state = data.draw(st.sampled_from(self.scheduler.states(self.now)))
        load = EngineLoad(
            observed_s=self.now - age, waiting=waiting, kv_usage_ratio=usage, preemptions_total=preemptions
        )
        self.scheduler.observe(state.profile.id, load, self.now)

    @rule(name=st.sampled_from(PROFILES), kv_blocks=st.sampled_from((20, 50, 90)), usd=st.floats(0, 10))
    def update(self, name: Any, kv_blocks: int, usd: float):
        present = {state.profile.id for state in self.scheduler.states(self.now)}
        if name.id in present:
            self.scheduler.update_profile(
                profile(name.id, models=name.models, kv_blocks=kv_blocks * self.scale, usd_per_hour=usd), self.now
            )

    @rule()
    def advance(self):
        for decision in self.scheduler.advance(self.now):
            self._take(decision)
        self._work_conserving()
        assert self.scheduler.advance(self.now) == []

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def ledgers_add_up(self):
        self.scheduler.check()
        states = self.scheduler.states(self.now)
        assert sum(state.running for state in states) == sum(x.request.sequences for x in self.leases.values())

    @invariant()
    def what_an_offer_told_is_what_it_is(self):
        """Whoever writes one lets go of the values that the decision ledger has of it."""
        offers = [live.offer for live in self.scheduler._fleet]
        assert list(told(offers)) == [offer_values(offer) for offer in offers]

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
        # Who would be late there waits, as long as it could still be in time elsewhere.
        assert decision.placement.score.meets_objective or self.now >= self.late_at.get(ticket.id, 0.0)
        self.leases[decision.lease.id] = decision.lease
        self.emitted[decision.lease.id] = 0

    # -- what every placement must respect ---------------------------------------------------------------------------

    def _opening(self, record: LeaseRecord, assume_first_token_s: float | None) -> None:
        """Stands before the fleet's own `open`: the replica as it is at this very moment, by arithmetic of our own."""
        live = self.scheduler._fleet[record.lease.replica]
        assert live.lifecycle is Lifecycle.READY or may_work(live, self.now)
        if (window := live.offer.window) is not None:
            decode_s = record.tpot_s * max(0, record.forecast_tokens - 1)
            assert self.now + record.ttft_s + decode_s <= window.ends_s
            assert record.prefill_s + decode_s <= window.longest_s + 1e-9
        if live.ledger.leases:  # an empty one takes whatever it could ever hold
            request = record.lease.request
            assert request.sequences <= live.max_num_seqs - live.ledger.sequences
            assert prefill_fits(live, record.prefill_tokens, self.without)
            assert kv_fits(live, request, record.forecast_tokens, record.lengths, record.output_bound, self.without)
            assert prompt_fits(live, request)
            if Mechanism.ITL_GUARD not in self.without:
                assert live.pace.due_s(self.now) >= self.now  # nobody's credit is used up
        self.open(record, assume_first_token_s)

    def _why(self, waiting: Waiting, live: LiveReplica) -> str | None:
        """The first reason for which a request is not placed on this replica; None: there is none."""
        need, offer = waiting.need, live.offer
        request, new = need.request, need.request.prompt_tokens - cached_on(need, offer)
        fits = blocks_if_fits(need, offer, self.now) is not None
        batch = request.service_tier is ServiceTier.BATCH
        if (
            batch
            and not request.resumes
            and Mechanism.SPARING not in self.without
            and not self.scheduler._fleet.spares(request.model, self.now)
        ):
            return "enough of batch is being prefilled beside those who are watched"
        if live.retired or not (live.lifecycle is Lifecycle.READY or may_work(live, self.now)):
            return "not ready"
        if offer.window is not None and place(need, (offer,), self.now) is None:
            there = score_with_room(need, replace(offer, window=None), self.now)
            tokens = min(need.forecast_tokens, offer.max_model_len - request.prompt_tokens)
            if there is not None and not ends_within(offer.window, tokens, there, self.now):
                return "it would not end before the replica goes"
        if offer.protected_for not in {None, waiting.ticket.id}:
            return "kept for a head that was passed over"
        if not could_ever_hold(request, offer, min_output_tokens=need.min_output_tokens):
            return "could never hold it"
        if live.ledger.leases:
            if request.sequences > live.max_num_seqs - live.ledger.sequences:
                return "sequences"
            if not prefill_fits(live, new, self.without):
                return "prefill budget"
            if batch and not offer.has_to_spare(new):
                return "room spared for who is watched"
            if not kv_fits(live, request, need.forecast_tokens, need.lengths, need.output_bound, self.without):
                return "KV blocks"
            if not reserve_fits(live, request, need.forecast_tokens) and waiting.tested_epoch >= offer.epoch:
                return "KV blocks until somebody ends"  # the forecast was eased by tokens alone, which nobody looks at
            if not fits:
                return "credit of the streams, or of those to come" if offer.binding_s(self.now) < inf else None
        if live.ledger.leases and offer.wanted_due_s < inf:
            due_s = self.scheduler.next_deadline()
            assert due_s is not None
            assert due_s <= self.now + _REPACE_S
            return "streams that were expected did not come: time alone tells that, and a timer looks"
        if offer.window is not None and fits and waiting.tested_epoch >= offer.epoch:
            return "it would have run too long, and only tokens have told that it would not"
        if self._awaits_holder(waiting):
            return "held for the replica that holds its beginning"
        held = self.now < self.late_at.get(waiting.ticket.id, 0.0)
        return "held" if held and place(need, (offer,), self.now, hold=True) is None else None

    def _awaits_holder(self, waiting: Waiting) -> bool:
        """Only for one that is ready, and neither past its timer nor past the time at which it could be met."""
        if waiting.held_for is None or self.now >= waiting.held_until_s:
            return False
        assert Mechanism.PREFIX_HOLD not in self.without
        holder = self.scheduler._fleet[waiting.held_for]
        due_s = self.scheduler.next_deadline()
        assert due_s is not None
        assert due_s <= waiting.held_until_s
        return holder.lifecycle is Lifecycle.READY and self.now < self.late_at.get(waiting.ticket.id, inf)

    def _work_conserving(self) -> None:
        """After a pass everything that waits has, for every replica, a reason to."""
        for waiting in self.scheduler._queue:
            for live in self.scheduler._fleet.serving(waiting.ticket.request.model):
                why = self._why(waiting, live)
                event(f"waits: {why}")
                assert why is not None, (waiting, live, live.offer)


def may_work(live: LiveReplica, now: float) -> bool:
    """A notice with a deadline runs, and there is time left."""
    window = live.offer.window
    return live.lifecycle is Lifecycle.RECLAIMING and window is not None and now < window.ends_s < inf


def ends_within(window: Window, tokens: int, score: Score, now: float) -> bool:
    """By arithmetic of our own."""
    decode_s = score.tpot_s * max(0, tokens - 1)
    if score.prefill_s + decode_s > window.longest_s:
        return False
    return now + window.ttft_ratio * score.ttft_s + window.tpot_ratio * decode_s <= window.ends_s


def prefill_fits(live: LiveReplica, new: int, without: AbstractSet[Mechanism]) -> bool:
    """Two steps' worth; a longer prompt goes behind at most what one of them takes."""
    step, ahead = live.profile.max_num_batched_tokens, live.ledger.prefill_tokens
    if step is None or Mechanism.LATE_BINDING in without:
        return True
    return ahead + new <= CHUNKS * step or ahead <= (CHUNKS - 1) * step


def reserve_fits(live: LiveReplica, request: Request, forecast: int) -> bool:
    """Everybody's high quantile, in blocks, beside what is kept free and what is not ours."""
    blocks = live.profile.kv_blocks
    if blocks is None:
        return True
    reserve = min(forecast, live.offer.max_model_len - request.prompt_tokens)
    wanted = blocks_for(request.prompt_tokens, reserve, request.sequences, live.block_size)
    return live.ledger.reserved_blocks + wanted <= blocks - ceil(WATERMARK * blocks) - live.foreign_blocks


def kv_fits(
    live: LiveReplica, request: Request, forecast: int, lengths: Any, bound: int, without: AbstractSet[Mechanism]
) -> bool:
    """Everybody's high quantile, or else - at the replica's margin - the forecast of the sum at every horizon."""
    if reserve_fits(live, request, forecast):
        return True
    blocks, size = live.profile.kv_blocks, live.block_size
    assert blocks is not None
    if Mechanism.KV_FORECAST in without or live.ledger.reserved_blocks + live.foreign_blocks < _TIGHT_RATIO * blocks:
        return False
    free = blocks - ceil(WATERMARK * blocks) - live.foreign_blocks
    for index, ahead in enumerate(HORIZONS):
        mean = variance = 0.0
        for record in live.ledger.leases.values():
            sequences, rest = record.lease.request.sequences, max(0, record.output_bound - record.emitted_per_sequence)
            tokens = record.held_tokens + sequences * (size // 2 + min(ahead, rest))
            assert record.lengths is not None
            lives = record.lengths.survival(record.emitted_per_sequence, record.output_bound)[index]
            mean, variance = mean + tokens * lives, variance + tokens**2 * lives * (1 - lives)
        own = request.prompt_tokens + request.sequences * (size // 2 + min(ahead, bound))
        mean += own * lengths.survival(0, bound)[index]
        if mean + live.kv_risk.margin * sqrt(variance) > free * size + 1e-6:
            return False
    return True


def prompt_fits(live: LiveReplica, request: Request) -> bool:
    """What is held now and the prompt itself: whatever the forecast says, no placement alone makes the cache overflow."""
    blocks = live.profile.kv_blocks
    if blocks is None:
        return True
    return live.ledger.held_tokens + request.prompt_tokens <= (blocks - live.foreign_blocks) * live.block_size


class LongPrompts(SchedulerMachine):
    """Prompts that take seconds, so that their beginnings are worth waiting for."""

    profiles = tuple(
        profile(one.id, models=one.models, kv_blocks=1600, gpu="L4-24G", max_model_len=None, usd_per_hour=1.0)
        for one in PROFILES
    )
    scale = 20


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


TestLongPrompts = LongPrompts.TestCase
TestLongPrompts.settings = settings(TestScheduler.settings, max_examples=200)


@pytest.mark.parametrize("mechanism", Mechanism)
def test_without_a_mechanism(mechanism: Mechanism):
    """Whatever is switched off, the contract holds: one decision each, budgets, leases given back, and a reason to wait."""
    few = settings(max_examples=8, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(lambda: SchedulerMachine({mechanism}), settings=few)


def test_without_any_mechanism():
    """All of them switched off."""
    few = settings(max_examples=8, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(lambda: SchedulerMachine(set(Mechanism)), settings=few)


def test_replica_ids_of_the_machine_are_distinct():
    """Replicas are drawn by their id, so ids must differ."""
    assert {replica.id for replica in PROFILES} == {ReplicaId(name) for name in "abcd"}
