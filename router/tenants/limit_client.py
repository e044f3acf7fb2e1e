"""When a worker asks for more of its tenants' limits, and gives back what it does not use; those who wait, wait here.

Where the book is kept is the desk's business: here it is the supervisor, over its line.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Protocol

from config.tenants import Limits
from router.tenants.account import Account, Bound, Refusal
from router.tenants.leased import Lease
from router.tenants.limit_book import LEASE_S, Claim, Grant

_PATIENCE_S: Final = 1.0  # with a desk that does not answer: then nothing more is let through than was granted
_NEVER: Final = frozenset({Bound.USD, Bound.TOO_LARGE})


class LimitDesk(Protocol):
    """Where the book of limits is kept, seen from a holder. Answers come by `LimitClient.take`, in the order of the claims."""

    def claim(self, number: int, claims: Mapping[str, Claim]) -> None:
        """Hand in claims; never waits, and may be lost."""
        ...


@dataclass(slots=True, eq=False)
class _Asked:
    """Claims that are not answered yet."""

    claims: Mapping[str, Claim]
    asked_s: float
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


class LimitClient:
    """`tenancy.Accounts` of a gateway that is one of several. Owns one timer."""

    def __init__(self, desk: LimitDesk) -> None:
        self._desk = desk
        self._leases: dict[str, Lease] = {}
        self._waiting: dict[str, list[tuple[int, asyncio.Future[None]]]] = {}
        self._asked: dict[int, _Asked] = {}
        self._numbers = count(1)
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()

    def of(self, tenant: str, limits: Limits) -> Account:
        """Also says that something may come to be given back."""
        lease = self._leases.get(tenant)
        if lease is None or lease.account.limits != limits:
            lease = self._leases[tenant] = Lease(limits, lease)
        self._look_later()
        return lease.account

    async def more(self, tenant: str, account: Account, tokens: int, refusal: Refusal) -> bool:
        """Asks for it; False where that was refused a moment ago, or nobody answers."""
        del account
        loop = asyncio.get_running_loop()
        if refusal.bound in _NEVER or self._leases[tenant].refused(loop.time()):
            return False
        future = loop.create_future()
        self._waiting.setdefault(tenant, []).append((tokens, future))
        if self._soon is None:
            self._soon = loop.call_soon(self._ask)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await future
        except TimeoutError:
            return False
        return True

    def take(self, number: int, grants: Mapping[str, Grant]) -> None:
        """An answer of the desk."""
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        now = asyncio.get_running_loop().time()
        for tenant, grant in grants.items():
            self._leases[tenant].take(asked.claims[tenant], grant, asked.asked_s, now)
        for future in asked.waiting:
            if not future.done():
                future.set_result(None)
        self._look_later()

    def _ask(self) -> None:
        """For those who wait; what is to be given back goes with it."""
        self._soon = None
        now = asyncio.get_running_loop().time()
        waiting, self._waiting = self._waiting, {}
        claims = {
            tenant: lease.claim([tokens for tokens, _ in waiting.get(tenant, ())], now)
            for tenant, lease in self._leases.items()
            if tenant in waiting or lease.owes(now)
        }
        if claims:
            number = next(self._numbers)
            futures = [future for those in waiting.values() for _, future in those]
            self._asked[number] = _Asked(claims, now, futures)
            self._forget(now)
            self._desk.claim(number, claims)

    def _forget(self, now: float) -> None:
        """Claims that nobody will answer any more."""
        for number in [number for number, asked in self._asked.items() if now - asked.asked_s > 2 * _PATIENCE_S]:
            del self._asked[number]

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LEASE_S, self._look)

    def _look(self) -> None:
        """Again and again while anything is out."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        if any(lease.owes(now) for lease in self._leases.values()) and self._soon is None:
            self._ask()
        if any(lease.busy for lease in self._leases.values()):
            self._look_later()
