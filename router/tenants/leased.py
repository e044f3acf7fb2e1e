"""One tenant's limits as a worker sees them: pieces that it was granted, and what it was told of the rest. Pure.

Never lets more through than was granted and has not lapsed. What it asks for follows what it used lately.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from config.tenants import Limits
from router.tenants.account import Account, resized
from router.tenants.limit_book import LEASE_S, Claim, Grant, Told
from router.tenants.window import Piece

# After a refusal the book is not asked again for so long: what a client that does not stop asks costs nobody else's time.
_REFUSED_S: Final = 0.2
_MOST_AHEAD: Final = 16  # of a limit, at most so large a part beside what somebody waits for


class LeasedMeter:
    """As `account.Meter`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.back: list[Piece] = []
        self.over = 0
        self._granted: deque[tuple[float, Piece]] = deque()  # (lapses, piece)
        self._taken = 0  # since the last claim
        self._told = Told(limit, 0.0, 0.0)
        self._told_s = 0.0
        self._refused_until_s = 0.0

    def room(self, now: float) -> int:
        while self._granted and self._granted[0][0] <= now:
            self.back.append(self._granted.popleft()[1])
        return sum(piece.amount for _, piece in self._granted)

    def left(self, now: float) -> int:
        return self._told.left + self.room(now)

    def take(self, amount: int, now: float) -> Sequence[Piece]:
        self.room(now)
        self._taken += amount
        found: list[Piece] = []
        while amount and self._granted:
            lapses_s, piece = self._granted.popleft()
            given = min(amount, piece.amount)
            found.append(Piece(piece.slot, given))
            amount -= given
            if given < piece.amount:
                self._granted.appendleft((lapses_s, Piece(piece.slot, piece.amount - given)))
        self.over += amount
        return found

    def give_back(self, pieces: Sequence[Piece], now: float) -> None:
        """Not to be used again here: another moment's piece would count for the wrong minute."""
        del now
        self.back += pieces

    def wait_s(self, amount: int, now: float) -> float:
        del amount
        return max(_REFUSED_S, self._told.wait_s - (now - self._told_s))

    def reset_s(self, now: float) -> float:
        return max(0.0, self._told.reset_s - (now - self._told_s))

    @property
    def holds(self) -> bool:
        """Something that will lapse."""
        return bool(self._granted)

    def refused(self, now: float) -> bool:
        """The book had no more a moment ago."""
        return now < self._refused_until_s

    def wanted(self, waiting: int, since_s: float) -> int:
        """For those who wait, and those who will come while the lease runs, if they come as they did."""
        ahead = self._taken * LEASE_S / max(since_s, LEASE_S)
        self._taken = 0
        return waiting + min(int(ahead), self.limit // _MOST_AHEAD)

    def granted(self, piece: Piece | None, told: Told | None, wanted: int, asked_s: float, now: float) -> None:
        """The answer to a claim of `asked_s`, from when the lease counts."""
        if piece is not None:
            self._granted.append((asked_s + LEASE_S, piece))
        if told is not None:
            self._told, self._told_s = told, now
            if wanted and (piece is None or piece.amount < wanted):
                self._refused_until_s = now + min(_REFUSED_S, max(told.wait_s, 0.0))


class LeasedPlaces:
    """As `account.Places`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.granted = 0
        self.taken = 0
        self.refused_until_s = 0.0

    def take(self) -> bool:
        if self.taken >= self.granted:
            return False
        self.taken += 1
        return True

    def give_back(self) -> None:
        self.taken -= 1


class Lease:
    """All that a worker has of one tenant's limits, and its account there."""

    def __init__(self, limits: Limits, before: "Lease | None" = None) -> None:
        """`before`: with other limits; what is out by them stays out, and dollars are the book's."""
        per_minute, tokens, places = limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency
        self.requests: LeasedMeter | None = resized(
            LeasedMeter, per_minute, None if before is None else before.requests
        )
        self.tokens: LeasedMeter | None = resized(LeasedMeter, tokens, None if before is None else before.tokens)
        self.places: LeasedPlaces | None = resized(LeasedPlaces, places, None if before is None else before.places)
        self.account = Account(limits, requests=self.requests, tokens=self.tokens, places=self.places)
        self._limits = (per_minute, tokens, places)
        self._told_usd = 0.0  # of the account's, what the book knows
        self._claimed_s = 0.0

    def refused(self, now: float) -> bool:
        """Whether asking again now would bring nothing."""
        meters = any(meter.refused(now) for meter in (self.requests, self.tokens) if meter is not None)
        return meters or (self.places is not None and now < self.places.refused_until_s)

    def owes(self, now: float) -> bool:
        """Something to be given back or told."""
        for meter in (self.requests, self.tokens):
            if meter is not None:
                meter.room(now)
                if meter.back or meter.over:
                    return True
        free = self.places is not None and self.places.granted > self.places.taken
        return free or self.account.spent_usd != self._told_usd

    @property
    def busy(self) -> bool:
        """Something is out: it will lapse, or end."""
        meters = any(meter is not None and meter.holds for meter in (self.requests, self.tokens))
        return meters or self.account.out > 0

    def claim(self, waiting: Sequence[int], now: float) -> Claim:
        """`waiting`: the tokens that each of those who wait may take."""
        since_s, self._claimed_s = now - self._claimed_s, now
        back: tuple[list[Piece], list[Piece], int] = ([], [], 0)
        over, wanted = 0, [0, 0, 0]
        if self.requests is not None:
            wanted[0] = self.requests.wanted(len(waiting), since_s)
            back[0].extend(self.requests.back)
            self.requests.back.clear()
        if self.tokens is not None:
            wanted[1] = self.tokens.wanted(sum(waiting), since_s)
            back[1].extend(self.tokens.back)
            self.tokens.back.clear()
            over, self.tokens.over = self.tokens.over, 0
        free = 0
        if self.places is not None:
            wanted[2] = len(waiting)
            free = self.places.granted - self.places.taken
            self.places.granted -= free
        usd, self._told_usd = self.account.spent_usd - self._told_usd, self.account.spent_usd
        return Claim(
            limits=self._limits,
            month=self.account.month,
            wanted=(wanted[0], wanted[1], wanted[2]),
            least_tokens=min(waiting, default=0),
            back=(back[0], back[1], free),
            over=over,
            usd=usd,
        )

    def take(self, claim: Claim, grant: Grant, asked_s: float, now: float) -> None:
        """The answer to that claim."""
        if self.requests is not None:
            self.requests.granted(grant.requests, grant.of_requests, claim.wanted[0], asked_s, now)
        if self.tokens is not None:
            self.tokens.granted(grant.tokens, grant.of_tokens, claim.wanted[1], asked_s, now)
        if self.places is not None:
            given = grant.places + claim.back[2]
            self.places.granted += given
            if given < claim.wanted[2]:
                self.places.refused_until_s = now + _REFUSED_S
        unsaid = self.account.spent_usd - self._told_usd
        self._told_usd = grant.spent_usd
        self.account.spent_usd = grant.spent_usd + unsaid
