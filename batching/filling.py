"""One pass over the queue: who is tested against which replicas, in which order, and the lease when one fits.

Work conserving within `bypass_limit`: after a pass nothing waits that fits somewhere now, unless that room is protected
for a head that others kept passing. Near-linear in what it admits: a ticket that fitted nowhere is tested again only
against replicas where room has grown since.
"""

from collections.abc import Collection, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Final

from batching.blocks import UNBOUNDED
from batching.column_placement import MANY, place_among
from batching.decisions import Decisions
from batching.estimators import Estimators, KnownLength, LengthForecast, Lengths
from batching.fleet import Fleet
from batching.holding import worth_holding
from batching.lane import FLOOR, LATE, Lane, Order, Waiting
from batching.ledger import LeaseRecord
from batching.offer import Offer
from batching.outlook import worth_waiting_for
from batching.overload import Overload
from batching.placement import Need, Placement, place
from batching.queue import WaitingQueue
from batching.request import Request, ServiceTier
from batching.ticket import Lease, LeaseId, Placed, TicketState
from config.schema import Mechanism, ModelKind, Objectives, Scheduling

_ESTIMATES_S: Final = 0.25  # what was learned since is looked up so often for one that waits
_PROTECTED_RATIO: Final = (
    0.25  # of a model's replicas: kept for heads that nothing but a rest of the replica makes room for
)
_TTFT_BASE_TOKENS: Final = 1000  # the objective grows with prompts beyond it (config.schema.Objectives)
_EMBEDDING: Final = ModelKind.EMBEDDING
_BATCH: Final = ServiceTier.BATCH  # an enum's member costs a call to look up


