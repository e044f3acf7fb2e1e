"""How much work waits for one model, by rank and tenant, and so what is ahead of one more: O(1) to count and to ask.

Work is a whole number in a unit of the caller's. Knows no times and no order inside a tenant.
"""

from typing import Final

from batching.placement import Need

_OUTPUT_WEIGHT: Final = 2  # TO BE MEASURED
_RANKS: Final = 5  # as `batching.lane` numbers them


def work_of(need: Need) -> int:
    """What a request will take of a fleet, by the estimates of its arrival; above 0."""
    request = need.request
    return 1 + request.prompt_tokens + _OUTPUT_WEIGHT * request.sequences * need.expected_tokens


class _Share:
    """Of one tenant in one rank."""

    __slots__ = ("tickets", "work")

    def __init__(self) -> None:
        self.tickets = 0
        self.work = 0


class Backlog:
    """Whoever waits has entered with its rank, and leaves by the same."""

    __slots__ = ("_shares", "work")

    def __init__(self) -> None:
        self.work = [0] * _RANKS
        self._shares: tuple[dict[str, _Share], ...] = tuple({} for _ in range(_RANKS))

    def enter(self, rank: int, tenant: str, work: int) -> None:
        self.work[rank] += work
        share = self._shares[rank].get(tenant)
        if share is None:
            share = self._shares[rank][tenant] = _Share()
        share.tickets += 1
        share.work += work

    def leave(self, rank: int, tenant: str, work: int) -> None:
        self.work[rank] -= work
        share = self._shares[rank][tenant]
        share.tickets -= 1
        share.work -= work
        if not share.tickets:
            del self._shares[rank][tenant]

    def before(self, rank: int, tenant: str, work: int) -> int:
        """What goes first if one of `work` more comes from that tenant: better ranks, and of its own what its tenants share.

        Each tenant is taken to have at most as much before it as the own one will have: they take turns.
        """
        shares = self._shares[rank]
        own = shares.get(tenant)
        turns = len(shares) if own is not None else len(shares) + 1
        mine = work if own is None else own.work + work
        return sum(self.work[:rank]) + min(self.work[rank], turns * mine - work)
