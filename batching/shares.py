"""Who may use how much of a replica, where several gateways send to it: the book of shares. Pure; the transport is somebody else's.

A share is a whole number of parts of `WHOLE` and covers all of a replica's budgets alike. The sum of what holders may believe never
exceeds the whole, whatever the interleaving: a share is lowered at once in what its holder is told, but given to another only after
the holder has said that it keeps to the lower one, and what runs beyond it is the holder's until it ends. A report counts if none after it
has come; an answer counts for its holder only if it is the answer to its latest report (`batching.share_holder`).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Final, NamedTuple, NewType, Self
from zlib import crc32

from batching.request import ReplicaId

WHOLE: Final = 1 << 20  # parts: finer than a KV block of the largest cache
# Of the whole, spared for those of whom nobody waits while others could use it: a request there begins at once, and more is asked for.
_SPARED_RATIO: Final = 8

HolderId = NewType("HolderId", str)


class Running(NamedTuple):
    """What one holder, or several, have running on a replica."""

    sequences: int = 0
    blocks: int = 0  # KV blocks that they fill
    prefill_s: float = 0.0  # of the machine, for prompts without a first token

    @classmethod
    def together(cls, all_: Iterable[Self]) -> Self:
        """The sum of each; of nobody: nothing."""
        return cls(*(sum(column) for column in zip(*all_, strict=True)))


class Share(NamedTuple):
    """What a holder may use of one replica, and what the others have running there."""

    parts: int = WHOLE
    others: Running = Running()

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


class Claim(NamedTuple):
    """What a holder says of one replica. Numbers are parts."""

    enforced: int  # it uses no more, until it is told that it may; it may begin less than that
    in_use: int
    needed: int = 0  # with so much the first of those who wait could start; 0: nobody waits
    wanted: int = 0  # ... all of them
    running: Running = Running()

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
        self._reckoned: dict[ReplicaId, dict[HolderId, int]] = {}  # what each should have, by the reports so far

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
            self._reckoned.pop(replica, None)
            held = self._replicas.setdefault(replica, {}).setdefault(holder, _Held())
            held.claim = claim
            held.bound = held.told = min(held.bound, claim.enforced)
            if not claim.needed:
                held.turn = None
            elif held.turn is None or held.granted:
                held.turn = next(self._turns)  # its next head, or one that has room and waits for something else
            held.granted = False
        return True

    def leave(self, holder: HolderId) -> list[ReplicaId]:
        """It is gone, with all that it ran: everything comes back, of these replicas."""
        self._numbers.pop(holder, None)
        had = [replica for replica, held in self._replicas.items() if holder in held]
        for replica in had:
            self._drop(replica, holder)
        return had

    def answer(self, holder: HolderId) -> tuple[int, dict[ReplicaId, Share]]:
        """(the report it answers, shares); what it raises is the holder's from now on, so it must be sent."""
        shares: dict[ReplicaId, Share] = {}
        for replica, holders in self._replicas.items():
            held = holders.get(holder)
            if held is None:
                continue
            target = self._targets(replica)[holder]
            if target > held.bound:
                held.bound = min(target, held.bound + _free(holders))
            held.told = min(target, held.bound)
            held.granted = held.granted or held.told >= held.claim.needed
            shares[replica] = Share(held.told, _others(holder, holders))
        return self._numbers.get(holder, -1), shares

    def hear(self, holder: HolderId, running: Mapping[ReplicaId, Running]) -> None:
        """What a holder has running by now; the rest of what it reported stands."""
        for replica, now_running in running.items():
            if (held := self._replicas.get(replica, {}).get(holder)) is not None:
                held.claim = held.claim._replace(running=now_running)

    def others(self, holder: HolderId, replicas: Iterable[ReplicaId]) -> dict[ReplicaId, Running]:
        """What the others have running on those of the replicas that it has."""
        found = ((replica, self._replicas.get(replica, {})) for replica in replicas)
        return {replica: _others(holder, holders) for replica, holders in found if holder in holders}

    def unsettled(self) -> set[HolderId]:
        """Who should hear without having asked, because somebody is short: of more that is free, or of less."""
        found: set[HolderId] = set()
        for replica, holders in self._replicas.items():
            if not any(held.short for held in holders.values()):
                continue
            targets, free = self._targets(replica), _free(holders)
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

    def _targets(self, replica: ReplicaId) -> dict[HolderId, int]:
        """What each should have. Reckoned once for all who are answered until somebody reports again."""
        if (found := self._reckoned.get(replica)) is None:
            found = self._reckoned[replica] = _targets(replica, self._replicas[replica])
        return found

    def _drop(self, replica: ReplicaId, holder: HolderId) -> None:
        self._reckoned.pop(replica, None)
        holders = self._replicas[replica]
        del holders[holder]
        if not holders:
            del self._replicas[replica]


def _others(holder: HolderId, holders: Mapping[HolderId, _Held]) -> Running:
    return Running.together(held.claim.running for other, held in holders.items() if other != holder)


