"""The scheduler: which queued request joins which replica's running batch, and when.

Synchronous and pure: every method takes the time, none waits, logs or opens anything. The shell calls `advance` after every
event that may have changed the answer and at `next_deadline`, sends what was `Placed` and answers what was `Evicted`.
Wires queue, fleet, estimators and the pass over them together; each of those decides its own matter.
"""

from collections.abc import Mapping
from itertools import count
from math import inf

from batching.admission import refuse_unservable
from batching.arrears import end_s, next_step_s, overdue, patience_s, predictions_known
from batching.decisions import Decisions
from batching.desired import Desired
from batching.dispatching import Dispatching
from batching.estimators import Estimators
from batching.experience import Experience
from batching.filling import Filling
from batching.fleet import Fleet
from batching.hedging import Hedging, Refusal
from batching.joined import Joined
from batching.lane import Waiting
from batching.leaving import Leaving
from batching.ledger import Counts
from batching.lessons import learn
from batching.meter import Till
from batching.overload import Overload, Refused
from batching.policies.policy import Policy
from batching.prefix_belief import PrefixBelief
from batching.queue import QueueStatistics, WaitingQueue
from batching.replica import CACHE_LOST, EngineLoad, Lifecycle, ReplicaProfile, ReplicaState
from batching.request import Outcome, Reason, Rejected, ReplicaId, Request
from batching.retry_budget import RetryBudget
from batching.stake import Stake
from batching.ticket import Decision, LeaseId, Ticket, TicketId, TicketState
from batching.window import Window
from config.schema import Mechanism, Queue, Scheduling


