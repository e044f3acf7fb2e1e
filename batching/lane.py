"""What waits for one model, in order: ranks, in them tenants by tokens served, in those who must have its first token soonest.

Streams that resume go before all others, in order of arrival. Else a ticket's rank is its service tier; priority, default and flex go before those of them that can no longer
meet their objective (`LATE`), and these before batch. Ranks are strict but for the floors: of every prompt token placed a small
share is credited to each rank that waits, and a rank whose credit covers its head goes first, so that nobody starves. Whoever is next in
flex or default goes by one tier better for each `aging_s` that it has waited: past other tiers, never past the tenants of its own. Tenants share a rank by virtual token counters (VTC, Sheng et al., OSDI 2024): prompt tokens
count 1, output tokens 2, over the tenant's weight; whoever begins to wait starts at the counter last served, so that idling earns no credit. Inside a
tenant the earliest first token due goes first; those that are late, and batch, in order of arrival.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from itertools import count
from math import inf
from typing import Final

from batching.backlog import Backlog
from batching.lazy_heap import LazyHeap
from batching.placement import Need
from batching.request import ReplicaId
from batching.ticket import Ticket, TicketState
from config.schema import Floors

_MAX_COUNTERS: Final = 10_000  # tenants remembered per lane and rank: a megabyte; beyond it idle ones start afresh


# Ranks: 0-2 are the service tiers that somebody watches.
FLOOR: Final = -1
RESUMES: Final = -2  # no ranks: what one goes by whose floor's turn it is, or who resumes
LATE: Final = 3
BATCH: Final = 4
_RANKS: Final = 5
_CREDIT_LIMIT: Final = 65_536  # tokens: a rank that waited for hours must not shut out the others for minutes

_QUEUED: Final = TicketState.QUEUED  # an enum's member costs a call to look up, and heaps ask it of every entry

Order = tuple[float, float, int]  # by time, then by when it leaves, then by ticket


@dataclass(init=False, slots=True, eq=False)
class Waiting:
    """A ticket in the queue and what was found out about it."""

    ticket: Ticket
    need: Need
    rank: int
    leave_s: float  # evicted then
    order: Order  # inside a tenant, least first
    estimated_s: float  # when `need` was made
    late_at_s: float  # when it can no longer meet its objective
    tested_epoch: int  # the fleet's epoch when it last fitted nowhere; -1: never tested
    may_hold: bool  # for a replica that meets its objective; only who will turn late, or it would wait for ever
    passed_s: float | None  # since when others take room that it could use
    protected_at: ReplicaId | None
    held_for: ReplicaId | None  # it waits, or has waited, for this replica although another had room
    held_until_s: float  # then it is tested everywhere and placed wherever there is room
    work: int  # as `batching.backlog` counts it; 0: it is not counted yet

    def __init__(self, ticket: Ticket, need: Need, rank: int, leave_s: float, order: Order, estimated_s: float) -> None:
        self.ticket = ticket
        self.need = need
        self.rank = rank
        self.leave_s = leave_s
        self.order = order
        self.estimated_s = estimated_s
        self.late_at_s = inf
        self.tested_epoch = -1
        self.may_hold = False
        self.passed_s = None
        self.protected_at = None
        self.held_for = None
        self.held_until_s = inf
        self.work = 0

    @property
    def queued(self) -> bool:
        return self.ticket.state is _QUEUED

    @property
    def held(self) -> bool:
        """It waits for one replica, although others may have room."""
        return self.held_for is not None and self.held_until_s != -inf

    @property
    def goes_by(self) -> int:
        return RESUMES if self.ticket.request.resumes else self.rank


def _waits(waiting: Waiting) -> bool:
    return waiting.ticket.state is _QUEUED


class _Counters:
    """Tokens served to each tenant, over its weight; ranks that share them are one account."""

    __slots__ = ("floor", "given", "served")

    def __init__(self) -> None:
        self.served: dict[str, float] = {}
        self.floor = 0.0
        self.given: dict[str, float] | None = None  # by this process, since it was last collected; None: it never was

    def stand(self, tenant: str) -> None:
        """It begins to wait: where whoever was served last stood, if it has stood idle since."""
        self.served[tenant] = max(self.served.get(tenant, 0.0), self.floor)


class _Rank:
    """The tenants of one rank of one lane. Nobody waits where there are no `turns`; where there are, `peek` tells."""

    __slots__ = ("_activations", "_counters", "_rank", "tenants", "turns")

    def __init__(self, rank: int, counters: _Counters) -> None:
        self._rank = rank
        self._counters = counters
        self.tenants: dict[str, LazyHeap[Order, Waiting]] = {}
        self.turns: list[tuple[float, int, str]] = []  # one entry a tenant; its counter may be out of date (too low)
        self._activations = count()

    def push(self, waiting: Waiting, *, arrives: bool) -> None:
        tenant = waiting.ticket.request.tenant
        heap = self.tenants.get(tenant)
        if heap is None:
            heap = self.tenants[tenant] = LazyHeap(self._alive)
            if arrives:
                self._counters.stand(tenant)
            served = self._counters.served.setdefault(tenant, 0.0)
            heappush(self.turns, (served, next(self._activations), tenant))
        heap.push(waiting.order, waiting)

    def clear(self) -> None:
        """Nobody waits: what is left in the heaps is dead."""
        self.turns.clear()
        self.tenants.clear()

    def peek(self) -> Waiting | None:
        served = self._counters.served
        while self.turns:
            noted, activation, tenant = self.turns[0]
            if served[tenant] > noted:
                heapreplace(self.turns, (served[tenant], activation, tenant))
                continue
            head = self.tenants[tenant].peek()
            if head is not None:
                return head[1]
            heappop(self.turns)
            del self.tenants[tenant]
        return None

    def pop(self) -> Waiting:
        """What `peek` has just shown."""
        return self.tenants[self.turns[0][2]].pop()

    def least(self) -> float:
        """The counter of whoever's turn it is; inf: nobody waits."""
        return inf if self.peek() is None else self.turns[0][0]

    def waits(self, tenant: str) -> bool:
        return (heap := self.tenants.get(tenant)) is not None and heap.peek() is not None

    def _alive(self, waiting: Waiting) -> bool:
        return waiting.rank == self._rank and waiting.ticket.state is _QUEUED


