"""Who makes way where the queue is full: the newest of the tenant that has most of it for its weight, in the lowest service tier that waits.

Keeps, of each service tier, what its tenants hold of the queue's bounds. Decides who would go, never that somebody does. Streams that
resume are not in it: they are never sent away.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from math import log2
from typing import Final, NamedTuple

from batching.lane import Waiting
from batching.request import Request, ServiceTier
from batching.ticket import TicketId
from config.schema import Queue as QueueConfig

_LEVELS: Final = (
    8  # an octave: tenants within 9 % of each other count as equal, so that the first of them is found at once
)
_MOST_VICTIMS: Final = 64  # for one arrival: beyond that the sizes of those who wait have nothing to do with its own
_TIERS: Final = tuple(ServiceTier)


class Held(NamedTuple):
    """Of the queue's three bounds."""

    requests: int
    tokens: int
    bytes: int

    def __add__(self, other: object) -> "Held":
        assert isinstance(other, Held)
        return Held(self.requests + other.requests, self.tokens + other.tokens, self.bytes + other.bytes)

    def __sub__(self, other: "Held") -> "Held":
        return Held(self.requests - other.requests, self.tokens - other.tokens, self.bytes - other.bytes)

    def beyond(self, bounds: "Held") -> int | None:
        """The first bound that this exceeds."""
        for value, bound in zip(self, bounds, strict=True):
            if value > bound:
                return bound
        return None


def size_of(request: Request) -> Held:
    return Held(1, request.prompt_tokens, request.body_bytes)


class _Tenant:
    __slots__ = ("bytes", "level", "share", "tokens", "waiting")

    def __init__(self, share: float) -> None:
        self.share = share  # its weight: of twice as much, it may hold twice as much
        self.waiting: OrderedDict[TicketId, Waiting] = OrderedDict()  # by arrival; both ends are O(1)
        self.tokens = 0
        self.bytes = 0
        self.level = -1


class _Tier:
    """One service tier: its tenants, and those of them with about equally much."""

    __slots__ = ("_changed", "_per_byte", "_per_token", "bytes", "levels", "requests", "tenants", "tokens")

    def __init__(self, bounds: Held) -> None:
        self._per_token = bounds.requests / bounds.tokens
        self._per_byte = bounds.requests / bounds.bytes
        self.tenants: dict[str, _Tenant] = {}
        self.levels: dict[int, dict[str, None]] = {}  # dicts for their order: a run is a function of its input
        self._changed: dict[str, None] = {}
        self.requests = 0
        self.tokens = 0
        self.bytes = 0

    def change(self, waiting: Waiting, sign: int) -> None:
        request = waiting.ticket.request
        name, ticket = request.tenant, waiting.ticket.id
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.tenants[name] = _Tenant(request.weight)
        if sign > 0:
            tenant.waiting[ticket] = waiting
        else:
            del tenant.waiting[ticket]
        tokens, size = sign * request.prompt_tokens, sign * request.body_bytes
        tenant.tokens += tokens
        tenant.bytes += size
        self.requests += sign
        self.tokens += tokens
        self.bytes += size
        if tenant.waiting:
            self._changed[name] = None
        else:
            self._changed.pop(name, None)
            self._lift(name, tenant, -1)

    def weight(self, tenant: _Tenant) -> float:
        """What it has of the three bounds together, in requests of a tenant of weight 1."""
        held = len(tenant.waiting) + self._per_token * tenant.tokens + self._per_byte * tenant.bytes
        return held / tenant.share

    def cost(self, size: Held) -> float:
        return size.requests + self._per_token * size.tokens + self._per_byte * size.bytes

    def newest(self, besides: str | None, most: float) -> Iterator[Waiting]:
        """Of those with most, newest first, as if each had gone; of `besides` none, and nobody is left with less than `most`."""
        self.sort()
        for level in sorted(self.levels, reverse=True):
            if 2 ** ((level + 1) / _LEVELS) < most:  # the most that anybody here has
                return
            for name in reversed(self.levels[level]):
                if name == besides:
                    continue
                tenant = self.tenants[name]
                left = self.weight(tenant)
                for waiting in reversed(tenant.waiting.values()):
                    left -= self.cost(size_of(waiting.ticket.request)) / tenant.share
                    if left < most:
                        break
                    yield waiting

    def sort(self) -> None:
        """Tenants that have changed since somebody last asked who has most."""
        changed, self._changed = self._changed, {}
        for name in changed:
            tenant = self.tenants[name]
            # One alone never makes way for a peer, whatever its size.
            level = 0 if len(tenant.waiting) == 1 else max(0, int(_LEVELS * log2(self.weight(tenant))))
            if level != tenant.level:
                self._lift(name, tenant, level)

    def _lift(self, name: str, tenant: _Tenant, level: int) -> None:
        before = self.levels.get(tenant.level)
        if before is not None:
            del before[name]
            if not before:
                del self.levels[tenant.level]
        tenant.level = level
        if level < 0:
            del self.tenants[name]
        else:
            self.levels.setdefault(level, {})[name] = None


