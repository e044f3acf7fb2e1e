"""A holder's side of the book of shares: what is reported, and what an answer means.

A lower share is kept to from the next report on: nothing is begun beyond it, what runs beyond it is reported until it ends. A higher one
counts at once.
An answer counts only if it is to the latest report: another may have been given what an older one promised.
"""

from collections.abc import Mapping
from typing import Protocol

from batching.request import ReplicaId
from batching.shares import Claim, Running, Share


class Allotted(Protocol):
    """What has shares: a scheduler."""

    def claims(self) -> Mapping[ReplicaId, Claim]:
        """What it has of each replica now, and would like."""
        ...

    def running(self) -> Mapping[ReplicaId, Running]:
        """What it has of each replica."""
        ...

    def allot(self, replica: ReplicaId, parts: int) -> None:
        """From now on; a replica that it does not have is none of its business."""
        ...

    def beside(self, replica: ReplicaId, others: Running, now: float) -> None:
        """What others have running there by now; likewise."""
        ...


class Saying:
    """What was last told to others of what runs. KV blocks alone, which grow all the time, are no news: reports have them."""

    def __init__(self) -> None:
        self._said: dict[ReplicaId, Running] = {}

    def changed(self, running: Mapping[ReplicaId, Running]) -> dict[ReplicaId, Running]:
        """What is new; it counts as told from now on."""
        said, new = self._said, {}
        for replica, now_running in running.items():
            if (before := said.get(replica)) is None or before._replace(blocks=now_running.blocks) != now_running:
                new[replica] = said[replica] = now_running
        if len(said) != len(running):
            self._said = {replica: said[replica] for replica in running}
        return new

    def reported(self, claims: Mapping[ReplicaId, Claim]) -> None:
        """Others go by this now, if it arrives: what differs from what was told is news, even if it is as it was told before."""
        for replica, claim in claims.items():
            if (before := self._said.get(replica)) is not None and before != claim.running:
                del self._said[replica]


class Holding:
    """One holder. `report`, send it, `take` what comes back; in any order, any of it may be lost."""

    def __init__(self, holder: Allotted) -> None:
        self._holder = holder
        self._number = 0
        self._told: dict[ReplicaId, int] = {}  # parts
        self._saying = Saying()
        self.short = False  # somebody waited for more, at the last report
        self.owing = False  # more was in use than it may have, at the last report

    def report(self) -> tuple[int, dict[ReplicaId, Claim]]:
        """(number, what is had and wanted of each replica), lowered to what was told before."""
        claims = dict(self._holder.claims())
        self._told = {replica: parts for replica, parts in self._told.items() if replica in claims}
        self.short = self.owing = False
        self._saying.reported(claims)
        for replica, claim in tuple(claims.items()):
            may = claim.enforced
            if (told := self._told.get(replica)) is not None and told < may:
                self._holder.allot(replica, told)
                may = told
            self.owing = self.owing or claim.in_use > may
            claims[replica] = claim._replace(enforced=max(may, claim.in_use))
        self.short = any(claim.short for claim in claims.values())
        self._number += 1
        return self._number, claims

    def running(self) -> dict[ReplicaId, Running]:
        """What has changed since it was last told to the others. O(replicas)."""
        return self._saying.changed(self._holder.running())

    def hear(self, others: Mapping[ReplicaId, Running], now: float) -> None:
        """What others have running by now."""
        for replica, running in others.items():
            self._holder.beside(replica, running, now)

    def take(self, number: int, shares: Mapping[ReplicaId, Share], now: float) -> bool:
        """An answer; True if the next report should go at once, for others wait for what it will give back."""
        if number != self._number:
            return False
        lower = False
        claims = self._holder.claims()
        for replica, share in shares.items():
            if (claim := claims.get(replica)) is None:
                continue
            self._told[replica] = share.parts
            lower = lower or share.parts < claim.enforced
            self._holder.allot(replica, max(share.parts, claim.enforced))
            self._holder.beside(replica, share.others, now)
        return lower