class Lane:
    """What waits for one model. `pop` and `push` are O(log n)."""

    def __init__(self, model: str, floors: Floors, aging_s: float = inf) -> None:
        self.model = model
        self.aging_s = aging_s
        self.size = 0
        self.fresh: list[Waiting] = []  # arrived since the last pass
        self.grown = False  # room has grown since then
        self.blocked: list[Waiting] = []  # the first in order that fitted nowhere in the last pass
        self.by_floor = True  # off for the rest of a pass in which one whose floor's turn it was fitted nowhere
        self.protected: list[Waiting] = []  # of them, those for whom a replica is kept
        self.backlog = Backlog()
        self.draining = False  # something was placed and left others waiting, who wait still
        self._resuming: LazyHeap[Order, Waiting] = LazyHeap(_waits)
        watched, batch = _Counters(), _Counters()
        self._ranks = tuple(_Rank(rank, batch if rank == BATCH else watched) for rank in range(_RANKS))
        self._counters = (watched, watched, watched, watched, batch)
        self._classes = (watched, batch)
        self._floors = (0.0, floors.default, floors.flex, floors.late, floors.batch)
        self._credits = [0.0] * _RANKS

    def push(self, waiting: Waiting, *, arrives: bool = True) -> None:
        """`arrives=False` puts back what `pop` gave, its tenant's standing unchanged."""
        if waiting.ticket.request.resumes:
            self._resuming.push(waiting.order, waiting)
        else:
            self._ranks[waiting.rank].push(waiting, arrives=arrives)

    def peek(self, now: float = -inf) -> tuple[int, Waiting] | None:
        """The next in order and the rank that it goes by (`FLOOR`: its floor's turn; `RESUMES`: before all); it stays. Without `now` nobody has aged."""
        if self._resuming.entries and (head := self._resuming.peek()) is not None:
            return RESUMES, head[1]
        first: tuple[int, Waiting] | None = None
        for number, rank in enumerate(self._ranks):
            if not rank.turns or (waiting := rank.peek()) is None:
                continue
            own = self._aged(number, waiting, now) if 0 < number < LATE else (number, waiting)
            if first is None:
                first = own
            elif self.by_floor and self._credits[number] >= min(waiting.ticket.request.prompt_tokens, _CREDIT_LIMIT):
                return FLOOR, waiting
            elif number < LATE:
                first = min(first, own, key=self._turn)
        return first

    def _aged(self, number: int, waiting: Waiting, now: float) -> tuple[int, Waiting]:
        """The rank that it goes by, in this lane and beside others'."""
        lifted_s = waiting.ticket.queued_s + self.aging_s
        while number and lifted_s <= now:
            number -= 1
            lifted_s += self.aging_s
        return number, waiting

    def _turn(self, head: tuple[int, Waiting]) -> tuple[int, float, Order]:
        """Among those that go by one rank, it is the tenant's turn that was served least."""
        goes_by, waiting = head
        return goes_by, self._counters[waiting.rank].served[waiting.ticket.request.tenant], waiting.order

    def take(self, waiting: Waiting) -> None:
        """What `peek` has just shown, out of the order: the caller places it or puts it back."""
        taken = self._resuming.pop() if waiting.ticket.request.resumes else self._ranks[waiting.rank].pop()
        assert taken is waiting

    def pass_by(self, waiting: Waiting) -> None:
        """As `push`, `peek` and `take` for the only one that waits, if it leaves at once; else it must be pushed back."""
        tenant = waiting.ticket.request.tenant
        if tenant not in self._ranks[waiting.rank].tenants and not waiting.ticket.request.resumes:
            self._counters[waiting.rank].stand(tenant)
        for rank in self._ranks:
            if rank.turns:
                rank.clear()

    def charge(self, rank: int, tenant: str, tokens: float, *, weight: float = 1.0, dispatch: bool = False) -> None:
        """Tokens served to a tenant of that weight; `dispatch` when one of its tickets leaves for a replica."""
        counters = self._counters[rank]
        served = counters.served
        before = served.get(tenant, counters.floor)
        more = tokens / weight
        served[tenant] = before + more
        if (given := counters.given) is not None:
            given[tenant] = given.get(tenant, 0.0) + more
        if dispatch:
            counters.floor = max(counters.floor, before)
            self._credit(rank, tokens)
        if len(served) > _MAX_COUNTERS:
            self._forget(counters)

    def collect_service(self) -> dict[int, dict[str, float]]:
        """Tokens over weight that were charged here since this was last called, by class of ranks (0: watched, 1: batch) and tenant."""
        found: dict[int, dict[str, float]] = {}
        for class_, counters in enumerate(self._classes):
            if counters.given:
                found[class_] = counters.given
            counters.given = {}
        return found

    def serve_elsewhere(self, class_: int, tokens: Mapping[str, float]) -> None:
        """Other processes have served so much (over weight) of this lane's model: it counts as if it had been served here.

        Who does not wait here stands, as one that begins to, no lower than the floor. The floor follows, so that who was idle here and elsewhere has no
        credit over those who were served elsewhere; but not beyond those who wait here, or a newcomer would stand behind them all.
        """
        counters = self._classes[class_]
        ranks = [rank for rank, own in zip(self._ranks, self._counters, strict=True) if own is counters and rank.turns]
        floor, least, highest = counters.floor, min((rank.least() for rank in ranks), default=inf), 0.0
        for tenant, more in tokens.items():
            before = counters.served.get(tenant, floor)
            if not any(rank.waits(tenant) for rank in ranks):
                before = max(before, floor)
            counters.served[tenant] = before + more
            highest = max(highest, before)
        counters.floor = max(floor, min(highest, least))
        if len(counters.served) > _MAX_COUNTERS:
            self._forget(counters)

    def _forget(self, counters: _Counters) -> None:
        """Of those who do not wait."""
        waiting = {tenant for own in self._ranks for tenant in own.tenants}
        counters.served = {tenant: served for tenant, served in counters.served.items() if tenant in waiting}

    def _credit(self, served: int, tokens: float) -> None:
        credits_ = self._credits
        if credits_[served]:  # its own count, too
            credits_[served] = max(0.0, credits_[served] - (1 - self._floors[served]) * tokens)
        for rank, waiting in enumerate(self._ranks):
            if waiting.turns and rank != served and self._floors[rank] and waiting.peek() is not None:
                credits_[rank] = min(_CREDIT_LIMIT, credits_[rank] + self._floors[rank] * tokens)
