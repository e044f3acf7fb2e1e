"""Who waits, for which model, until when: a lane for each model, so that what waits for one never blocks another.

Counts what waits and enforces nothing: the bounds are admission's. Knows no replicas. Who is next is the lane's business.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from batching.backlog import work_of
from batching.crowd import Crowd
from batching.lane import BATCH, LATE, Lane, Waiting
from batching.lazy_heap import LazyHeap
from batching.placement import Need
from batching.request import ReplicaId, Request, ServiceTier
from batching.ticket import Ticket, TicketId, TicketState
from config.schema import Floors
from config.schema import Queue as QueueConfig

OUTPUT_TOKEN_WEIGHT: Final = 2  # an output token costs about two prompt tokens (VTC's and the price lists' ratio)
_QUEUED: Final = TicketState.QUEUED  # an enum's member costs a call to look up, and heaps ask it of every entry
_BATCH_TIER: Final = ServiceTier.BATCH


def _waits(waiting: Waiting) -> bool:
    return waiting.ticket.state is _QUEUED


def _waits_in_time(waiting: Waiting) -> bool:
    return waiting.rank < LATE and waiting.ticket.state is _QUEUED


def leave_time(request: Request, now: float, max_wait_s: float) -> float:
    """When a request is evicted: its own deadline, at most `max_wait_s` away but for batch work that named one.

    What resumes has met its deadline by its first token.
    """
    if request.deadline_s is None or (request.resumes and request.deadline_s <= now):
        return now + max_wait_s
    return request.deadline_s if request.service_tier is _BATCH_TIER else min(request.deadline_s, now + max_wait_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """What waits for one model in one service tier, of all tenants or of one."""

    model: str
    service_tier: ServiceTier
    depth: int
    tokens: int
    bytes: int
    oldest_age_s: float
    tenant: str | None = None


class _Group:
    __slots__ = ("bytes", "members", "tokens")

    def __init__(self) -> None:
        self.members: OrderedDict[TicketId, Waiting] = OrderedDict()  # by arrival; the first is O(1), unlike a dict's
        self.tokens = 0
        self.bytes = 0


class WaitingQueue:
    """Every lane, and the sums over them.

    Most are placed in the pass that follows their arrival. Newcomers therefore get their place in the order, and timers, when somebody
    first looks at those: whoever finds that only one waits, and that it came just now (`lone`), spares it both.
    """

    def __init__(self, config: QueueConfig, *, by_deadline: bool = True, with_floors: bool = True) -> None:
        self._config = config
        self._by_deadline = by_deadline
        self._floors = config.floors if with_floors else Floors(default=0, flex=0, late=0, batch=0)
        self._groups: dict[tuple[str, ServiceTier], _Group] = {}
        self._members: dict[TicketId, Waiting] = {}
        self._leaving: LazyHeap[tuple[float, int], Waiting] = LazyHeap(_waits)
        self._turning: LazyHeap[tuple[float, int], Waiting] = LazyHeap(_waits_in_time)
        self._held: LazyHeap[tuple[float, int], Waiting] = LazyHeap(_waits)
        self.lanes: dict[str, Lane] = {}
        self.arrived: set[str] = set()  # models with fresh tickets
        self.soonest_s = inf  # nobody leaves, turns late or is let go before
        self._newcomers: list[Waiting] = []  # all of them wait
        self._collects = False  # somebody asks what tenants were served
        self.tokens = 0
        self.bytes = 0
        self.crowd = Crowd(config)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(tuple(self._members.values()))

    def has_place(self, request: Request) -> bool:
        """Within all bounds."""
        if self._newcomers:
            self.settle()
        return self.crowd.fits(request, len(self._members), self.tokens, self.bytes)

    def get(self, ticket: Ticket) -> Waiting | None:
        return self._members.get(ticket.id)

    def lane(self, model: str) -> Lane:
        """To look at: everybody is in it."""
        self.settle()
        return self._lane(model)

    def _lane(self, model: str) -> Lane:
        lane = self.lanes.get(model)
        if lane is None:
            lane = self.lanes[model] = Lane(model, self._floors, self._config.aging_s)
            if self._collects:
                lane.collect_service()  # from its first request on
        return lane

    def first(self, model: str) -> Waiting:
        """Who waits longest for a model, whatever its tier; something must wait for it."""
        groups = (self._groups.get((model, tier)) for tier in ServiceTier)
        firsts = (next(iter(group.members.values())) for group in groups if group is not None and group.members)
        return min(firsts, key=lambda waiting: waiting.ticket.id)

    def add(self, ticket: Ticket, need: Need, late_at_s: float | None = None, *, promised: bool = False) -> None:
        """`late_at_s`: when it can no longer meet its objective anywhere; None: that is not to be said.

        `promised`: it was told to come now, and is due now, whatever its objective.
        """
        request, now = ticket.request, ticket.queued_s
        leave_s = leave_time(request, now, self._config.max_wait_s)
        batch = request.service_tier is _BATCH_TIER and not request.resumes
        due_s = need.first_token_due_s if self._by_deadline else inf
        rank = 0 if request.resumes else BATCH if batch else int(request.service_tier)
        latest_s = now if promised else min(due_s, leave_s, now + self._config.max_wait_s)
        order = latest_s, leave_s, ticket.id
        waiting = Waiting(ticket, need, rank, leave_s, order, now)
        if request.resumes:
            waiting.order = now, leave_s, ticket.id
        elif late_at_s is not None and not batch:
            if late_at_s <= now:
                self._set_late(waiting)
            else:
                waiting.may_hold, waiting.late_at_s = True, late_at_s
        lane = self._lane(request.model)
        lane.fresh.append(waiting)
        lane.size += 1
        self.arrived.add(request.model)
        self._members[ticket.id] = waiting
        self._newcomers.append(waiting)
        self.soonest_s = min(self.soonest_s, leave_s, waiting.late_at_s)
        group = self._groups.get((request.model, request.service_tier))
        if group is None:
            group = self._groups[request.model, request.service_tier] = _Group()
        group.members[ticket.id] = waiting
        self._count(group, request, 1)

    def lone(self) -> Waiting | None:
        """The only one that waits, if it is a newcomer; it is none from now on and has no place until its lane is given it."""
        if len(self._members) != 1 or len(self._newcomers) != 1:
            return None
        return self._newcomers[0]

    def settle(self) -> None:
        """Newcomers get their place and their timers."""
        newcomers, self._newcomers = self._newcomers, []
        for waiting in newcomers:
            self._reckon(waiting)
            self.lanes[waiting.ticket.request.model].push(waiting)
            self._time(waiting)

    def pass_by(self, waiting: Waiting, *, walks: bool) -> None:
        """The lone one is tested next, and must `stay` if it is not placed. `walks`: by a pass in order, which would look at its lane."""
        self._newcomers.clear()
        lane = self.lanes[waiting.ticket.request.model]
        if walks:
            lane.pass_by(waiting)
        else:
            lane.push(waiting)

    def stay(self, waiting: Waiting, *, walked: bool) -> None:
        """The lone one has to wait: it gets its place and its timers after all."""
        self._reckon(waiting)
        if walked:
            self.lanes[waiting.ticket.request.model].push(waiting, arrives=False)
        self._time(waiting)

    def _reckon(self, waiting: Waiting) -> None:
        """It is among those who wait, for who comes next."""
        request = waiting.ticket.request
        waiting.work = work_of(waiting.need)
        backlog = self.lanes[request.model].backlog
        backlog.enter(waiting.rank, request.tenant, waiting.work, waiting.order[0], request.weight)
        if not request.resumes:
            self.crowd.enter(waiting)

    def _time(self, waiting: Waiting) -> None:
        ticket = waiting.ticket
        self._leaving.push((waiting.leave_s, ticket.id), waiting)
        if waiting.may_hold:
            self._turning.push((waiting.late_at_s, ticket.id), waiting)

    def turn_late(self, now: float) -> list[Waiting]:
        """Those that cannot meet their objective any more make way, and take whatever room there is; who they are."""
        self.settle()
        turned: list[Waiting] = []
        while (entry := self._turning.peek()) and entry[0][0] <= now:
            waiting = self._turning.pop()
            turned.append(waiting)
            self._set_late(waiting)
            self._test_anew(waiting)
            lane = self.lanes[waiting.ticket.request.model]
            lane.push(waiting)
            lane.grown = True
        return turned

    def turned_late(self, model: str) -> list[Waiting]:
        """Those that wait and could have met their objective once. O(queue)."""
        return [w for w in self if w.rank == LATE and w.late_at_s < inf and w.ticket.request.model == model]

    def hold(self, waiting: Waiting, replica: ReplicaId, until_s: float) -> None:
        """It waits for a replica that holds its beginning, at most until then."""
        waiting.held_for, waiting.held_until_s = replica, until_s
        self._held.push((until_s, waiting.ticket.id), waiting)
        self.soonest_s = min(self.soonest_s, until_s)

    def let_go(self, now: float) -> None:
        """Those that were held for long enough take whatever room there is."""
        while (entry := self._held.peek()) and entry[0][0] <= now:
            waiting = self._held.pop()
            waiting.held_until_s = -inf
            self._test_anew(waiting)

    def let_go_of(self, replica: ReplicaId) -> None:
        """It takes no more work: those that are held for it need not be. O(queue)."""
        for waiting in self._members.values():
            if waiting.held_for == replica:
                waiting.held_until_s = -inf
                self._test_anew(waiting)

    def _test_anew(self, waiting: Waiting) -> None:
        waiting.tested_epoch = -1
        lane = self.lanes[waiting.ticket.request.model]
        lane.fresh.append(waiting)
        self.arrived.add(lane.model)

    def _set_late(self, waiting: Waiting) -> None:
        ticket = waiting.ticket
        order = ticket.queued_s, waiting.leave_s, ticket.id
        if waiting.work:
            request, backlog = ticket.request, self.lanes[ticket.request.model].backlog
            backlog.leave(waiting.rank, request.tenant, waiting.work, waiting.order[0])
            backlog.enter(LATE, request.tenant, waiting.work, order[0], request.weight)
        waiting.rank, waiting.order, waiting.may_hold = LATE, order, False

    def leave(self, waiting: Waiting, state: TicketState) -> None:
        """Placed, evicted or cancelled; heaps drop it when they meet it."""
        if self._newcomers:
            self.settle()
        waiting.ticket.state = state
        request = waiting.ticket.request
        lane = self.lanes[request.model]
        lane.size -= 1
        if waiting.work:
            lane.backlog.leave(waiting.rank, request.tenant, waiting.work, waiting.order[0])
            if not request.resumes:
                self.crowd.leave(waiting)
        if waiting in lane.blocked:
            lane.blocked.remove(waiting)
        if waiting in lane.protected:
            lane.protected.remove(waiting)
        del self._members[waiting.ticket.id]
        group = self._groups[request.model, request.service_tier]
        del group.members[waiting.ticket.id]
        if not self._members:
            self.soonest_s = inf
        self._count(group, request, -1)

    def expired(self, now: float) -> Iterator[Waiting]:
        """Those whose time to leave has come; each must `leave` before the next is asked for."""
        self.settle()
        while (entry := self._leaving.peek()) and entry[0][0] <= now:
            yield self._leaving.pop()

    def next_deadline(self) -> float | None:
        """When somebody leaves, turns late or was held for long enough; None while nobody waits. Makes `soonest_s` exact."""
        self.settle()
        self.soonest_s = inf
        leaving = self._leaving.peek()
        if leaving is None:  # then nobody waits
            return None
        others = self._turning.peek(), self._held.peek()
        self.soonest_s = min([leaving[0][0], *(entry[0][0] for entry in others if entry is not None)])
        return self.soonest_s

    def statistics(self, now: float) -> tuple[QueueStatistics, ...]:
        """Of every model and service tier that anything has waited for."""
        return tuple(
            QueueStatistics(
                model=model,
                service_tier=tier,
                depth=len(group.members),
                tokens=group.tokens,
                bytes=group.bytes,
                oldest_age_s=max(0.0, now - next((w.ticket.queued_s for w in group.members.values()), now)),
            )
            for (model, tier), group in sorted(self._groups.items())
        )

    def by_tenant(self, now: float) -> tuple[QueueStatistics, ...]:
        """Of every model, tier and tenant of which anything waits. O(queue)."""
        waiting: defaultdict[tuple[str, ServiceTier, str], list[Waiting]] = defaultdict(list)
        for one in self._members.values():
            request = one.ticket.request
            waiting[request.model, request.service_tier, request.tenant].append(one)
        return tuple(
            QueueStatistics(
                model=model,
                service_tier=tier,
                tenant=tenant,
                depth=len(group),
                tokens=sum(one.ticket.request.prompt_tokens for one in group),
                bytes=sum(one.ticket.request.body_bytes for one in group),
                oldest_age_s=max(0.0, now - min(one.ticket.queued_s for one in group)),
            )
            for (model, tier, tenant), group in sorted(waiting.items())
        )

    def depth(self, model: str, worst: ServiceTier) -> int:
        """Tickets of a model in `worst` and better tiers."""
        groups = (self._groups.get((model, tier)) for tier in ServiceTier if tier <= worst)
        return sum(len(group.members) for group in groups if group is not None)

    def charge_output(self, request: Request, rank: int, tokens: int) -> None:
        """Its tenant was served so many more, by its weight."""
        lane = self.lanes[request.model]
        lane.charge(rank, request.tenant, OUTPUT_TOKEN_WEIGHT * tokens, weight=request.weight)

    def collect_service(self) -> dict[tuple[str, int], dict[str, float]]:
        """What each tenant was served since this was last called, by model and class of ranks: tokens over weight."""
        self._collects = True
        return {
            (model, class_): by_tenant
            for model, lane in self.lanes.items()
            for class_, by_tenant in lane.collect_service().items()
        }

    def serve_elsewhere(self, service: Mapping[tuple[str, int], Mapping[str, float]]) -> None:
        """Others have served so much. Of a model that nobody ever waited for here nothing is kept: all would stand alike."""
        self.settle()
        for (model, class_), by_tenant in service.items():
            if (lane := self.lanes.get(model)) is not None:
                lane.serve_elsewhere(class_, by_tenant)

    def _count(self, group: _Group, request: Request, sign: int) -> None:
        group.tokens += sign * request.prompt_tokens
        group.bytes += sign * request.body_bytes
        self.tokens += sign * request.prompt_tokens
        self.bytes += sign * request.body_bytes
