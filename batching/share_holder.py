"""A holder's side of the book of shares: what is reported, and what an answer means.

A lower share is kept to from the next report on, never below what is in use, and that report says so; a higher one counts at once.
An answer counts only if it is to the latest report: another may have been given what an older one promised.
"""

from collections.abc import Mapping
from typing import Protocol

from batching.request import ReplicaId
from batching.shares import Claim, Share


class Allotted(Protocol):
    """What has shares: a scheduler."""

    def claims(self) -> Mapping[ReplicaId, Claim]:
        """What it has of each replica now, and would like."""
        ...

    def allot(self, replica: ReplicaId, share: Share) -> None:
        """From now on; a replica that it does not have is none of its business."""
        ...


class Holding:
    """One holder. `report`, send it, `take` what comes back; in any order, any of it may be lost."""

    def __init__(self, holder: Allotted) -> None:
        self._holder = holder
        self._number = 0
        self._told: dict[ReplicaId, Share] = {}
        self.short = False  # somebody waited for more, at the last report
        self.owing = False  # more was in use than it may have, at the last report

    def report(self) -> tuple[int, dict[ReplicaId, Claim]]:
        """(number, what is had and wanted of each replica), lowered to what was told before."""
        claims = dict(self._holder.claims())
        self._told = {replica: share for replica, share in self._told.items() if replica in claims}
        self.short = self.owing = False
        for replica, share in self._told.items():
            claim = claims[replica]
            if share.parts < claim.enforced:
                kept = max(share.parts, min(claim.in_use, claim.enforced))
                self._holder.allot(replica, share._replace(parts=kept))
                claims[replica] = claim = claim._replace(enforced=kept)
                self.owing = self.owing or kept > share.parts
        self.short = any(claim.short for claim in claims.values())
        self._number += 1
        return self._number, claims

    def take(self, number: int, shares: Mapping[ReplicaId, Share]) -> bool:
        """An answer; True if the next report should go at once, for others wait for what it will give back."""
        if number != self._number:
            return False
        lower = False
        claims = self._holder.claims()
        for replica, share in shares.items():
            if (claim := claims.get(replica)) is None:
                continue
            self._told[replica] = share
            lower = lower or max(share.parts, claim.in_use) < claim.enforced
            self._holder.allot(replica, share._replace(parts=max(share.parts, claim.enforced)))
        return lower