class Filling:
    """Gives the room there is to those who wait. `evaluations` counts ticket-replica tests, the unit of its cost."""

    def __init__(
        self,
        scheduling: Scheduling,
        queue: WaitingQueue,
        fleet: Fleet,
        estimators: Estimators,
        overload: Overload,
        decisions: Decisions | None = None,
    ) -> None:
        self._overload = overload
        self._scheduling = scheduling
        self._queue = queue
        self._fleet = fleet
        self._estimators = estimators
        self._lease_ids = count(1)
        self._holds = not scheduling.without & {Mechanism.HOLD, Mechanism.LATE_LAST}
        self._awaits = Mechanism.PREFIX_HOLD not in scheduling.without
        self._by_cost = Mechanism.COST not in scheduling.without
        self._by_prefix = Mechanism.PREFIX not in scheduling.without
        self._spares = Mechanism.SPARING not in scheduling.without
        self._late_last = Mechanism.LATE_LAST not in scheduling.without
        self._decisions = decisions
        self.evaluations = 0

    def need(self, request: Request, ticket: int) -> Need:
        """What the request asks, by the estimates of this moment."""
        known = request.known_output_tokens
        bound = request.max_output_tokens if known is None else known
        embeds = request.kind is _EMBEDDING
        lengths: Lengths | KnownLength
        if known is None:
            length, lengths = self._estimators.outputs.known(request.model, bound)
        else:
            length, lengths = LengthForecast(known, known, known, known), KnownLength(known)
        if embeds:
            length = LengthForecast(0, 0, 0, 0)
        ttft_s, tpot_s = _objectives(request, self._scheduling.objectives)
        looks = request.prefix_chunk_tokens and self._by_prefix
        return Need(
            request,
            ticket,
            length.reserve,
            length.average,
            ttft_s,
            tpot_s,
            length.learned,
            length.prior,
            0 if embeds else 1,
            UNBOUNDED if bound is None else bound,
            lengths,
            self._fleet.prefixes.match(request.prefix_hashes, request.prefix_chunk_tokens) if looks else {},
        )

    def late_at_s(self, need: Need, now: float) -> float | None:
        """When the request can no longer meet its objective, even on an idle replica; None: that is never said of it."""
        if not self._late_last or need.ttft_objective_s == inf:
            return None
        quickest_s = self._fleet.kinds.quickest_s(need, now)
        return None if quickest_s is None else need.first_token_due_s - need.slack_s - quickest_s

    def fill(self, now: float) -> list[Placed]:
        """Places what fits; O(1) if nothing has arrived and no room has grown."""
        if not self._fleet.grown_models and not self._queue.arrived:
            return []
        if not self._queue:
            self._note_grown()
            return []
        placed = self._fill_lone(now)
        if placed and not self._fleet.grown_models:
            return placed
        # Again when the pass itself made room: a protected head was placed and its replica is everybody's.
        while lanes := self._dirty_lanes():
            for lane in lanes:
                self._renew_protection(lane, now)
            for lane in lanes:
                for waiting in tuple(lane.protected):
                    placed += self._try(waiting, now)
            # One arrival alone is tested alone: all before it have been found not to fit.
            if walked := [lane for lane in lanes if lane.grown or len(lane.fresh) > 1]:
                self._queue.settle()
                placed += self._walk(walked, now)
            placed += self._try_fresh(lanes, now)
        return placed

    def _fill_lone(self, now: float) -> list[Placed]:
        """What a pass comes to for one that has just come and waits alone, where there is room: it needs no order."""
        waiting = self._queue.lone()
        if waiting is None or waiting.rank > LATE:
            return []
        lane, fleet = self._queue.lanes[waiting.ticket.request.model], self._fleet
        walks = lane.grown or lane.model in fleet.grown_models
        if not fleet.has_room(lane.model, now):
            return []
        self._note_grown()
        self._queue.pass_by(waiting, walks=walks)
        placed = self._try(waiting, now)
        if walks:
            fleet.has_room(lane.model, now)  # as before the next one: it notes whose streams are to be looked at again
        if not placed:
            self._block(lane, waiting, now)
            self._queue.stay(waiting, walked=walks)
        lane.grown = False
        return placed

    def _note_grown(self) -> None:
        """Takes over where room has grown, for whoever comes next."""
        fleet, queue = self._fleet, self._queue
        for model in fleet.grown_models:
            if (lane := queue.lanes.get(model)) is not None:
                lane.grown = True
        fleet.grown_models = set()
        for model in queue.arrived:
            queue.lanes[model].fresh.clear()
        queue.arrived = set()

    def _try_fresh(self, lanes: list[Lane], now: float) -> list[Placed]:
        placed: list[Placed] = []
        fresh = [(w.goes_by, w.order, w, lane) for lane in lanes for w in lane.fresh if w.tested_epoch < 0 and w.queued]
        fresh.sort()
        for _, _, waiting, own in fresh:
            if not self._fleet.has_room(own.model, now):
                waiting.tested_epoch = self._fleet.epoch  # it fits nowhere: later only what has grown is looked at
            elif done := self._try(waiting, now):
                placed += done
            else:
                self._block(own, waiting, now)
        for lane in lanes:
            lane.fresh.clear()
            lane.grown = False
        return placed

    def _dirty_lanes(self) -> list[Lane]:
        fleet, queue = self._fleet, self._queue
        if not fleet.grown_models and not queue.arrived:
            return []
        for model in fleet.grown_models:
            if model in queue.lanes:
                queue.lanes[model].grown = True
        models = sorted(fleet.grown_models | queue.arrived)
        fleet.grown_models = set()
        queue.arrived = set()
        lanes = [lane for model in models if (lane := queue.lanes.get(model)) is not None]
        for lane in lanes:
            lane.fresh = [waiting for waiting in lane.fresh if waiting.queued]
        return [lane for lane in lanes if lane.size]

    def _walk(self, lanes: list[Lane], now: float) -> list[Placed]:
        """In order over all lanes together, as they may share replicas; each looks past `bypass_limit` tickets at most."""
        placed: list[Placed] = []
        passed: dict[str, list[Waiting]] = {lane.model: [] for lane in lanes}
        heads: list[tuple[int, Order, Waiting, Lane]] = []
        for lane in lanes:
            lane.blocked.clear()
            lane.by_floor = True
            self._enter(heads, lane, now)
        while heads:
            rank, _, waiting, lane = heappop(heads)
            lane.take(waiting)
            if done := self._try(waiting, now):
                placed += done
            else:
                if rank == FLOOR:  # it is for who fits: those whose turn it is by rank are not kept waiting
                    lane.by_floor = False
                passed[lane.model].append(waiting)
                self._block(lane, waiting, now)
            if len(passed[lane.model]) < self._scheduling.bypass_limit:
                self._enter(heads, lane, now)
        for lane in lanes:
            for waiting in passed[lane.model]:
                lane.push(waiting, arrives=False)
        return placed

    def _enter(self, heads: list[tuple[int, Order, Waiting, Lane]], lane: Lane, now: float) -> None:
        if not self._fleet.has_room(lane.model, now):
            return
        head = lane.peek(now)
        if head is not None and head[1].rank > LATE and not self._may_prefill(head[1], now):
            if head[0] > LATE:
                return  # nothing but batch waits
            lane.by_floor = False
            head = lane.peek(now)
        if head is not None:
            heappush(heads, (head[0], head[1].order, head[1], lane))  # orders are unique: they carry the ticket's id

    def _try(self, waiting: Waiting, now: float) -> list[Placed]:
        if waiting.rank > LATE and not self._may_prefill(waiting, now):
            return []
        ticket, since = waiting.ticket, waiting.tested_epoch
        fleet, model = self._fleet, ticket.request.model
        offers = fleet.roomy(model) if since < 0 else fleet.offers(model, since=since)
        if not offers:
            return []
        if now >= waiting.estimated_s + _ESTIMATES_S:
            waiting.estimated_s = now
            need, before = self.need(ticket.request, ticket.id), waiting.need
            waiting.need = need
            # A smaller need may fit where the greater one did not.
            if need.forecast_tokens < before.forecast_tokens or need.cached_tokens != before.cached_tokens:
                since = -1
                offers = fleet.roomy(model)
        self.evaluations += len(offers)
        placement = self._choose(waiting, offers, since, now)
        if placement is None or self._await_holder(waiting, placement, now):
            waiting.tested_epoch = fleet.epoch
            fleet.note_paced(offers, now)
            return []
        if since < 0 and self._decisions is not None:
            offers = fleet.each_offer(model)  # for the record, also those that are full
        return [self._commit(waiting, placement, offers, now)]

    def _await_holder(self, waiting: Waiting, placement: Placement, now: float) -> bool:
        """Whether it rather waits for a replica that holds its beginning; the first guess says until when, and there is no second."""
        if not self._awaits or not waiting.may_hold or now >= waiting.held_until_s:
            return False
        hold = worth_holding(waiting.need, placement, self._fleet, now)
        if hold is not None and waiting.held_for is None:
            self._queue.hold(waiting, *hold)
        return hold is not None

    def _may_prefill(self, waiting: Waiting, now: float) -> bool:
        """Batch makes way for the first tokens of those who are watched."""
        return not self._spares or self._fleet.spares(waiting.ticket.request.model, now)

    def _choose(self, waiting: Waiting, offers: Collection[Offer], since: int, now: float) -> Placement | None:
        hold = self._holds and waiting.may_hold
        if len(offers) < MANY:
            return place(waiting.need, offers, now, hold=hold, by_cost=self._by_cost)
        columns, tested = self._fleet.columns(waiting.need.request.model, since=since)
        return place_among(waiting.need, columns, tested, now, hold=hold, by_cost=self._by_cost)

    def _commit(self, waiting: Waiting, placement: Placement, offers: Collection[Offer], now: float) -> Placed:
        ticket, need, score = waiting.ticket, waiting.need, placement.score
        placement.held_for = waiting.held_for
        request, replica = ticket.request, placement.replica
        live = self._fleet[replica]
        prompt, offer = request.prompt_tokens, live.offer
        room = offer.max_model_len - prompt
        lease = Lease(LeaseId(next(self._lease_ids)), replica, request)
        record = LeaseRecord(
            lease,
            now,
            waiting.rank,
            offer.block_size,
            prompt - score.cached_tokens,
            min(need.cached_tokens.get(replica, 0), prompt - 1),
            min(need.forecast_tokens, room),  # as `reserved_output`
            score.ttft_s,
            score.tpot_s,
            live.forecast(need, score),
            score.prefill_s,
            need.lengths,
            min(need.output_bound, room),
        )
        self._note(waiting, placement, offers, record)
        live.least_output_tokens = request.known_output_tokens or self._estimators.outputs.least(
            request.model, request.max_output_tokens
        )
        protected_at = waiting.protected_at
        lane = self._queue.lanes[request.model]
        self._queue.leave(waiting, TicketState.PLACED)
        self._fleet.open(record, None if request.streaming else now + score.ttft_s)
        if not request.resumes:  # its prompt was charged when it was placed first
            lane.charge(waiting.rank, request.tenant, prompt, weight=request.weight, dispatch=True)
        self._estimators.note_placed(request.model, now)
        if lane.size or lane.draining:
            self._overload.placed(waiting, lane, now)
        if protected_at is not None:
            self._fleet.protect(protected_at, None)
        self._note_passed(placement, request.tenant, now)
        return Placed(ticket, placement, lease, None, now)

    def _note(self, waiting: Waiting, placement: Placement, offers: Collection[Offer], record: LeaseRecord) -> None:
        if self._decisions is not None:
            hold, queued_s = self._holds and waiting.may_hold, waiting.ticket.queued_s
            self._decisions.placed(record, waiting.need, offers, placement, queued_s, hold=hold, by_cost=self._by_cost)

    # -- head protection ---------------------------------------------------------------------------------------------

    def release(self, waiting: Waiting) -> None:
        """It leaves without being placed: what was protected for it is everybody's again."""
        if waiting.protected_at is not None:
            self._fleet.protect(waiting.protected_at, None)

    def _note_passed(self, placement: Placement, tenant: str, now: float) -> None:
        """Whoever is blocked and goes before this tenant is not passed by it for a while: it is its turn."""
        if not self._queue:
            return
        for model in self._fleet[placement.replica].profile.models:
            lane = self._queue.lanes.get(model)
            for blocked in () if lane is None else lane.blocked:
                if blocked.ticket.request.tenant != tenant and blocked.rank < LATE:
                    blocked.passed_s = -inf
                elif blocked.passed_s is None:
                    blocked.passed_s = now

    def _block(self, lane: Lane, waiting: Waiting, now: float) -> None:
        if waiting.held_for is not None and now < waiting.held_until_s:
            return  # it could be placed: nobody is kept from anywhere for its sake
        tenant = waiting.ticket.request.tenant
        if len(lane.blocked) < self._protectable(lane) and not _has(tenant, lane.blocked):
            lane.blocked.append(waiting)
            self._protect_if_due(lane, waiting, now)

    def _protectable(self, lane: Lane) -> int:
        """Heads for whom a replica may be kept at a time: the room of the others must not wait for the few."""
        return max(1, int(self._fleet.count(lane.model) * _PROTECTED_RATIO))

    def _renew_protection(self, lane: Lane, now: float) -> None:
        for held in tuple(lane.protected):
            at = held.protected_at
            assert at is not None
            if at in self._fleet and (offer := self._fleet[at].offer).open and worth_waiting_for(held.need, offer, now):
                continue
            self._fleet.protect(at, None)
            held.protected_at = None
            lane.protected.remove(held)
        for blocked in lane.blocked:
            self._protect_if_due(lane, blocked, now)

    def _protect_if_due(self, lane: Lane, waiting: Waiting, now: float) -> None:
        due = waiting.passed_s is not None and now - waiting.passed_s >= self._scheduling.head_protection_s
        if not due or waiting.protected_at is not None:
            return
        limit = 1 if waiting.rank >= LATE else self._protectable(lane)
        if len(lane.protected) >= limit or _has(waiting.ticket.request.tenant, lane.protected):
            return
        replica = self._fleet.soonest(waiting.need)
        if replica is not None:
            lane.protected.append(waiting)
            waiting.protected_at = replica
            self._fleet.protect(replica, waiting.ticket.id)


def _has(tenant: str, heads: Sequence[Waiting]) -> bool:
    return any(head.ticket.request.tenant == tenant for head in heads)


def _objectives(request: Request, objectives: Objectives) -> tuple[float, float]:
    if request.service_tier is _BATCH:  # nobody watches: cheap is all that counts
        return inf, inf
    beyond = max(0, request.prompt_tokens - _TTFT_BASE_TOKENS)
    return objectives.ttft_s + objectives.ttft_s_per_prompt_token * beyond, objectives.tpot_s
