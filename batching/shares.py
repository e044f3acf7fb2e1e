"""Who may use how much of a replica, where several gateways send to it: the book of shares. Pure; the transport is somebody else's.

A share is a whole number of parts of `WHOLE` and covers all of a replica's budgets alike. The sum of what holders may believe never
exceeds the whole, whatever the interleaving: a share is lowered at once in what its holder is told, but given to another only after
the holder has said that it keeps to the lower one; and no holder is asked for what it has in use. A report counts if none after it
has come; an answer counts for its holder only if it is the answer to its latest report (`batching.share_holder`).
"""

from collections.abc import Mapping
from itertools import count
from typing import Final, NamedTuple, NewType

from batching.request import ReplicaId

WHOLE: Final = 1 << 20  # parts: finer than a KV block of the largest cache
# Of its fair part, that an idle holder keeps where others could use it: a request there starts at once, and more is asked for.
_IDLE_RATIO: Final = 8

HolderId = NewType("HolderId", str)


class Share(NamedTuple):
    """What a holder may use of one replica, and what the others have running there."""

    parts: int = WHOLE
    others_sequences: int = 0
    others_blocks: int = 0  # KV blocks that they fill

    @property
    def whole(self) -> bool:
        return self.parts == WHOLE

    def of(self, amount: int) -> int:
        """The share of a budget, rounded down: the shares of all never exceed it."""
        return amount if self.parts == WHOLE else amount * self.parts // WHOLE

    def scaled(self, amount: int) -> int:
        """What a use of the share would be if the whole were used as densely."""
        return amount if self.parts == WHOLE else amount * WHOLE // max(self.parts, 1)


ALONE: Final = Share()
NOTHING: Final = Share(0)


class Claim(NamedTuple):
    """What a holder says of one replica. The first four are parts."""

    enforced: int  # it uses no more, until it is told that it may
    in_use: int
    needed: int = 0  # with so much the first of those who wait could start; 0: nobody waits
    wanted: int = 0  # ... all of them
    sequences: int = 0
    blocks: int = 0

    @property
    def short(self) -> bool:
        return self.needed > self.enforced


