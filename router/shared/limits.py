"""One process' part in the limits that tenants have over all gateways: one background task that tells what was let in, and asks for more.

Decides when to ask, and when to go on without an answer; what is told and what an answer means is `router.tenants.shared_lease`'s. A
request waits for Redis only where what this process was lent of its tenant's limits is used up, or what others have spent of the month
was heard too long ago, and not once Redis has not answered for a lease.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from itertools import count
from math import inf
from typing import Final, TypeVar
from uuid import uuid4

from config.shared import SharedRedis
from config.tenants import Limits
from metrics.catalog import Metrics
from router.shared.limits_in_redis import LimitLine
from router.shared.redis_line import Unreachable
from router.tenants.account import Account, Bound, Refusal
from router.tenants.shared_lease import AHEAD_S, Reach, SharedLease
from router.tenants.shared_limit_book import Call, Status, Terms

log = logging.getLogger("penstock.shared")

_MOST_AT_ONCE: Final = 64  # tenants in one call: Redis does nothing else meanwhile
_BEATS: Final = 3  # calls within a lease, and within what comes after it, at least
_FAILURES: Final = 2  # one may be due to this process, which stood still for longer than a lease
_CALLS: Final = 3  # the one under way, one that a request's own has to wait for, and its own

_T = TypeVar("_T")
_Waiting = dict[str, list[tuple[int, asyncio.Future[None]]]]


class SharedLimits:
    """`tenancy.Accounts` of a gateway that is one of several. `run` in the gateway's task group; `leave` when all that ran has ended."""

    def __init__(self, line: LimitLine, config: SharedRedis, metrics: Metrics, *, workers: int) -> None:
        """`workers`: of this gateway; its static share is all its workers' together."""
        self._line = line
        self._metrics = metrics
        self._terms = Terms(int(1000 * config.lease_s), int(1000 * config.settle_s))
        self._lease_s = config.lease_s
        self._idle_s = min(config.lease_s, config.settle_s) / _BEATS
        self._beat_s = min(AHEAD_S, self._idle_s)
        self._patience_s = config.lease_s + _CALLS * config.timeout_s
        self._reach = Reach(config.static_share_ratio / workers)
        self._instance = uuid4().hex
        self._numbers = count(1)
        self._epoch = ""
        self._failed = 0  # calls, since one was answered
        self._answered_s = -inf  # when the last call was sent that was answered
        self._offset_ms = 0.0  # of the book's clock to this loop's
        self._leases: dict[str, SharedLease] = {}
        self._busy: dict[str, SharedLease] = {}  # those that the book must hear of again
        self._waiting: _Waiting = {}
        self._hurried = asyncio.Event()
        self._leaving = False

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            if not await self._exchange():
                await asyncio.sleep(self._beat_s)
            await asyncio.sleep(0)  # those who were answered take what was lent before it is given up again
            if not self._waiting:
                await self._rest()

    async def leave(self) -> None:
        """All is told, and nothing held any more; at most a few calls' time is spent on it."""
        self._leaving = True
        await self._line.aclose()  # what comes over it next might be the answer to what was cancelled
        try:
            if self._epoch and await self._exchange():
                held = [(tenant, lease.account.month) for tenant, lease in self._leases.items()]
                for tenants in _some(held):
                    await self._line.leave(self._instance, tenants)
        except Unreachable as error:
            log.info("Redis does not hear that this gateway ends (%s); what it held of limits lapses by itself", error)
        await self._line.aclose()

    @property
    def mode(self) -> str:
        """For `/readyz`."""
        return "static" if self._reach.static else "redis"

    # -- as `tenancy.Accounts` ---------------------------------------------------------------------------------------

    def of(self, tenant: str, limits: Limits) -> Account:
        lease = self._leases.get(tenant)
        if lease is None:
            lease = self._leases[tenant] = SharedLease(limits, self._reach)
        elif lease.account.limits != limits:
            lease.limit(limits)
        lease.lapse(asyncio.get_running_loop().time())
        if tenant not in self._busy:
            self._busy[tenant] = lease
            self._hurried.set()
        return lease.account

    async def more(self, tenant: str, account: Account, tokens: int, refusal: Refusal) -> bool:
        """Asks for it; False where that was refused a moment ago, could not help, or nobody answers."""
        loop, lease = asyncio.get_running_loop(), self._leases[tenant]
        if self._reach.static:
            blind, account.blind = account.blind, False
            return blind
        never = refusal.bound is Bound.TOO_LARGE or (refusal.bound is Bound.USD and not account.blind)
        if never or lease.refused(loop.time()):
            return False
        future = loop.create_future()
        self._waiting.setdefault(tenant, []).append((tokens, future))
        self._hurried.set()
        try:
            async with asyncio.timeout(self._patience_s):
                await future
        except TimeoutError:
            account.blind = False
        return True

    # -- the task ----------------------------------------------------------------------------------------------------

    async def _rest(self) -> None:
        """Until somebody waits, or something is to be told. Whoever has ever asked goes on to say that it lives: the others count on that."""
        pause_s = None if not self._leases else self._beat_s if self._busy or self._reach.static else self._idle_s
        try:
            async with asyncio.timeout(pause_s):
                await self._hurried.wait()
        except TimeoutError:
            pass

    async def _exchange(self) -> bool:
        """All that is to be told and asked; False: it was not answered."""
        self._hurried.clear()
        waiting, self._waiting = self._waiting, {}
        self._busy |= {tenant: self._leases[tenant] for tenant in waiting}
        try:
            while not await self._told(waiting):
                pass
        except Unreachable as error:
            self._metrics.redis_errors_total.labels(error.kind).inc()
            now = asyncio.get_running_loop().time()
            self._failed += 1
            lately = now - self._answered_s < self._lease_s
            if (lately or self._failed < _FAILURES) and not self._leaving:
                for tenant, those in waiting.items():
                    self._waiting[tenant] = [*those, *self._waiting.get(tenant, ())]
                waiting = {}
            else:
                self._alone(error)
            return False
        finally:
            for those in waiting.values():
                for _, future in those:
                    if not future.done():
                        future.set_result(None)
        return True

    async def _told(self, waiting: _Waiting) -> bool:
        """False: it is to be done once more, by what was learned."""
        now = asyncio.get_running_loop().time()
        for tenant in [tenant for tenant, lease in self._busy.items() if not lease.busy(now)]:
            if tenant not in waiting:
                del self._busy[tenant]
        due = [
            tenant
            for tenant, lease in self._busy.items()
            if tenant in waiting or lease.due(now) or (self._leaving and lease.owes(now))
        ]
        unheard = [tenant for tenant in due if self._busy[tenant].unheard]
        for tenants in _some(unheard or due):
            if not await self._call(tenants, {} if unheard else waiting):
                return False
        return not unheard

    async def _call(self, tenants: Sequence[str], waiting: Mapping[str, Sequence[tuple[int, object]]]) -> bool:
        """One call; none of them says that this process lives, too. Raises Unreachable."""
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        claims = []
        for tenant in tenants:
            lease = self._leases[tenant]
            claim = lease.claim([tokens for tokens, _ in waiting.get(tenant, ())], asked_s, self._offset_ms)
            claims.append((tenant, lease.account.month, claim))
        call = Call(self._instance, next(self._numbers), self._epoch, self._terms, claims)
        reply = await self._line.call(call)
        now = loop.time()
        if reply.status is not Status.OK:
            if reply.status is Status.NEW:
                self._epoch = reply.epoch
                self._offset_ms = reply.now_ms - 1000 * asked_s
                self._all_again(now)
            return False
        self._offset_ms = reply.now_ms - 1000 * asked_s
        self._answered_s, self._failed = asked_s, 0
        for (tenant, month, claim), grant in zip(claims, reply.grants, strict=True):
            self._leases[tenant].take(claim, grant, month, asked_s, now, self._lease_s, frozen=reply.frozen)
        self._say(static=reply.frozen, why="its book is new, and others may know what it does not")
        return True

    def _all_again(self, now: float) -> None:
        for tenant, lease in self._leases.items():
            lease.all_again(now)
            if lease.owes(now):
                self._busy[tenant] = lease

    def _alone(self, error: Unreachable) -> None:
        """Those who wait, and those who come, are served by the static share."""
        self._say(static=True, why=str(error))
        for lease in self._leases.values():
            lease.account.blind = False
        waiting, self._waiting = self._waiting, {}
        for those in waiting.values():
            for _, future in those:
                if not future.done():
                    future.set_result(None)

    def _say(self, *, static: bool, why: str) -> None:
        """Once at each change."""
        if static and not self._reach.static:
            log.warning("tenants' limits are not counted with other gateways (%s): %s", why, _STATIC % self._reach.part)
        elif self._reach.static and not static:
            log.info("tenants' limits are counted with other gateways again")
        self._reach.static = static


_STATIC: Final = "beyond what it was lent, this one lets in at most %.3g of each limit"


def _some(of: Sequence[_T]) -> list[Sequence[_T]]:
    """In parts that one call may have; an empty one where there is nothing."""
    return [of[i : i + _MOST_AT_ONCE] for i in range(0, max(1, len(of)), _MOST_AT_ONCE)]
