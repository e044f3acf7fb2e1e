"""Who splits how much of a replica's price, where several gateways send to it: each its part, by what runs there. Pure.

As with budgets (`batching.shares`) the parts that holders may believe never sum to more than the whole: a part is lowered at once in what
its holder is told, but given to another only after the holder has said that it keeps to the lower one. Unlike a budget a part can be
lowered at once, whatever runs. Where nothing runs, all have equal parts, which are idle money.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from batching.meter import WHOLE_PRICE
from batching.request import ReplicaId
from batching.shares import HolderId

_TRIFLE: Final = WHOLE_PRICE >> 10  # a part that is off by less is left alone


class Payer(NamedTuple):
    """What a holder says of one replica."""

    parts: int  # of the price, that it splits now
    weight: int  # of all that it has running there


class _Held:
    __slots__ = ("bound", "told", "weight")

    def __init__(self) -> None:
        self.bound = 0  # what the holder may believe at most
        self.told = 0
        self.weight = 0


class PayBook:
    """Beside the book of shares, and told by the same reports. Per report O(replicas x holders)."""

    def __init__(self) -> None:
        self._replicas: dict[ReplicaId, dict[HolderId, _Held]] = {}

    def report(self, holder: HolderId, payers: Mapping[ReplicaId, Payer]) -> None:
        """All that a holder has, in the order in which it said so; what it does not name it pays nothing for."""
        for replica in [r for r, held in self._replicas.items() if holder in held and r not in payers]:
            self._drop(replica, holder)
        for replica, payer in payers.items():
            held = self._replicas.setdefault(replica, {}).setdefault(holder, _Held())
            held.weight = payer.weight
            held.bound = held.told = min(held.bound, payer.parts)

    def leave(self, holder: HolderId) -> None:
        """It is gone: others pay for what it would have."""
        for replica in [r for r, held in self._replicas.items() if holder in held]:
            self._drop(replica, holder)

    def answer(self, holder: HolderId) -> dict[ReplicaId, int]:
        """Its parts of each replica from now on; what it raises is the holder's, so it must be sent."""
        found: dict[ReplicaId, int] = {}
        for replica, holders in self._replicas.items():
            held = holders.get(holder)
            if held is None:
                continue
            target = _target(held, sum(other.weight for other in holders.values()), len(holders))
            if target > held.bound:
                free = WHOLE_PRICE - sum(other.bound for other in holders.values())
                held.bound = min(target, held.bound + free)
                held.told = held.bound
            elif held.bound - target > _TRIFLE or target == 0:
                held.told = target
            else:
                held.told = held.bound
            found[replica] = held.told
        return found

    def owed(self) -> set[HolderId]:
        """Who should hear without having asked: it has parts that others are to pay, or could have free ones."""
        found: set[HolderId] = set()
        for holders in self._replicas.values():
            free = WHOLE_PRICE - sum(held.bound for held in holders.values())
            total = sum(held.weight for held in holders.values())
            for holder, held in holders.items():
                more = _target(held, total, len(holders)) - held.bound
                if (more > _TRIFLE and free > _TRIFLE) or (-more > _TRIFLE and held.told == held.bound):
                    found.add(holder)
        return found

    def bounds(self, replica: ReplicaId) -> dict[HolderId, int]:
        """What each may believe at most."""
        return {holder: held.bound for holder, held in self._replicas.get(replica, {}).items()}

    def _drop(self, replica: ReplicaId, holder: HolderId) -> None:
        holders = self._replicas[replica]
        del holders[holder]
        if not holders:
            del self._replicas[replica]


class Splitter(Protocol):
    """What splits prices: a scheduler."""

    def payers(self) -> Mapping[ReplicaId, Payer]:
        """What it splits of each replica's price now, and among how much."""
        ...

    def pay(self, replica: ReplicaId, parts: int, now: float) -> None:
        """From now on; a replica that it does not have is none of its business."""
        ...


class Paying:
    """A holder's side: an answer counts only if it is to the latest report, for another may have been given what an older one promised."""

    def __init__(self, holder: Splitter) -> None:
        self._holder = holder
        self._number = 0

    def report(self, number: int) -> dict[ReplicaId, Payer]:
        """What goes with the report of this number."""
        self._number = number
        return dict(self._holder.payers())

    def take(self, number: int, parts: Mapping[ReplicaId, int], now: float) -> bool:
        """An answer; True if the next report should go at once, for others are to pay what is not paid here any more."""
        if number != self._number:
            return False
        lower = False
        payers = self._holder.payers()
        for replica, told in parts.items():
            if (payer := payers.get(replica)) is not None:
                lower = lower or told < payer.parts
                self._holder.pay(replica, told, now)
        return lower


def _target(held: _Held, total: int, holders: int) -> int:
    """By weight; where nothing runs, all alike. Rounded down: the sum is never more than the whole."""
    return WHOLE_PRICE * held.weight // total if total else WHOLE_PRICE // holders
