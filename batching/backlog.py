"""How much work waits for one model, by rank and tenant, and so what is ahead of one more: O(1) to count and to ask.

Work is a whole number in a unit of the caller's. Knows no times and no order inside a tenant.
"""

from collections.abc import Iterator
from math import inf
from typing import Final

from batching.placement import Need

_OUTPUT_WEIGHT: Final = 2  # as the queue's tenants are charged
_SLOT_S: Final = 0.125  # an eighth of the usual objective
_FAR_S: Final = 1e12
_RANKS: Final = 5  # as `batching.lane` numbers them


def work_of(need: Need) -> int:
    """What a request will take of a fleet, by the estimates of its arrival; above 0."""
    request = need.request
    return 1 + request.prompt_tokens + _OUTPUT_WEIGHT * request.sequences * need.expected_tokens


class _Share:
    """Of one tenant in one rank."""

    __slots__ = ("by_due", "tickets", "weight", "work")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.tickets = 0
        self.work = 0
        self.by_due: dict[int, int] = {}  # work by when it is due: a dozen entries a second of the objective

    def until(self, due_s: float) -> int:
        """Work that is due by then."""
        last = _slot(due_s)
        return sum(work for slot, work in self.by_due.items() if slot <= last)


class Backlog:
    """Whoever waits has entered with its rank and when it is due, and leaves by the same."""

    __slots__ = ("_shares", "_weights", "work")

    def __init__(self) -> None:
        self.work = [0] * _RANKS
        self._shares: tuple[dict[str, _Share], ...] = tuple({} for _ in range(_RANKS))
        self._weights = [0.0] * _RANKS  # of all tenants that wait

    def enter(self, rank: int, tenant: str, work: int, due_s: float, weight: float = 1.0) -> None:
        self.work[rank] += work
        share = self._shares[rank].get(tenant)
        if share is None:
            share = self._shares[rank][tenant] = _Share(weight)
            self._weights[rank] += weight
        share.tickets += 1
        share.work += work
        slot = _slot(due_s)
        share.by_due[slot] = share.by_due.get(slot, 0) + work

    def leave(self, rank: int, tenant: str, work: int, due_s: float) -> None:
        self.work[rank] -= work
        share = self._shares[rank][tenant]
        share.tickets -= 1
        if not share.tickets:
            del self._shares[rank][tenant]
            self._weights[rank] = self._weights[rank] - share.weight if self._shares[rank] else 0.0
            return
        share.work -= work
        slot = _slot(due_s)
        share.by_due[slot] -= work
        if not share.by_due[slot]:
            del share.by_due[slot]

    def waiting(self) -> Iterator[tuple[str, float, int, int]]:
        """(tenant, its weight, tickets, work) of each that waits; of one in several ranks more than once."""
        for shares in self._shares:
            for tenant, share in shares.items():
                yield tenant, share.weight, share.tickets, share.work

    def before(self, rank: int, tenant: str, work: int, due_s: float = inf, weight: float = 1.0) -> int:
        """What of this rank goes first if one of `work` more comes from that tenant: of its own what is due sooner.

        Tenants take turns, so each of the others has at most as much before it as its own has, times its weight over the tenant's.
        """
        shares = self._shares[rank]
        own = shares.get(tenant)
        if own is None:
            return min(self.work[rank], int(self._weights[rank] / weight * work))
        mine = own.work if due_s == inf else own.until(due_s)
        others = (self._weights[rank] - own.weight) / own.weight
        return mine + min(self.work[rank] - own.work, int(others * (mine + work)))


def _slot(due_s: float) -> int:
    return int(min(due_s, _FAR_S) / _SLOT_S)
