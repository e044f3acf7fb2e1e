"""One tenant's limits as one process of several gateways sees them: what it was lent, what it has let in, what of that is told. Pure.

Never lets more in than was lent, while the book can be reached. While it cannot, it lets in what is left of its allowance, then its
static share of what the book last said was left, and of what has come free since: after a minute that is its share of the limit. A request
that is alone fits, unless the book has said otherwise, so that a share smaller than one request is not none. All of it is told afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from config.tenants import Limits
from router.tenants.account import Account, resized
from router.tenants.shared_limit_book import SLOT_MS, Claim, Grant, Told
from router.tenants.window import SLOT_S, SPAN_S, Piece, Window

AHEAD_S: Final = 0.25  # what may come in so long is asked for beside what somebody waits for; it is also told so often
# After a refusal the book is not asked again for so long: what a client that does not stop asks costs nobody else's time.
_REFUSED_S: Final = 0.2
_MOST_AHEAD: Final = 16  # of a limit, at most so large a part
_REMIND_S: Final = 20.0  # the book is told of places that are held for long; it forgets a tenant that nobody asks for
_SUM_S: Final = 5.0  # so old what others have spent may be when somebody is let in by it
_BILLIONTHS: Final = 1_000_000_000


@dataclass(slots=True)
class Reach:
    """Of the book, for all leases of a process. `part`: the static share of each limit, 0 to 1."""

    part: float
    static: bool = False


class SharedMeter:
    """As `account.Meter`."""

    def __init__(self, reach: Reach, limit: int) -> None:
        self._reach = reach
        self._limit = limit
        self._mine = Window(limit)  # let in here, as far as it counts
        self._untold: dict[int, int] = {}  # by slot of `_mine`
        self._slots: dict[int, int] = {}  # the book's, by ours: what comes back must come back to where it was taken
        self._lent = 0
        self._until_s = 0.0
        self._told = Told(limit, 0, 0)
        self._told_s = 0.0
        self._refused_until_s = 0.0

    @property
    def limit(self) -> int:
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = self._mine.limit = limit

    def room(self, now: float) -> int:
        lent = self._lent if now < self._until_s else 0
        return max(lent, self._static_room(now)) if self._reach.static else lent

    def left(self, now: float) -> int:
        return self.room(now) if self._reach.static else self._told.left + self.room(now)

    def take(self, amount: int, now: float) -> Sequence[Piece]:
        piece = self._mine.take(amount, now)
        self._untold[piece.slot] = self._untold.get(piece.slot, 0) + amount
        self._lent = max(0, self._lent - amount)
        return (piece,)

    def give_back(self, pieces: Sequence[Piece], now: float) -> None:
        """It may be lent again, by the book; what is older than a minute is gone already."""
        for piece in pieces:
            given = self._mine.give_back(piece, now)
            if given > 0:
                self._untold[piece.slot] = self._untold.get(piece.slot, 0) - given

    def wait_s(self, amount: int, now: float) -> float:
        told_s = self._told.wait_ms / 1000 - (now - self._told_s)
        if self._reach.static:
            told_s = max(told_s, min(SPAN_S, SPAN_S * amount / max(1.0, self._limit * self._reach.part)))
        return max(_REFUSED_S, told_s)

    def reset_s(self, now: float) -> float:
        if self._reach.static:
            return self._mine.reset_s(now)
        return max(0.0, self._told.reset_ms / 1000 - (now - self._told_s))

    # -- what the lease asks of it ------------------------------------------------------------------------------------

    def owes(self) -> bool:
        return self._lent > 0 or any(self._untold.values())

    def busy(self, now: float) -> bool:
        """Something counts still."""
        return self._mine.room(now) < self._mine.limit

    def refused(self, now: float) -> bool:
        """The book had no more a moment ago."""
        return now < self._refused_until_s

    def wanted(self, waiting: int, now: float) -> int:
        """For those who wait, and those who will come, if they come as they did. What is lent still is given up."""
        self._lent = 0
        return waiting + min(self._mine.since(now - AHEAD_S), self._limit // _MOST_AHEAD)

    def used(self, now: float, offset_ms: float) -> list[int]:
        """What is not told yet, as a claim says it. `offset_ms`: of the book's clock to ours, rather too large than too small."""
        self._mine.room(now)
        oldest = int((now - 2 * 60) / SLOT_S)
        self._slots = {own: slot for own, slot in self._slots.items() if own > oldest}
        found: list[int] = []
        for own, amount in self._untold.items():
            if amount and own > oldest:
                slot = self._slots.setdefault(own, int(((own + 1) * SLOT_S * 1000 - 1 + offset_ms) / SLOT_MS))
                found += (slot, amount)
        self._untold.clear()
        return found

    def all_again(self, now: float) -> None:
        """The book has forgotten: the whole of the last minute is to be told."""
        self._lent = 0
        self._slots.clear()
        self._untold = self._mine.held(now)

    def granted(self, lent: int, told: Told, wanted: int, until_s: float, now: float) -> None:
        """By a book that knows what is left."""
        self._lent, self._until_s = lent, until_s
        self._told, self._told_s = told, now
        if lent < wanted:
            self._refused_until_s = now + min(_REFUSED_S, told.wait_ms / 1000)

    def _static_room(self, now: float) -> int:
        """Our part of what the book said was left, and of what has come free since, if it did so evenly, less what we took since."""
        free_s = now - self._told_s - self._told.wait_ms / 1000  # so long may there have been some again
        if free_s >= 0 and self._mine.room(now) >= self._limit:
            return self._limit  # nothing of ours counts
        left = self._told.left
        known = left + (self._limit - left) * min(1.0, max(0.0, free_s) / SPAN_S)
        return int(known * self._reach.part) - self._mine.since(max(self._told_s, now - SPAN_S))