class Crowd:
    """O(1) a change."""

    def __init__(self, config: QueueConfig) -> None:
        self.bounds = Held(config.max_requests, config.max_tokens, config.max_bytes)
        shares = config.tier_shares
        self._limits = tuple(
            Held(*(max(1, int(getattr(shares, tier.label) * bound)) for bound in self.bounds)) for tier in _TIERS
        )
        self._tiers = tuple(_Tier(self.bounds) for _ in _TIERS)

    def enter(self, waiting: Waiting) -> None:
        self._tiers[waiting.ticket.request.service_tier].change(waiting, 1)

    def leave(self, waiting: Waiting) -> None:
        self._tiers[waiting.ticket.request.service_tier].change(waiting, -1)

    def held(self, tier: ServiceTier) -> Held:
        row = self._tiers[tier]
        return Held(row.requests, row.tokens, row.bytes)

    def limit(self, tier: ServiceTier) -> Held:
        """What a tier may hold of the queue."""
        return self._limits[tier]

    def fits(self, request: Request, requests: int, all_tokens: int, all_bytes: int) -> bool:
        """Whether nobody need go for it. The rest is what the whole queue holds."""
        most, of_tier, tokens, size = (
            self.bounds,
            self._limits[request.service_tier],
            request.prompt_tokens,
            request.body_bytes,
        )
        tier = self._tiers[request.service_tier]
        return (
            requests < most.requests
            and all_tokens + tokens <= most.tokens
            and all_bytes + size <= most.bytes
            and tier.requests < of_tier.requests
            and tier.tokens + tokens <= of_tier.tokens
            and tier.bytes + size <= of_tier.bytes
        )

    def victims(self, request: Request, total: Held) -> list[Waiting] | int:
        """Who must go so that it may come, lowest first; or the bound that keeps it out. `total`: what the whole queue holds.

        A lower tier makes way for it, whoever it is of. In its own tier only a tenant does that has more than its own will have.
        """
        size, tier = size_of(request), request.service_tier
        going: list[Waiting] = []
        excess = self.held(tier) + size
        if (broken := excess.beyond(self._limits[tier])) is not None:  # only its own tier can make that room
            found = self._enough(self._peers(request, size), excess, self._limits[tier])
            if found is None:
                return broken
            going = found
            for waiting in found:
                total -= size_of(waiting.ticket.request)
        excess = total + size
        if (broken := excess.beyond(self.bounds)) is not None:
            gone = set(map(id, going))
            lower = (w for low in reversed(_TIERS[tier + 1 :]) for w in self._tiers[low].newest(None, -1.0))
            peers = (w for w in self._peers(request, size) if id(w) not in gone)
            found = self._enough(_both(lower, peers), excess, self.bounds)
            if found is None:
                return broken
            going += found
        return going

    def _peers(self, request: Request, size: Held) -> Iterator[Waiting]:
        """Of its tier, as far as their tenants keep as much as its own will have."""
        tier = self._tiers[request.service_tier]
        own = tier.tenants.get(request.tenant)
        will_have = tier.cost(size) / request.weight + (0.0 if own is None else tier.weight(own))
        return tier.newest(request.tenant, will_have)

    def _enough(self, candidates: Iterator[Waiting], excess: Held, bounds: Held) -> list[Waiting] | None:
        going: list[Waiting] = []
        for waiting in islice(candidates, _MOST_VICTIMS):
            going.append(waiting)
            excess -= size_of(waiting.ticket.request)
            if excess.beyond(bounds) is None:
                return going
        return None


def _both(first: Iterator[Waiting], second: Iterator[Waiting]) -> Iterator[Waiting]:
    yield from first
    yield from second