class Scheduler:
    """Owes each ticket one Decision; is owed one `finish` for each lease.

    `stale_after_s`: how long a load report counts. `policy`: another router's rule in place of ours, for comparison.
    `decisions`: a ledger that is told of every placement and its end.
    """

    def __init__(
        self,
        scheduling: Scheduling,
        queue: Queue,
        *,
        stale_after_s: float = 10.0,
        policy: Policy | None = None,
        decisions: Decisions | None = None,
    ) -> None:
        without = scheduling.without
        self._estimators = Estimators(
            output_quantile=scheduling.kv_forecast_quantile, doubting=Mechanism.AUDIT not in without
        )
        self._queue = WaitingQueue(
            queue, by_deadline=Mechanism.DEADLINES not in without, with_floors=Mechanism.FLOORS not in without
        )
        self._fleet = Fleet(scheduling, stale_after_s=stale_after_s)
        self.stake = Stake(self._fleet, self._queue)
        early = policy is None and Mechanism.EARLY_REFUSAL not in without
        self._overload = Overload(queue, self._queue, early=early)
        self.prefixes = PrefixBelief(self._fleet)
        self._shed: list[Decision] = []  # evicted for somebody who came since the last pass
        self._policy = policy
        self._decisions = decisions
        self._filling: Filling | Dispatching
        self.retry_budget = RetryBudget(scheduling.retry_budget_ratio)  # for whoever asks twice, and why
        self._hedging: Hedging | None = None
        if policy is None:
            self._filling = Filling(scheduling, self._queue, self._fleet, self._estimators, self._overload, decisions)
            if scheduling.hedge.enabled:
                self._hedging = Hedging(
                    scheduling.hedge, self._fleet, self._queue, self._filling, self._ticket, self.retry_budget
                )
        else:
            self._filling = Dispatching(policy, self._queue, self._fleet, self._estimators, decisions)
        self.desired = Desired(scheduling, self._fleet, self._queue)
        self._leaving = Leaving(self._queue, self._fleet, self._filling, self._overload, self._estimators)
        self.experience = Experience(self._fleet, self._estimators)
        self.till = Till()  # who paid for the machines' time
        self._ticket_ids = count(1)
        self._draining = False

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(self, request: Request, now: float) -> Ticket:
        """A place in the queue, or `Rejected` at once where waiting cannot help. Call `advance` next.

        Others may have had to make way for it: `advance` says who.
        """
        if self._draining and not request.resumes:
            raise Rejected(Reason.DRAINING)
        refuse_unservable(request, self._fleet, self.desired, now)
        ticket = self._ticket(request, now)
        if request.resumes:
            self._queue.add(ticket, self._filling.need(request, ticket.id))
            return ticket
        if request.deadline_s is not None and request.deadline_s <= now:
            raise Rejected(Reason.DEADLINE)
        queue, making_way, promised = self._queue, list[Waiting](), False
        if not queue.has_place(request):
            making_way = self._overload.room_for(request, now, self._estimators.drain_rate(request.model, now))
        need = self._filling.need(request, ticket.id)
        late_at_s = self._filling.late_at_s(need, now)
        if (lane := queue.lanes.get(request.model)) is not None and lane.size:
            promised = self._overload.refuse_vain(need, lane, late_at_s, now)
        if making_way:
            self._shed += self._leaving.send(making_way, Reason.SHED, now)
        if not request.avoid:
            self.retry_budget.earn()
        queue.add(ticket, need, late_at_s, promised=promised)
        return ticket

    def cancel(self, ticket: Ticket, now: float) -> bool:  # noqa: ARG002 - time is an argument everywhere
        """Leaves the queue; False if it has left already. A lease is not touched: who owns it finishes it."""
        waiting = self._queue.get(ticket)
        if waiting is None:
            return False
        self._leaving.remove(waiting, TicketState.CANCELLED)
        return True

    def advance(self, now: float) -> list[Decision]:
        """Evicts what has waited too long, then fills the room there is. O(1) when nothing has changed."""
        self._fleet.elapse(now)
        decisions, self._shed = self._shed, []
        if self._queue.soonest_s <= now or self._fleet.lost_models or self._overload.flooded:
            decisions += self._leaving.due(now)
        placed = self._filling.fill(now)
        if self._hedging is not None:
            if placed:
                self._hedging.watch(placed)
            placed += self._hedging.advance(now)  # those who wait come first
        decisions += placed
        return decisions

    def next_deadline(self) -> float | None:
        """When `advance` must be called even if nothing happens; None while nothing waits, for a replica or a first token."""
        first_s = inf
        if self._hedging is not None and (time_s := self._hedging.next_deadline()) is not None:
            first_s = time_s
        if self._queue:
            for time_s in (self._queue.next_deadline(), self._fleet.next_deadline()):
                if time_s is not None and time_s < first_s:
                    first_s = time_s
        return first_s if first_s < inf else None

    def drain(self, now: float) -> list[Decision]:
        """Refuses what is new and evicts what waits, but for what resumes; leases run on."""
        self._draining = True
        shed, self._shed = self._shed, []
        leaving = [waiting for waiting in self._queue if not waiting.ticket.request.resumes]
        return [*shed, *self._leaving.send(leaving, Reason.DRAINING, now)]

    # -- leases ------------------------------------------------------------------------------------------------------

    def on_first_token(self, lease_id: LeaseId, now: float) -> None:
        """The prompt is prefilled; ignored after `finish`."""
        record = self._fleet.leases.get(lease_id)
        if record is not None and record.first_token_s is None:
            if self._hedging is not None:
                self._hedging.answered(record, now)
            self._fleet.first_token(record, now)
            if self._policy is not None:
                self._policy.first_token(record.lease.request, record.lease.replica, now)

    def on_tokens(self, lease_id: LeaseId, emitted_total: int, now: float) -> None:
        """Output so far, all sequences together; ignored after `finish`. O(1)."""
        record = self._fleet.leases.get(lease_id)
        if record is not None:
            record.last_token_s = now
            self._fleet.grow(record, emitted_total, now)
            more = record.emitted_tokens - record.charged_tokens
            if more > 0:
                record.charged_tokens += more
                self._queue.charge_output(record.lease.request, record.rank, more)

    def finish(
        self,
        lease_id: LeaseId,
        now: float,
        *,
        outcome: Outcome,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> bool:
        """Gives the lease back; False if it was given back before, so it is safe in a `finally`. Token counts: usage's."""
        record = self._fleet.leases.get(lease_id)
        if record is None:
            return False
        more = (output_tokens or 0) - record.charged_tokens
        if more > 0:
            record.charged_tokens += more
            self._queue.charge_output(record.lease.request, record.rank, more)
        if outcome is Outcome.COMPLETED:
            output = output_tokens or record.emitted_tokens
            live = self._fleet[record.lease.replica]
            live.ledger.completed(record, output)
            learn(record, live, self._estimators, now, prompt=prompt_tokens, cached=cached_tokens, output=output)
        if self._hedging is not None:
            if outcome is Outcome.COMPLETED:
                self._hedging.answered(record, now)
            self._hedging.ended(record)
        self._fleet.close(lease_id, now)
        if self._decisions is not None:
            self._decisions.finished(
                record, now, outcome,
                prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, output_tokens=output_tokens,
            )  # fmt: skip
        if self._policy is not None:
            if outcome is Outcome.COMPLETED and output_tokens is not None:
                self._policy.answered(record.lease.request, output_tokens, now)
            self._policy.finished(record.lease.request, record.lease.replica, now)
        return True

    def predicted_end_s(self, lease_id: LeaseId, now: float) -> float:
        """When its answer will be whole; `now` for one that was given back."""
        record = self._fleet.leases.get(lease_id)
        return now if record is None else end_s(record, now)

    # -- replicas ----------------------------------------------------------------------------------------------------

    def add_replica(self, profile: ReplicaProfile, lifecycle: Lifecycle, now: float) -> None:
        """Raises ValueError for an id that is there and was not removed."""
        self._fleet.add(profile, lifecycle)
        live = self._fleet[profile.id]
        live.meter.begin(profile, lifecycle, live.ledger.leases.values(), now)
        self.till.add(live.meter)
        self._note_grown(profile.id)

    def remove_replica(self, replica: ReplicaId, now: float) -> None:
        """Takes no more work; gone with its last lease. Raises KeyError for one that is not there."""
        self._fleet[replica].meter.leave(now)
        self._fleet.remove(replica)
        self._queue.let_go_of(replica)
        if self._policy is not None:
            self._policy.forget(replica)

    def update_profile(self, profile: ReplicaProfile, now: float) -> None:
        """Price, capacity or models have changed or become known."""
        live = self._fleet[profile.id]
        live.meter.reprice(profile, live.ledger.leases.values(), now)
        self._fleet.update(profile)

    def set_lifecycle(self, replica: ReplicaId, lifecycle: Lifecycle, now: float) -> None:
        """Raises ValueError for what TRANSITIONS forbids; repeating the present state is no transition."""
        before = self._fleet[replica].lifecycle
        self._fleet.set_lifecycle(replica, lifecycle)
        self._fleet[replica].meter.move(lifecycle, now)
        if lifecycle is not before:
            self._note_grown(replica)
        if lifecycle is not Lifecycle.READY:
            self._queue.let_go_of(replica)
        if self._policy is not None and lifecycle in CACHE_LOST:
            self._policy.forget(replica)

    def set_window(self, replica: ReplicaId, window: Window | None, now: float) -> None:
        """Only what is expected to end within it is placed there from now on; with an end, also while RECLAIMING. None: whatever fits."""
        live = self._fleet[replica]
        live.set_window(window, now)
        self._fleet.update(live.profile)
        if window is not None:
            self._queue.let_go_of(replica)

    def observe(self, replica: ReplicaId, load: EngineLoad, now: float) -> None:
        """What the engine says of itself."""
        self._fleet.observe(replica, load, now)

    # -- looking -----------------------------------------------------------------------------------------------------

    def joined(self, replica: ReplicaId) -> Joined:
        """The batch that whoever was placed there last has joined. Raises KeyError for a replica that is gone."""
        return Joined.of(self._fleet[replica])

    def states(self, now: float, *, briefly: bool = False) -> tuple[ReplicaState, ...]:
        """`briefly`: without what predictions have been worth, which takes most of the time."""
        return self._fleet.states(now, briefly=briefly)

    def leases_on(self, replica: ReplicaId) -> int:
        """Requests placed there and not finished; 0 of one that is not there."""
        return len(self._fleet[replica].ledger.leases) if replica in self._fleet else 0

    def ledger_only(self, replica: ReplicaId, now: float) -> bool:
        """Whether its room is reckoned from our own ledger alone: its engine's figures are missing or stale."""
        return self._fleet.ledger_only(replica, now)

    def models(self) -> frozenset[str]:
        """Every model that a replica was ever known to serve."""
        return frozenset(self._fleet.known_models)

    def replica_ids(self, model: str) -> frozenset[ReplicaId]:
        """Who serves it, ready or not."""
        return frozenset(live.profile.id for live in self._fleet.serving(model))

    def queue_statistics(self, now: float, *, by_tenant: bool = False) -> tuple[QueueStatistics, ...]:
        return self._queue.by_tenant(now) if by_tenant else self._queue.statistics(now)

    def counts(self) -> dict[ReplicaId, Counts]:
        """What rates are differences of. O(replicas), without a look at any lease."""
        return {live.profile.id: live.ledger.counts() for live in self._fleet if not live.retired}

    def prompt_tokens(self, model: str, chars: int) -> int:
        """The estimate for `Request.prompt_tokens`, by the characters per token learned of this model."""
        return self._estimators.chars.prompt_tokens(model, chars)

    def output_tokens(self, model: str, max_output_tokens: int | None) -> int:
        """What to reckon with for an answer, by what was learned of this model; it must be one that is served."""
        return self._estimators.outputs.forecast(model, max_output_tokens).reserve

    def refusals(self) -> Mapping[Refused, int]:
        """Requests so far that were refused or evicted for too much of others, by model, tier and why."""
        return self._overload.refused

    def flooded(self, model: str, now: float) -> bool:
        """Whether more comes for it than can be answered in time, so that who would be late is refused."""
        return self._overload.in_flood(model, now)

    def next_step_s(self, replica: ReplicaId) -> tuple[float, bool]:
        """What its next step may take, at worst; and whether predictions of it have been judged often enough to go by."""
        live = self._fleet[replica]
        return next_step_s(live), predictions_known(live)

    def patience_s(self, replica: ReplicaId, expected_s: float) -> float:
        """How long a first token may take there that was expected after `expected_s`."""
        return patience_s(self._fleet[replica], expected_s)

    def overdue(self, replica: ReplicaId, now: float) -> int:
        """Requests there whose first sign of life should have come long ago. O(leases)."""
        return overdue(self._fleet[replica], now)

    def hedges_refused(self) -> Mapping[tuple[str, Refusal], int]:
        """Requests so far that were overdue and not sent twice, by model and why."""
        return {} if self._hedging is None else self._hedging.refused

    @property
    def queued(self) -> int:
        """Tickets that wait, of all models and tiers."""
        return len(self._queue)

    @property
    def stirred(self) -> bool:
        """Whether something waits and room has grown since the last `advance`: tokens alone may have made some."""
        return bool(self._queue) and bool(self._fleet.grown_models)

    @property
    def evaluations(self) -> int:
        """Ticket-replica tests so far: what a decision costs, independent of the machine."""
        return self._filling.evaluations

    def check(self) -> None:
        """Raises AssertionError where the ledgers do not add up; for tests and debugging. O(leases)."""
        self._fleet.check()

    def __repr__(self) -> str:
        return f"<Scheduler {len(self._fleet)} replicas, {len(self._queue)} queued, {len(self._fleet.leases)} leased>"

    def _ticket(self, request: Request, now: float) -> Ticket:
        return Ticket(TicketId(next(self._ticket_ids)), request, now)

    def _note_grown(self, replica: ReplicaId) -> None:
        live = self._fleet[replica]
        if live.lifecycle is Lifecycle.READY:
            for model in live.profile.models:
                self._overload.grown(model)
