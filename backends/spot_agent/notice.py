"""A notice: what a cloud said about this machine, in the words of the gateway's admin API."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final


class Provider(StrEnum):
    AWS = "aws"
    GCP = "gcp"
    AZURE = "azure"


class Kind(StrEnum):
    """What will happen. The first is the gravest."""

    RECLAIM = "reclaim"  # the machine goes, and may never come back
    MAINTENANCE = "maintenance"  # it goes, and comes back
    REBALANCE = "rebalance"  # it may go soon


_GRAVITY: Final = {kind: len(Kind) - place for place, kind in enumerate(Kind)}


@dataclass(frozen=True, slots=True)
class Notice:
    provider: Provider
    kind: Kind
    id: str  # the same for as long as it is the same event; no two events of a machine share one
    observed_unix_s: float
    deadline_unix_s: float | None  # None: nobody knows
    what: str  # for the log
    may_hasten: bool = False  # the cloud waits for a word from this machine alone, and takes it sooner if told

    @property
    def ends_service(self) -> bool:
        """Whether the machine must be empty by the deadline."""
        return self.kind is not Kind.REBALANCE

    def is_graver_than(self, other: "Notice") -> bool:
        return _GRAVITY[self.kind] > _GRAVITY[other.kind]

    def is_sooner_than(self, other: "Notice") -> bool:
        return _moment(self) < _moment(other)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at a metadata service found."""

    notices: tuple[Notice, ...] = ()
    remarks: tuple[str, ...] = ()  # seen and told to nobody, for the log


def gravest(notices: Iterable[Notice]) -> Notice | None:
    """The one to tell of all that stand: the gravest kind, by the soonest deadline at which the machine must be empty."""
    ordered = sorted(notices, key=lambda notice: (-_GRAVITY[notice.kind], _moment(notice)))
    if not ordered:
        return None
    first = ordered[0]
    if first.ends_service:
        soonest = min((notice for notice in ordered if notice.ends_service), key=_moment)
        return replace(first, deadline_unix_s=soonest.deadline_unix_s)
    return first


def _moment(notice: Notice) -> float:
    return float("inf") if notice.deadline_unix_s is None else notice.deadline_unix_s
