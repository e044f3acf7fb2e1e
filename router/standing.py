"""What stands against a replica: that it is drained, or that its machine will be taken away - and what a second word of it changes (pure).

Drains and notices add up: the word that lets in the least work holds, and the soonest deadline.
"""

from enum import StrEnum
from typing import Final

import msgspec

_MOST_IDS: Final = 16  # of notices, remembered to know a repeat: a cloud has one or two for a machine
_SAME_S: Final = 1.0  # deadlines so close are the same, told twice


class Kind(StrEnum):
    """The last lets in the least."""

    REBALANCE = "rebalance"  # it may be reclaimed soon: nothing long begins there
    RECLAIM = "reclaim"  # it will be: only what ends before that begins there
    MAINTENANCE = "maintenance"  # it will be gone for a while: nothing begins there
    DRAIN = "drain"  # an operator said so, and will say when it is over


_ORDER: Final = {kind: place for place, kind in enumerate(Kind)}


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One replica's. `deadline_s` is on the clock of whoever holds it; `at` sets it to another's."""

    kind: Kind
    provider: str = "operator"
    ids: tuple[str, ...] = ()
    deadline_s: float | None = None  # None: it takes as long as it takes
    deadline_unix_s: float | None = None  # the same, as it was said

    @property
    def empties(self) -> bool:
        """Whether all that runs there must end or go."""
        return self.kind is not Kind.REBALANCE

    @property
    def ends_with_the_machine(self) -> bool:
        """Of a machine that was gone, a notice is over; a drain is not: who drains it says when it may work again."""
        return self.kind is not Kind.DRAIN

    def at(self, clock_s: float) -> "Standing":
        """The same where the clock says so much more."""
        if self.deadline_s is None:
            return self
        return msgspec.structs.replace(self, deadline_s=self.deadline_s + clock_s)


def is_repeat(before: Standing | None, new: Standing) -> bool:
    """Whether it was said already: by its id, or word for word where it has none."""
    if before is None or _ORDER[new.kind] > _ORDER[before.kind]:
        return False
    if new.ids:
        return set(new.ids) <= set(before.ids) and not _is_sooner(before, new)
    return not _is_sooner(before, new)


def joined(before: Standing | None, new: Standing) -> Standing:
    """What stands after a second word."""
    before = new if before is None else before
    kept = new if _ORDER[new.kind] > _ORDER[before.kind] else before
    # A hint names no end, whatever time came with it.
    soonest = min(
        (one for one in (before, new) if one.empties and one.deadline_s is not None), key=_due_s, default=None
    )
    return msgspec.structs.replace(
        kept,
        ids=tuple(dict.fromkeys((*before.ids, *new.ids)))[-_MOST_IDS:],
        deadline_s=None if soonest is None else soonest.deadline_s,
        deadline_unix_s=None if soonest is None else soonest.deadline_unix_s,
    )


def _is_sooner(before: Standing, new: Standing) -> bool:
    """Than what stands, and by more than two readings of the same clock differ."""
    return new.empties and _due_s(new) < _due_s(before) - _SAME_S


def _due_s(one: Standing) -> float:
    return float("inf") if one.deadline_s is None else one.deadline_s


class Word(msgspec.Struct, kw_only=True):
    """What is said of one replica to all workers; `deadline_s` counts from now. `standing` None: it may work again, and `why`."""

    replica: str
    standing: Standing | None
    why: str = "restored"
    seat: int = 0  # of the worker that was told first


class Left(msgspec.Struct, kw_only=True):
    """What one gateway, or one of its workers, still has on its replicas."""

    requests: dict[str, int] = {}
    released: set[str] = set()

    def __add__(self, other: "Left") -> "Left":
        """Of both: a replica is released when nobody has anything there."""
        names = self.requests.keys() | other.requests.keys()
        return Left(
            requests={name: self.requests.get(name, 0) + other.requests.get(name, 0) for name in names},
            released=self.released & other.released,
        )
