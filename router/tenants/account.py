"""What one tenant has used of its limits, and whether one more request fits: reserved when it comes, settled when it ends. Pure.

A request that would not fit takes nothing. Tokens are reserved as prompt and longest answer together; what was not used comes back to
the moment it was taken at, so that it counts as if it had been known. Dollars are known only afterwards: they bound what comes next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from math import inf
from typing import Protocol, TypeVar, cast

from config.tenants import Limits
from router.tenants.window import Piece, Window

_BUSY_S = 1.0  # for a place: when the next one is free nobody knows


class Bound(StrEnum):
    """Which limit; a metric label."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    TOO_LARGE = "too_large"  # more tokens than the limit of a minute
    CONCURRENCY = "concurrency"
    USD = "usd"


class Meter(Protocol):
    """A window, here or elsewhere."""

    @property
    def limit(self) -> int: ...

    def room(self, now: float) -> int:
        """What may be taken at once."""
        ...

    def left(self, now: float) -> int:
        """Of the limit, wherever it is."""
        ...

    def take(self, amount: int, now: float) -> Sequence[Piece]:
        """Only what there is room for, or what was used already."""
        ...

    def give_back(self, pieces: Sequence[Piece], now: float) -> None: ...

    def wait_s(self, amount: int, now: float) -> float: ...

    def reset_s(self, now: float) -> float: ...


class Places(Protocol):
    """Of requests at once."""

    @property
    def limit(self) -> int: ...

    def take(self) -> bool:
        """False: there is none."""
        ...

    def give_back(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """What does not fit, and how long until it may; inf: never."""

    bound: Bound
    wait_s: float
    left: int = 0


@dataclass(slots=True, eq=False)
class Hold:
    """What one request has; given back once."""

    account: "Account"
    tokens: int
    requested: Sequence[Piece] = ()
    reserved: Sequence[Piece] = ()
    placed: bool = False
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """Of a limit by the minute, for the headers."""

    limit: int
    left: int
    reset_s: float


class Account:
    """One tenant's. `month` is the one that `spent_usd` is of."""

    def __init__(self, limits: Limits, *, requests: Meter | None, tokens: Meter | None, places: Places | None) -> None:
        self.limits = limits
        self.requests = requests
        self.tokens = tokens
        self.places = places
        self.spent_usd = 0.0
        self.month = ""
        self.out = 0  # holds that are not settled
        self.blind = False  # what others have spent is not known yet

    def enter(self, tokens: int, now: float, wall: datetime) -> Hold | Refusal:
        """All of it or nothing. `tokens`: that the request may take at most."""
        if self.limits.usd_per_month is not None:
            self.roll(wall)
        refusal = self._why_not(tokens, now)
        if refusal is not None:
            return refusal
        if self.places is not None and not self.places.take():
            return Refusal(Bound.CONCURRENCY, _BUSY_S)
        self.out += 1
        return Hold(
            self,
            tokens,
            () if self.requests is None else self.requests.take(1, now),
            () if self.tokens is None else self.tokens.take(tokens, now),
            self.places is not None,
        )

    def settle(self, hold: Hold, now: float, wall: datetime, *, tokens: int | None, usd: float | None) -> None:
        """Once; a second time changes nothing. `tokens`: that it used; None: it used nothing, not even itself.

        A request that was never served counts as none. `usd`: None: nobody has said.
        """
        if hold.settled:
            return
        hold.settled = True
        self.out -= 1
        if hold.placed and self.places is not None:
            self.places.give_back()
        if self.requests is not None and tokens is None:
            self.requests.give_back(hold.requested, now)
        if self.tokens is not None:
            used = tokens or 0
            if used > hold.tokens:
                self.tokens.take(used - hold.tokens, now)
            else:
                self.tokens.give_back(_last_of(hold.reserved, hold.tokens - used), now)
        if usd is not None:
            self.roll(wall)
            self.spent_usd += usd

    def standings(self, now: float) -> dict[str, Standing]:
        """By what OpenAI's headers call them; of limits that there are."""
        meters = {"requests": self.requests, "tokens": self.tokens}
        return {
            name: Standing(meter.limit, max(0, meter.left(now)), meter.reset_s(now))
            for name, meter in meters.items()
            if meter is not None
        }

    def roll(self, wall: datetime) -> None:
        """A new month begins with nothing spent."""
        month = wall.astimezone(UTC).strftime("%Y-%m")
        if month != self.month:
            self.month, self.spent_usd = month, 0.0

    def _why_not(self, tokens: int, now: float) -> Refusal | None:
        most = self.limits.usd_per_month
        if most is not None and (self.blind or self.spent_usd >= most):
            return Refusal(Bound.USD, inf)
        if self.tokens is not None and tokens > self.tokens.limit:
            return Refusal(Bound.TOO_LARGE, inf)
        if self.requests is not None and self.requests.room(now) < 1:
            return Refusal(Bound.REQUESTS, self.requests.wait_s(1, now))
        if self.tokens is not None and (room := self.tokens.room(now)) < tokens:
            return Refusal(Bound.TOKENS, self.tokens.wait_s(tokens, now), max(0, room))
        return None


class OwnMeter:
    """A window that nobody else takes from."""

    def __init__(self, limit: int) -> None:
        self._window = Window(limit)

    @property
    def limit(self) -> int:
        return self._window.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._window.limit = limit

    def room(self, now: float) -> int:
        return self._window.room(now)

    def left(self, now: float) -> int:
        return self._window.room(now)

    def take(self, amount: int, now: float) -> Sequence[Piece]:
        return (self._window.take(amount, now),)

    def give_back(self, pieces: Sequence[Piece], now: float) -> None:
        for piece in pieces:
            self._window.give_back(piece, now)

    def wait_s(self, amount: int, now: float) -> float:
        return self._window.wait_s(amount, now)

    def reset_s(self, now: float) -> float:
        return self._window.reset_s(now)


class OwnPlaces:
    """Places that nobody else takes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0

    def take(self) -> bool:
        if self._taken >= self.limit:
            return False
        self._taken += 1
        return True

    def give_back(self) -> None:
        self._taken -= 1


def own_account(limits: Limits, before: Account | None = None) -> Account:
    """Of a gateway that stands alone. `before`: with other limits; what is used by them stays used."""
    account = Account(
        limits,
        requests=resized(OwnMeter, limits.requests_per_minute, None if before is None else before.requests),
        tokens=resized(OwnMeter, limits.tokens_per_minute, None if before is None else before.tokens),
        places=resized(OwnPlaces, limits.concurrency, None if before is None else before.places),
    )
    if before is not None:
        account.month, account.spent_usd, account.out = before.month, before.spent_usd, before.out
    return account


class _Limited(Protocol):
    limit: int


L = TypeVar("L", bound=_Limited)


def resized(kind: Callable[[int], L], limit: int | None, before: object) -> L | None:
    """The same with another limit, or a new one; None: there is no limit any more."""
    if limit is None:
        return None
    if before is None:
        return kind(limit)
    kept = cast("L", before)
    kept.limit = limit
    return kept


def _last_of(pieces: Sequence[Piece], amount: int) -> list[Piece]:
    """So much of them, the newest first: what stays counts for no longer than it must."""
    found: list[Piece] = []
    for piece in reversed(pieces):
        if amount <= 0:
            break
        given = min(amount, piece.amount)
        found.append(Piece(piece.slot, given))
        amount -= given
    return found
