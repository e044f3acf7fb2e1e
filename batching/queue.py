"""Who is next: service tiers, with a floor under each; tenants by tokens served; then who must have its first token soonest.

One lane per model, so that what waits for one model never blocks another. Counts what waits and enforces nothing: the
bounds are admission's. Knows no replicas.

Order inside a lane. A ticket's rank is its service tier; priority, default and flex go before those of them that can no longer
meet their objective (`LATE`), and these before batch. Ranks are strict but for the floors: of every prompt token placed a small
share is credited to each rank that waits, and a rank whose credit covers its head goes first, so that nobody starves. Waiting
`aging_s` lifts flex and default by one tier. Tenants share a rank by virtual token counters (VTC, Sheng et al., OSDI 2024): prompt tokens
count 1, output tokens 2; whoever begins to wait starts at the counter last served, so that idling earns no credit. Inside a
tenant the earliest first token due goes first; those that are late, and batch, in order of arrival.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from itertools import count
from math import inf
from typing import Final

from batching.lazy_heap import LazyHeap
from batching.placement import Need
from batching.request import ReplicaId, Request, ServiceTier
from batching.ticket import Ticket, TicketId, TicketState
from config.schema import Floors
from config.schema import Queue as QueueConfig

OUTPUT_TOKEN_WEIGHT: Final = 2  # an output token costs about two prompt tokens (VTC's and the price lists' ratio)
_MAX_COUNTERS: Final = 10_000  # tenants remembered per lane and rank: a megabyte; beyond it idle ones start afresh


# Ranks: 0-2 are the service tiers that somebody watches.
LATE: Final = 3
_BATCH: Final = 4
_RANKS: Final = 5
_CREDIT_LIMIT: Final = 65_536  # tokens: a rank that waited for hours must not shut out the others for minutes

_QUEUED: Final = TicketState.QUEUED  # an enum's member costs a call to look up, and heaps ask it of every entry
_BATCH_TIER: Final = ServiceTier.BATCH

Order = tuple[float, float, int]  # by time, then by when it leaves, then by ticket


@dataclass(slots=True, eq=False, kw_only=True)
class Waiting:
    """A ticket in the queue and what was found out about it."""

    ticket: Ticket
    need: Need
    rank: int
    leave_s: float  # evicted then
    order: Order  # inside a tenant, least first
    tested_epoch: int = -1  # the fleet's epoch when it last fitted nowhere; -1: never tested
    estimated_s: float  # when `need` was made
    may_hold: bool = False  # for a replica that meets its objective; only who will turn late, or it would wait for ever
    passed_s: float | None = None  # since when others take room that it could use
    protected_at: ReplicaId | None = None
    held_for: ReplicaId | None = None  # it waits, or has waited, for this replica although another had room
    held_until_s: float = inf  # then it is tested everywhere and placed wherever there is room

    @property
    def queued(self) -> bool:
        return self.ticket.state is _QUEUED


def _waits(waiting: Waiting) -> bool:
    return waiting.ticket.state is _QUEUED


def _waits_in_time(waiting: Waiting) -> bool:
    return waiting.rank < LATE and waiting.ticket.state is _QUEUED


def leave_time(request: Request, now: float, max_wait_s: float) -> float:
    """When a request is evicted: its own deadline, at most `max_wait_s` away but for batch work that named one."""
    if request.deadline_s is None:
        return now + max_wait_s
    return request.deadline_s if request.service_tier is _BATCH_TIER else min(request.deadline_s, now + max_wait_s)


class _Counters:
    """Tokens served to each tenant; ranks that share them are one account."""

    __slots__ = ("floor", "served")

    def __init__(self) -> None:
        self.served: dict[str, float] = {}
        self.floor = 0.0

    def charge(self, tenant: str, tokens: float, *, dispatch: bool) -> None:
        served = self.served.get(tenant, self.floor)
        if dispatch:
            self.floor = max(self.floor, served)
        self.served[tenant] = served + tokens


class _Rank:
    """The tenants of one rank of one lane."""

    __slots__ = ("_activations", "_counters", "_rank", "_turns", "tenants")

    def __init__(self, rank: int, counters: _Counters) -> None:
        self._rank = rank
        self._counters = counters
        self.tenants: dict[str, LazyHeap[Order, Waiting]] = {}
        self._turns: list[tuple[float, int, str]] = []  # one entry a tenant; its counter may be out of date (too low)
        self._activations = count()

    def push(self, waiting: Waiting, *, arrives: bool) -> None:
        tenant = waiting.ticket.request.tenant
        heap = self.tenants.get(tenant)
        if heap is None:
            heap = self.tenants[tenant] = LazyHeap(self._alive)
            counters = self._counters
            served = counters.served.get(tenant, 0.0)
            counters.served[tenant] = max(served, counters.floor) if arrives else served
            heappush(self._turns, (counters.served[tenant], next(self._activations), tenant))
        heap.push(waiting.order, waiting)

    def peek(self) -> Waiting | None:
        served = self._counters.served
        while self._turns:
            noted, activation, tenant = self._turns[0]
            if served[tenant] > noted:
                heapreplace(self._turns, (served[tenant], activation, tenant))
                continue
            head = self.tenants[tenant].peek()
            if head is not None:
                return head[1]
            heappop(self._turns)
            del self.tenants[tenant]
        return None

    def pop(self) -> Waiting:
        """What `peek` has just shown."""
        return self.tenants[self._turns[0][2]].pop()

    def _alive(self, waiting: Waiting) -> bool:
        return waiting.rank == self._rank and waiting.ticket.state is _QUEUED


class Lane:
    """What waits for one model. `pop` and `push` are O(log n)."""

    def __init__(self, model: str, floors: Floors) -> None:
        self.model = model
        self.size = 0
        self.fresh: list[Waiting] = []  # arrived since the last pass
        self.grown = False  # room has grown since then
        self.blocked: list[Waiting] = []  # the first in order that fitted nowhere in the last pass
        self.by_floor = True  # off for the rest of a pass in which one whose floor's turn it was fitted nowhere
        self.protected: list[Waiting] = []  # of them, those for whom a replica is kept
        watched, batch = _Counters(), _Counters()
        self._ranks = tuple(_Rank(rank, batch if rank == _BATCH else watched) for rank in range(_RANKS))
        self._counters = (watched, watched, watched, watched, batch)
        self._floors = (0.0, floors.default, floors.flex, floors.late, floors.batch)
        self._credits = [0.0] * _RANKS

    def push(self, waiting: Waiting, *, arrives: bool = True) -> None:
        """`arrives=False` puts back what `pop` gave, its tenant's standing unchanged."""
        self._ranks[waiting.rank].push(waiting, arrives=arrives)

    def peek(self) -> tuple[int, Waiting] | None:
        """The next in order and the rank that it goes by (-1: its floor's turn); it stays."""
        first: tuple[int, Waiting] | None = None
        for number, rank in enumerate(self._ranks):
            waiting = rank.peek()
            if waiting is None:
                continue
            if first is None:
                first = (number, waiting)
            elif self.by_floor and self._credits[number] >= min(waiting.ticket.request.prompt_tokens, _CREDIT_LIMIT):
                return -1, waiting
        return first

    def take(self, waiting: Waiting) -> None:
        """What `peek` has just shown, out of the order: the caller places it or puts it back."""
        taken = self._ranks[waiting.rank].pop()
        assert taken is waiting

    def charge(self, rank: int, tenant: str, tokens: float, *, dispatch: bool = False) -> None:
        """Tokens served to a tenant; `dispatch` when one of its tickets leaves for a replica."""
        counters = self._counters[rank]
        counters.charge(tenant, tokens, dispatch=dispatch)
        if len(counters.served) > _MAX_COUNTERS:
            waiting = {tenant for own in self._ranks for tenant in own.tenants}
            counters.served = {tenant: served for tenant, served in counters.served.items() if tenant in waiting}
        if dispatch:
            self._credit(rank, tokens)

    def _credit(self, served: int, tokens: float) -> None:
        for rank, floor in enumerate(self._floors):
            if rank == served:
                self._credits[rank] = max(0.0, self._credits[rank] - (1 - floor) * tokens)  # its own count, too
            elif floor and self._ranks[rank].peek() is not None:
                self._credits[rank] = min(_CREDIT_LIMIT, self._credits[rank] + floor * tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """What waits for one model in one service tier."""

    model: str
    service_tier: ServiceTier
    depth: int
    tokens: int
    bytes: int
    oldest_age_s: float


class _Group:
    __slots__ = ("bytes", "members", "tokens")

    def __init__(self) -> None:
        self.members: OrderedDict[TicketId, Waiting] = OrderedDict()  # by arrival; the first is O(1), unlike a dict's
        self.tokens = 0
        self.bytes = 0


class WaitingQueue:
    """Every lane, and the sums over them."""

    def __init__(self, config: QueueConfig, *, by_deadline: bool = True, with_floors: bool = True) -> None:
        self._config = config
        self._by_deadline = by_deadline
        self._floors = config.floors if with_floors else Floors(default=0, flex=0, late=0, batch=0)
        self._groups: dict[tuple[str, ServiceTier], _Group] = {}
        self._members: dict[TicketId, Waiting] = {}
        self._leaving: LazyHeap[tuple[float, int], Waiting] = LazyHeap(_waits)
        self._turning: LazyHeap[tuple[float, int], Waiting] = LazyHeap(_waits_in_time)
        self._lifting: LazyHeap[tuple[float, int], Waiting] = LazyHeap(_waits_in_time)
        self._held: LazyHeap[tuple[float, int], Waiting] = LazyHeap(_waits)
        self.lanes: dict[str, Lane] = {}
        self.arrived: set[str] = set()  # models with fresh tickets
        self.tokens = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(tuple(self._members.values()))

    def get(self, ticket: Ticket) -> Waiting | None:
        return self._members.get(ticket.id)

    def lane(self, model: str) -> Lane:
        lane = self.lanes.get(model)
        if lane is None:
            lane = self.lanes[model] = Lane(model, self._floors)
        return lane

    def first(self, model: str) -> Waiting:
        """Who waits longest for a model, whatever its tier; something must wait for it."""
        groups = (self._groups.get((model, tier)) for tier in ServiceTier)
        firsts = (next(iter(group.members.values())) for group in groups if group is not None and group.members)
        return min(firsts, key=lambda waiting: waiting.ticket.id)

    def add(self, ticket: Ticket, need: Need, late_at_s: float | None = None) -> None:
        """`late_at_s`: when it can no longer meet its objective anywhere; None: that is not to be said."""
        request, now = ticket.request, ticket.queued_s
        leave_s = leave_time(request, now, self._config.max_wait_s)
        batch = request.service_tier is _BATCH_TIER
        due_s = need.first_token_due_s if self._by_deadline else inf
        waiting = Waiting(
            ticket=ticket,
            need=need,
            rank=_BATCH if batch else int(request.service_tier),
            leave_s=leave_s,
            estimated_s=now,
            order=(min(due_s, leave_s, now + self._config.max_wait_s), leave_s, ticket.id),
        )
        if late_at_s is not None and not batch:
            if late_at_s <= now:
                self._set_late(waiting)
            else:
                waiting.may_hold = True
                self._turning.push((late_at_s, ticket.id), waiting)
        lane = self.lane(request.model)
        lane.push(waiting)
        lane.fresh.append(waiting)
        lane.size += 1
        self.arrived.add(request.model)
        self._members[ticket.id] = waiting
        self._leaving.push((leave_s, ticket.id), waiting)
        if 0 < waiting.rank < LATE:
            self._lifting.push((now + self._config.aging_s, ticket.id), waiting)
        group = self._groups.get((request.model, request.service_tier))
        if group is None:
            group = self._groups[request.model, request.service_tier] = _Group()
        group.members[ticket.id] = waiting
        self._count(group, request, 1)

    def turn_late(self, now: float) -> None:
        """Those that cannot meet their objective any more make way, and take whatever room there is."""
        while (entry := self._turning.peek()) and entry[0][0] <= now:
            waiting = self._turning.pop()
            self._set_late(waiting)
            self._test_anew(waiting)
            lane = self.lanes[waiting.ticket.request.model]
            lane.push(waiting)
            lane.grown = True

    def hold(self, waiting: Waiting, replica: ReplicaId, until_s: float) -> None:
        """It waits for a replica that holds its beginning, at most until then."""
        waiting.held_for, waiting.held_until_s = replica, until_s
        self._held.push((until_s, waiting.ticket.id), waiting)

    def let_go(self, now: float) -> None:
        """Those that were held for long enough take whatever room there is."""
        while (entry := self._held.peek()) and entry[0][0] <= now:
            self._test_anew(self._held.pop())

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
        waiting.rank, waiting.may_hold = LATE, False
        waiting.order = (waiting.ticket.queued_s, waiting.leave_s, waiting.ticket.id)

    def leave(self, waiting: Waiting, state: TicketState) -> None:
        """Placed, evicted or cancelled; heaps drop it when they meet it."""
        waiting.ticket.state = state
        request = waiting.ticket.request
        lane = self.lanes[request.model]
        lane.size -= 1
        if waiting in lane.blocked:
            lane.blocked.remove(waiting)
        if waiting in lane.protected:
            lane.protected.remove(waiting)
        del self._members[waiting.ticket.id]
        group = self._groups[request.model, request.service_tier]
        del group.members[waiting.ticket.id]
        self._count(group, request, -1)

    def expired(self, now: float) -> Iterator[Waiting]:
        """Those whose time to leave has come; each must `leave` before the next is asked for."""
        while (entry := self._leaving.peek()) and entry[0][0] <= now:
            yield self._leaving.pop()

    def lift(self, now: float) -> None:
        """Aging. Changes the order only, never what fits, so it needs no timer and runs when there is room to give."""
        while (entry := self._lifting.peek()) and entry[0][0] <= now:
            waiting = self._lifting.pop()
            waiting.rank -= 1
            self.lanes[waiting.ticket.request.model].push(waiting)
            if waiting.rank > 0:
                self._lifting.push((entry[0][0] + self._config.aging_s, waiting.ticket.id), waiting)

    def next_deadline(self) -> float | None:
        entries = self._leaving.peek(), self._turning.peek(), self._held.peek()
        return min((entry[0][0] for entry in entries if entry is not None), default=None)

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

    def depth(self, model: str, worst: ServiceTier) -> int:
        """Tickets of a model in `worst` and better tiers."""
        groups = (self._groups.get((model, tier)) for tier in ServiceTier if tier <= worst)
        return sum(len(group.members) for group in groups if group is not None)

    def _count(self, group: _Group, request: Request, sign: int) -> None:
        group.tokens += sign * request.prompt_tokens
        group.bytes += sign * request.body_bytes
        self.tokens += sign * request.prompt_tokens
        self.bytes += sign * request.body_bytes