class SharedPlaces:
    """As `account.Places`."""

    def __init__(self, reach: Reach, limit: int) -> None:
        self.limit = limit
        self.granted = 0
        self.taken = 0
        self.told = 0  # of those taken
        self.until_s = 0.0
        self.refused_until_s = 0.0
        self._reach = reach

    def take(self) -> bool:
        static = self._reach.static and (self.taken == 0 or self.taken < int(self.limit * self._reach.part))
        if self.taken >= self.granted and not static:
            return False
        self.taken += 1
        return True

    def give_back(self) -> None:
        self.taken -= 1

    def lapse(self, now: float) -> None:
        """What was granted long ago and is not taken may be somebody else's."""
        if now >= self.until_s:
            self.granted = min(self.granted, self.taken)


class SharedLease:
    """All that a process has of one tenant's limits, and its account there."""

    def __init__(self, limits: Limits, reach: Reach) -> None:
        self._reach = reach
        self.account = Account(limits, requests=None, tokens=None, places=None)
        self.requests: SharedMeter | None = None
        self.tokens: SharedMeter | None = None
        self.places: SharedPlaces | None = None
        self._batch = 0
        self._sent: tuple[list[int], list[int]] | None = None  # under the number of the batch, and maybe not heard
        self._others_usd = 0.0  # of the account's
        self._told_usd = -1  # billionths of our own; -1: nothing yet
        self._month = ""
        self._claimed_s = self._reminded_s = self._summed_s = -inf
        self.limit(limits)

    def limit(self, limits: Limits) -> None:
        """From now on; what is out by others stays out."""
        account, reach = self.account, self._reach
        account.limits = limits
        self.requests = account.requests = resized(
            lambda limit: SharedMeter(reach, limit), limits.requests_per_minute, self.requests
        )
        self.tokens = account.tokens = resized(
            lambda limit: SharedMeter(reach, limit), limits.tokens_per_minute, self.tokens
        )
        self.places = account.places = resized(
            lambda limit: SharedPlaces(reach, limit), limits.concurrency, self.places
        )
        account.blind = limits.usd_per_month is not None and self._told_usd < 0

    @property
    def _meters(self) -> list[SharedMeter]:
        return [meter for meter in (self.requests, self.tokens) if meter is not None]

    @property
    def unheard(self) -> bool:
        """A claim went out, and nobody knows whether it arrived: it is told again before anything is asked for."""
        return self._sent is not None

    def lapse(self, now: float) -> None:
        """Before anything is let in."""
        if self._limits_usd and not self._reach.static and now - self._summed_s >= _SUM_S:
            self.account.blind = True
        if self.places is not None:
            self.places.lapse(now)

    def refused(self, now: float) -> bool:
        """Whether asking again now would bring nothing."""
        if self.account.blind:
            return False
        meters = any(meter.refused(now) for meter in self._meters)
        return meters or (self.places is not None and now < self.places.refused_until_s)

    def due(self, now: float) -> bool:
        """To be told now, though nobody waits: not each time that another tenant's request does."""
        return self.unheard or (now - self._claimed_s >= AHEAD_S and self.owes(now))

    def owes(self, now: float) -> bool:
        """Something to be given back or told."""
        if self.unheard or any(meter.owes() for meter in self._meters):
            return True
        places = self.places
        if places is not None:
            if places.granted != places.taken or places.told != places.taken:
                return True
            if places.taken and now - self._reminded_s >= _REMIND_S:
                return True
        return self._limits_usd and self._own_usd() != self._told_usd

    def busy(self, now: float) -> bool:
        """It is not forgotten yet."""
        return self.account.out > 0 or any(meter.busy(now) for meter in self._meters) or self.owes(now)

    def claim(self, waiting: Sequence[int], now: float, offset_ms: float) -> Claim:
        """`waiting`: the tokens that each of those who wait may take. What may have been told already is told again, and nothing asked for."""
        limits, again = self.account.limits, self.unheard
        if self._sent is None:
            self._batch += 1
            requests, tokens = (m.used(now, offset_ms) if m is not None else [] for m in (self.requests, self.tokens))
            self._sent = (requests, tokens)
        wanted = [0, 0, 0]
        if not again:
            self._claimed_s = now
            if self.requests is not None:
                wanted[0] = self.requests.wanted(len(waiting), now)
            if self.tokens is not None:
                wanted[1] = self.tokens.wanted(sum(waiting), now)
            wanted[2] = len(waiting)
        held = 0
        if self.places is not None:
            held = self.places.granted = self.places.taken
        return Claim(
            limits=(limits.requests_per_minute or 0, limits.tokens_per_minute or 0, limits.concurrency or 0),
            batch=self._batch,
            used=self._sent,
            wanted=(wanted[0], wanted[1], wanted[2]),
            least_tokens=min(waiting, default=1),
            held=held,
            usd=self._own_usd() if self._limits_usd else -1,
        )

    def take(
        self,
        claim: Claim,
        grant: Grant,
        month: str,
        asked_s: float,
        now: float,
        lease_s: float,
        *,
        frozen: bool = False,
    ) -> None:
        """The answer to that claim, of that month. `frozen`: the book does not know yet what is left."""
        self._sent = None
        until_s = asked_s + lease_s
        if self.requests is not None and not frozen:
            self.requests.granted(grant.requests, grant.of_requests, claim.wanted[0], until_s, now)
        if self.tokens is not None and not frozen:
            self.tokens.granted(grant.tokens, grant.of_tokens, claim.wanted[1], until_s, now)
        if self.places is not None:
            self.places.granted, self.places.told, self.places.until_s = grant.places, claim.held, until_s
            self._reminded_s = now
            if grant.places < claim.held + claim.wanted[2]:
                self.places.refused_until_s = now + _REFUSED_S
        if claim.usd >= 0 and month == self.account.month:
            others_usd = (grant.usd - claim.usd) / _BILLIONTHS
            self.account.spent_usd += others_usd - self._others_usd
            self._others_usd, self._told_usd, self._summed_s = others_usd, claim.usd, asked_s
            self.account.blind = False

    def all_again(self, now: float) -> None:
        """Another book, or the same without its memory."""
        self._sent, self._claimed_s = None, -inf
        self._told_usd = min(self._told_usd, 0)
        for meter in self._meters:
            meter.all_again(now)
        if self.places is not None:
            self.places.granted, self.places.told = min(self.places.granted, self.places.taken), -1

    @property
    def _limits_usd(self) -> bool:
        return self.account.limits.usd_per_month is not None

    def _own_usd(self) -> int:
        """Billionths, that requests here have cost in the account's month."""
        account = self.account
        if account.month != self._month:
            self._month, self._others_usd = account.month, 0.0
        return max(0, round((account.spent_usd - self._others_usd) * _BILLIONTHS))