def _free(holders: Mapping[HolderId, _Held]) -> int:
    return WHOLE - sum(held.bound for held in holders.values())


def _targets(replica: ReplicaId, holders: Mapping[HolderId, _Held]) -> dict[HolderId, int]:
    """What each should have."""
    return divided(
        replica,
        {holder: held.claim for holder, held in holders.items()},
        {holder: min(held.claim.in_use, held.bound) for holder, held in holders.items()},
        # Who has room for its head keeps its turn, too: it may be about to use it.
        {holder: held.turn for holder, held in holders.items() if held.turn is not None},
    )


def divided(
    replica: ReplicaId,
    claims: Mapping[HolderId, Claim],
    kept: Mapping[HolderId, int],
    turns: Mapping[HolderId, int],
    whole: int = WHOLE,
) -> dict[HolderId, int]:
    """Of `whole` parts, what each should have, by what they use (`kept`) and whose head waits since when (`turns`).

    First what each uses: but where somebody waits, no more than its even part, so that who has much begins nothing new until the others
    have theirs. Then heads by their turns, room for one more for some of those who have none, all who wait, and the rest for anybody. What is left over goes in
    pieces that a request can use; who is the first to have one differs from replica to replica, so that everybody has some somewhere.
    """
    order = sorted(claims, key=lambda holder: crc32(f"{replica} {holder}".encode()))
    waiting = sorted(turns, key=lambda holder: (turns[holder], holder))
    piece = _piece(claims)
    even = _even(claims, waiting, order, whole, piece) if waiting else kept
    division = _Division({h: _held_on_to(claims[h], kept[h], even[h]) for h in order}, whole, piece)
    for holder in waiting:
        division.give(holder, min(claims[holder].needed, even[holder]) - division.parts[holder])
    for holder in [holder for holder in order if holder not in turns][: whole // _SPARED_RATIO // piece]:
        division.give(holder, claims[holder].in_use + piece - division.parts[holder])
    for holder in order:
        division.give(holder, even[holder] - division.parts[holder])
    division.share_out(dict.fromkeys(order, whole))
    return division.parts


def _held_on_to(claim: Claim, kept: int, even: int) -> int:
    """All that it uses, unless that is more than a request beyond its even part: one would only change hands."""
    sequences = claim.running.sequences
    return kept if sequences and kept - even <= kept // sequences else min(kept, even)


def _even(
    claims: Mapping[HolderId, Claim], waiting: Sequence[HolderId], order: Sequence[HolderId], whole: int, piece: int
) -> dict[HolderId, int]:
    """Equal parts, but for nobody more than it uses or, where somebody waits, would: its tenants may have a right to less than it uses. The longest waiting head has its room even if it needs more than that."""
    demands = {h: claims[h].wanted if claims[h].needed else claims[h].in_use for h in order}
    even = _Division(dict.fromkeys(order, 0), whole, piece)
    even.share_out(demands)
    if waiting:
        first = waiting[0]
        needed = min(claims[first].needed, whole)
        if claims[first].in_use <= even.parts[first] < needed:
            even = _Division({**dict.fromkeys(order, 0), first: needed}, whole, piece)
            even.share_out({holder: demand for holder, demand in demands.items() if holder != first})
    return even.parts


def _piece(claims: Mapping[HolderId, Claim]) -> int:
    """What a request of the usual size takes; while none runs, the smallest of the heads."""
    sequences = sum(claim.running.sequences for claim in claims.values())
    if sequences:
        return max(1, sum(claim.in_use for claim in claims.values()) // sequences)
    return max(1, min((claim.needed - claim.in_use for claim in claims.values() if claim.needed), default=1))


class _Division:
    """The parts of one replica while they are handed out; never more than there are. Where more is kept than there is, none are."""

    def __init__(self, parts: dict[HolderId, int], whole: int, piece: int = 1) -> None:
        """In whole pieces, as long as there are some."""
        self.parts = parts
        self.piece = piece
        self._rest = max(0, whole - sum(parts.values()))

    def give(self, holder: HolderId, parts: int) -> None:
        more = max(0, min(parts, self._rest))
        self.parts[holder] += more
        self._rest -= more

    def share_out(self, wishes: Mapping[HolderId, int]) -> None:
        """In equal parts, but to nobody more than it wishes: the smallest wishes first, so that what they leave goes on."""
        before = dict(self.parts)
        ordered = sorted((wish, place, holder) for place, (holder, wish) in enumerate(wishes.items()) if wish > 0)
        for place, (wish, _, holder) in enumerate(ordered):
            part = self._rest // (len(ordered) - place)
            self.give(holder, min(wish, part - part % self.piece))
        for size in (self.piece, self._rest):  # what is left over in pieces, then what is less than one
            for wish, _, holder in ordered:
                self.give(holder, min(size, wish - self.parts[holder] + before[holder]))