def parts_for(amount: int, total: int) -> int:
    """The least share of a budget of `total` that has room for `amount`; the whole if there is none."""
    return WHOLE if total <= 0 else min(WHOLE, -(-amount * WHOLE // total))


class _Held:
    """One holder at one replica."""

    __slots__ = ("bound", "claim", "granted", "told", "turn")

    def __init__(self) -> None:
        self.claim = Claim(0, 0)
        self.bound = 0  # what the holder may believe at most
        self.told = 0
        self.turn: int | None = None  # of its head, among those of all; None: nobody waits
        self.granted = False  # the last answer has room for it

    @property
    def short(self) -> bool:
        return self.claim.needed > self.bound


class ShareBook:
    """The only place that gives shares away. Per report O(replicas x holders)."""

    def __init__(self) -> None:
        self._replicas: dict[ReplicaId, dict[HolderId, _Held]] = {}
        self._numbers: dict[HolderId, int] = {}
        self._turns = count()  # whose head waits for longest goes first

    @property
    def holders(self) -> frozenset[HolderId]:
        return frozenset(self._numbers)

    def report(self, holder: HolderId, number: int, claims: Mapping[ReplicaId, Claim]) -> bool:
        """All that a holder has; what it does not name it has given up. False: a later one has come before it."""
        if number <= self._numbers.get(holder, -1):
            return False
        self._numbers[holder] = number
        for replica in [r for r, held in self._replicas.items() if holder in held and r not in claims]:
            self._drop(replica, holder)
        for replica, claim in claims.items():
            held = self._replicas.setdefault(replica, {}).setdefault(holder, _Held())
            held.claim = claim
            held.bound = held.told = min(held.bound, claim.enforced)
            if not claim.needed:
                held.turn = None
            elif held.turn is None or held.granted:
                held.turn = next(self._turns)  # its next head, or one that has room and waits for something else
            held.granted = False
        return True

    def leave(self, holder: HolderId) -> None:
        """It is gone, with all that it ran: everything comes back."""
        self._numbers.pop(holder, None)
        for replica in [r for r, held in self._replicas.items() if holder in held]:
            self._drop(replica, holder)

    def answer(self, holder: HolderId) -> tuple[int, dict[ReplicaId, Share]]:
        """(the report it answers, shares); what it raises is the holder's from now on, so it must be sent."""
        shares: dict[ReplicaId, Share] = {}
        for replica, holders in self._replicas.items():
            held = holders.get(holder)
            if held is None:
                continue
            target = _targets(holders)[holder]
            if target > held.bound:
                held.bound = min(target, held.bound + _free(holders))
            held.told = min(target, held.bound)
            held.granted = held.granted or held.told >= held.claim.needed
            others = [other.claim for other in holders.values() if other is not held]
            shares[replica] = Share(
                held.told, sum(claim.sequences for claim in others), sum(claim.blocks for claim in others)
            )
        return self._numbers.get(holder, -1), shares

    def unsettled(self) -> set[HolderId]:
        """Who should hear without having asked, because somebody is short: of more that is free, or of less."""
        found: set[HolderId] = set()
        for holders in self._replicas.values():
            if not any(held.short for held in holders.values()):
                continue
            targets, free = _targets(holders), _free(holders)
            for holder, held in holders.items():
                more = held.short and free > 0 and targets[holder] > held.bound
                if more or targets[holder] < held.told:
                    found.add(holder)
        return found

    def bounds(self, replica: ReplicaId) -> dict[HolderId, int]:
        """What each may believe at most."""
        return {holder: held.bound for holder, held in self._replicas.get(replica, {}).items()}

    def check(self) -> None:
        """Raises AssertionError where more than the whole is given away."""
        for replica, holders in self._replicas.items():
            assert _free(holders) >= 0, replica

    def _drop(self, replica: ReplicaId, holder: HolderId) -> None:
        holders = self._replicas[replica]
        del holders[holder]
        if not holders:
            del self._replicas[replica]


def _free(holders: Mapping[HolderId, _Held]) -> int:
    return WHOLE - sum(held.bound for held in holders.values())


def _targets(holders: Mapping[HolderId, _Held]) -> dict[HolderId, int]:
    """What each should have."""
    return divided(
        {holder: held.claim for holder, held in holders.items()},
        {holder: min(held.claim.in_use, held.bound) for holder, held in holders.items()},
        # Who has room for its head keeps its turn, too: it may be about to use it.
        {holder: held.turn for holder, held in holders.items() if held.turn is not None},
    )


def divided(
    claims: Mapping[HolderId, Claim], kept: Mapping[HolderId, int], turns: Mapping[HolderId, int], whole: int = WHOLE
) -> dict[HolderId, int]:
    """Of `whole` parts, what each should have: what it keeps; then heads by their turns, a little for the idle, all who wait, and the rest for anybody."""
    division = _Division(dict(kept), whole)
    for holder in sorted(turns, key=lambda holder: (turns[holder], holder)):
        division.give(holder, claims[holder].needed - division.parts[holder])
    for holder in claims:
        division.give(holder, whole // (_IDLE_RATIO * len(claims)) - division.parts[holder])
    division.share_out({holder: claim.wanted - division.parts[holder] for holder, claim in claims.items()})
    division.share_out(dict.fromkeys(claims, whole))
    return division.parts


class _Division:
    """The parts of one replica while they are handed out; never more than there are. Where more is kept than there is, none are."""

    def __init__(self, parts: dict[HolderId, int], whole: int) -> None:
        self.parts = parts
        self._rest = max(0, whole - sum(parts.values()))

    def give(self, holder: HolderId, parts: int) -> None:
        more = max(0, min(parts, self._rest))
        self.parts[holder] += more
        self._rest -= more

    def share_out(self, wishes: Mapping[HolderId, int]) -> None:
        """In equal parts, but to nobody more than it wishes: the smallest wishes first, so that what they leave goes on."""
        ordered = sorted((wish, holder) for holder, wish in wishes.items() if wish > 0)
        for place, (wish, holder) in enumerate(ordered):
            self.give(holder, min(wish, self._rest // (len(ordered) - place)))
