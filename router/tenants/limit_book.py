"""The limits of tenants where several processes serve them: what each may take, so that all together never take more. Pure.

A worker is granted pieces of a window and keeps them for at most `LEASE_S`, from when it asked; what it does not use comes back. The
window counts a piece from its grant until it is a minute and a lease old, so that no minute holds more than the limit, whenever within
their leases pieces are used. Places of requests at once are its until it gives them back, or is gone.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from router.tenants.window import Piece, Window

LEASE_S: Final = 0.25  # under steady pressure a minute is short by so much of its sixtieth: 0.6 % with the slot


class Claim(msgspec.Struct, array_like=True):
    """What a holder says of one tenant. Limits of None are none; of the rest, requests come before tokens."""

    limits: tuple[int | None, int | None, int | None]  # requests and tokens a minute, at once
    month: str
    wanted: tuple[int, int, int] = (0, 0, 0)  # requests, tokens, places
    least_tokens: int = 0  # with so many the first of those who wait could begin
    back: tuple[list[Piece], list[Piece], int] = msgspec.field(default_factory=lambda: ([], [], 0))
    over: int = 0  # tokens used beyond what was reserved
    usd: float = 0.0


class Told(msgspec.Struct, array_like=True):
    """How a window stands after a claim."""

    left: int
    reset_s: float
    wait_s: float  # until what was needed is there, if nobody takes any


class Grant(msgspec.Struct, array_like=True):
    """What a holder may take from now on, beside what it has."""

    requests: Piece | None
    tokens: Piece | None
    places: int
    of_requests: Told | None
    of_tokens: Told | None
    spent_usd: float


class _Entry:
    """One tenant's."""

    def __init__(self, month: str) -> None:
        self.requests: Window | None = None
        self.tokens: Window | None = None
        self.places: int | None = None
        self.held: dict[str, int] = {}  # places, by holder
        self.month = month
        self.usd = 0.0

    def limit(self, requests: int | None, tokens: int | None, places: int | None) -> None:
        """As the latest claim says; while a reload goes round they may differ. What is used stays used."""
        self.requests, self.tokens = _limited(self.requests, requests), _limited(self.tokens, tokens)
        self.places = places


class LimitBook:
    """Of all tenants that anybody has claimed for."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def claim(self, holder: str, tenant: str, claim: Claim, now: float) -> Grant:
        """What comes back counts before what is wanted."""
        entry = self._entries.get(tenant)
        if entry is None:
            entry = self._entries[tenant] = _Entry(claim.month)
        entry.limit(*claim.limits)
        if claim.month > entry.month:
            entry.month, entry.usd = claim.month, 0.0
        if claim.month == entry.month:
            entry.usd += claim.usd
        requests, tokens, places = claim.wanted
        if entry.tokens is not None and claim.over:
            entry.tokens.take(claim.over, now)
        return Grant(
            _granted(entry.requests, claim.back[0], requests, now),
            _granted(entry.tokens, claim.back[1], tokens, now),
            self._placed(entry, holder, places - claim.back[2]),
            _told(entry.requests, 1, now),
            _told(entry.tokens, max(1, claim.least_tokens), now),
            entry.usd,
        )

    def leave(self, holder: str) -> None:
        """It is gone, and its requests with it."""
        for entry in self._entries.values():
            entry.held.pop(holder, None)

    @staticmethod
    def _placed(entry: _Entry, holder: str, change: int) -> int:
        """How many more (or fewer) the holder has now."""
        if entry.places is None:
            return 0
        mine = entry.held.get(holder, 0)
        free = entry.places - sum(entry.held.values())
        change = max(-mine, min(change, free) if change > 0 else change)
        entry.held[holder] = mine + change
        return change


def _limited(window: Window | None, limit: int | None) -> Window | None:
    if limit is None:
        return None
    if window is None:
        return Window(limit, lapse_s=LEASE_S)
    window.limit = limit
    return window


def _granted(window: Window | None, back: Sequence[Piece], wanted: int, now: float) -> Piece | None:
    if window is None:
        return None
    for piece in back:
        window.give_back(piece, now)
    given = min(wanted, max(0, window.room(now)))
    return window.take(given, now) if given else None


def _told(window: Window | None, least: int, now: float) -> Told | None:
    if window is None:
        return None
    return Told(max(0, window.room(now)), window.reset_s(now), min(window.wait_s(least, now), 1e6))
