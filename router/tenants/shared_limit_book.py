"""The limits of tenants where several gateways serve them, as Redis keeps them: what each process may let in. Pure; `router.shared.limit_scripts` is it in Lua.

A process is lent an allowance of a minute and of places, and tells afterwards what it let in, by slots of this book's clock. What it
was lent and has not told of counts as used until it has, or until it could no longer be of this minute. Nothing that is told counts
twice: what may have been heard already is told again under its old number. Times are whole milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

SPAN_MS: Final = 60_000
SLOT_MS: Final = 100
FORGOTTEN_MS: Final = 600_000  # of a process that is silent for so long nothing is known any more


class Status(StrEnum):
    """What became of a call."""

    OK = "ok"
    NEW = "new"  # this is another book than the caller knows: nothing was done, all is to be told again
    STALE = "stale"  # a later call was here first


class Terms(NamedTuple):
    """How long something lent may be used, and how much later somebody silent counts as gone."""

    lease_ms: int
    settle_ms: int


class Claim(msgspec.Struct, array_like=True, frozen=True):
    """What a process says of one tenant, and wants for it. Of limits 0 is none."""

    limits: tuple[int, int, int]  # requests and tokens a minute, requests at once
    batch: int  # of `used`: told again under the same number it counts once
    used: tuple[
        list[int], list[int]
    ]  # requests and tokens: slot, amount, slot, amount...; negative where some came back
    wanted: tuple[int, int, int] = (0, 0, 0)  # requests, tokens, places
    least_tokens: int = 1  # with so many the first of those who wait could begin
    held: int = 0  # places that are taken
    usd: int = -1  # billionths, of all this process has spent in the month; -1: says nothing of dollars


class Told(NamedTuple):
    """How a window stands after a claim."""

    left: int
    reset_ms: int
    wait_ms: int  # until what was needed is there, if nobody takes any


class Grant(NamedTuple):
    """What the process may let in from now on, its places being all that it has. `usd`: billionths, of all processes."""

    requests: int
    tokens: int
    places: int
    of_requests: Told
    of_tokens: Told
    usd: int


class Call(NamedTuple):
    """Claims by tenant and month. `epoch`: of the book the caller knows; `number` grows with each call."""

    instance: str
    number: int
    epoch: str
    terms: Terms
    claims: Sequence[tuple[str, str, Claim]]


class Reply(NamedTuple):
    """`frozen`: others may know what this book does not, so nothing is lent yet. Grants are in the order of the claims."""

    status: Status
    epoch: str = ""
    now_ms: int = 0
    frozen: bool = False
    grants: Sequence[Grant] = ()


@dataclass(slots=True)
class _Lent:
    """To one process, of one tenant."""

    batch: int = 0
    at_ms: int = 0
    requests: int = 0
    tokens: int = 0
    places: int = 0


@dataclass(slots=True)
class _Tenant:
    epoch: str
    requests: dict[int, int] = field(default_factory=dict)  # by slot
    tokens: dict[int, int] = field(default_factory=dict)
    lent: dict[str, _Lent] = field(default_factory=dict)


@dataclass(slots=True)
class _Life:
    """Of the book: whose it is and since when. A new epoch begins with nothing but dollars."""

    server: str = ""
    epoch: str = ""
    last_ms: int = 0
    frozen_ms: int = 0  # until then
    born_ms: int = 0


class SharedLimitBook:
    """Of all tenants that anybody has claimed for."""

    def __init__(self) -> None:
        self._life = _Life()
        self._heard: dict[str, tuple[int, int]] = {}  # (when, number), by process
        self._tenants: dict[str, _Tenant] = {}
        self._usd: dict[tuple[str, str], dict[str, int]] = {}

    def call(self, now_ms: int, server: str, call: Call) -> Reply:
        """`server`: another one has not heard all that this one had."""
        now_ms = self._live(now_ms, server, call)
        life = self._life
        if call.number <= self._heard.get(call.instance, (0, -1))[1]:
            return Reply(Status.STALE)
        self._heard[call.instance] = (now_ms, call.number)
        self._heard = {name: heard for name, heard in self._heard.items() if now_ms - heard[0] <= FORGOTTEN_MS}
        frozen = now_ms < life.frozen_ms
        if call.epoch != life.epoch:
            return Reply(Status.NEW, life.epoch, now_ms, frozen)
        grants = tuple(self._claim(call, tenant, month, claim, now_ms, frozen) for tenant, month, claim in call.claims)
        return Reply(Status.OK, life.epoch, now_ms, frozen, grants)

    def leave(self, instance: str, tenants: Sequence[tuple[str, str]]) -> None:
        """It has ended, all told. What it spent stays, and is nobody's."""
        self._heard.pop(instance, None)
        for tenant, month in tenants:
            if tenant in self._tenants:
                self._tenants[tenant].lent.pop(instance, None)
            spent = self._usd.get((tenant, month), {})
            if instance in spent:
                spent[""] = spent.get("", 0) + spent.pop(instance)

    def _live(self, now_ms: int, server: str, call: Call) -> int:
        """What time it is; this book's clock goes back only with its epoch."""
        life, wait_ms = self._life, sum(call.terms)
        if life.server != server or now_ms < life.last_ms - call.terms.settle_ms:
            frozen_ms = now_ms + wait_ms if life.epoch else 0
            life = self._life = _Life(server, f"{server}:{now_ms}", now_ms, frozen_ms, now_ms)
        if call.epoch not in {"", life.epoch} and now_ms < life.born_ms + wait_ms:
            life.frozen_ms = life.born_ms + wait_ms
        now_ms = max(now_ms, life.last_ms)
        if (
            now_ms - life.last_ms > call.terms.settle_ms
        ):  # all were silent, or the clock was set: nobody is gone for that
            self._heard = {name: (now_ms, number) for name, (_, number) in self._heard.items()}
        life.last_ms = now_ms
        return now_ms

    def _claim(self, call: Call, name: str, month: str, claim: Claim, now_ms: int, frozen: bool) -> Grant:
        tenant = self._tenants.get(name)
        if tenant is None or tenant.epoch != call.epoch:
            tenant = self._tenants[name] = _Tenant(call.epoch)
        lent = tenant.lent.setdefault(call.instance, _Lent())
        if claim.batch > lent.batch:
            lent.batch = claim.batch
            _add(tenant.requests, claim.used[0], now_ms)
            _add(tenant.tokens, claim.used[1], now_ms)
        others = self._others(tenant, call, now_ms)
        free = [
            limit - used - elsewhere if limit and not frozen else 0
            for limit, used, elsewhere in zip(
                claim.limits,
                (_used(tenant.requests, now_ms), _used(tenant.tokens, now_ms), claim.held),
                others,
                strict=True,
            )
        ]
        given = [max(0, min(wanted, room)) for wanted, room in zip(claim.wanted, free, strict=True)]
        if given[1] < claim.least_tokens:
            given[1] = 0  # nobody could begin with that
        lent.at_ms, lent.requests, lent.tokens, lent.places = now_ms, given[0], given[1], claim.held + given[2]
        return Grant(
            given[0],
            given[1],
            lent.places,
            _told(tenant.requests, 1, claim.limits[0] and free[0] - given[0], now_ms),
            _told(tenant.tokens, claim.least_tokens, claim.limits[1] and free[1] - given[1], now_ms),
            self._spent(call.instance, name, month, claim.usd),
        )

    def _others(self, tenant: _Tenant, call: Call, now_ms: int) -> list[int]:
        """What is lent to others: of the minute as long as it could be of this one, places as long as they live."""
        terms, found = call.terms, [0, 0, 0]
        for other, lent in list(tenant.lent.items()):
            if other == call.instance:
                continue
            counts = now_ms < lent.at_ms + terms.lease_ms + SPAN_MS + SLOT_MS
            heard = self._heard.get(other)
            lives = heard is not None and now_ms - heard[0] <= terms.lease_ms + terms.settle_ms
            if counts:
                found[0] += lent.requests
                found[1] += lent.tokens
            if lives:
                found[2] += lent.places
            if not counts and not lives:
                del tenant.lent[other]
        return found

    def _spent(self, instance: str, tenant: str, month: str, usd: int) -> int:
        if usd < 0:
            return 0
        spent = self._usd.setdefault((tenant, month), {})
        spent[instance] = usd
        return sum(spent.values())


def _add(window: dict[int, int], used: list[int], now_ms: int) -> None:
    for slot, amount in zip(used[::2], used[1::2], strict=True):
        if _gone_ms(slot) > now_ms:
            window[slot] = max(0, window.get(slot, 0) + amount)


def _used(window: dict[int, int], now_ms: int) -> int:
    """Forgets what is too old."""
    for slot in [slot for slot, amount in window.items() if _gone_ms(slot) <= now_ms or not amount]:
        del window[slot]
    return sum(window.values())


def _told(window: dict[int, int], least: int, left: int, now_ms: int) -> Told:
    """`left` may be negative: more was used than had been reserved."""
    reset_ms = max((_gone_ms(slot) - now_ms for slot in window), default=0)
    short, wait_ms = least - left, 0
    if short > 0:
        wait_ms = SPAN_MS
        for slot in sorted(window):
            short -= window[slot]
            if short <= 0:
                wait_ms = _gone_ms(slot) - now_ms
                break
    return Told(max(0, left), reset_ms, wait_ms)


def _gone_ms(slot: int) -> int:
    return (slot + 1) * SLOT_MS + SPAN_MS
