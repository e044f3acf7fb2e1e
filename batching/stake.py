"""What a scheduler has of replicas that others use, too: how much it may use, what the others do there, and what it pays.

An `Allotted` for its side of a book. Decides nothing; who may have what is the book's.
"""

from collections.abc import Mapping
from math import inf

from batching.claims import claims, running_on
from batching.fleet import Fleet
from batching.payers import Payer
from batching.queue import WaitingQueue
from batching.request import ReplicaId
from batching.shares import Claim, Running


class Stake:
    """All of each replica, until somebody says otherwise."""

    def __init__(self, fleet: Fleet, queue: WaitingQueue) -> None:
        self._fleet = fleet
        self._queue = queue

    def claims(self) -> Mapping[ReplicaId, Claim]:
        """What it has of each replica, and what those who wait would need."""
        return claims(self._fleet, self._queue)

    def running(self) -> Mapping[ReplicaId, Running]:
        """What it has on each replica now."""
        return {live.profile.id: running_on(live) for live in self._fleet}

    def allot(self, replica: ReplicaId, parts: int) -> None:
        """What it may use from now on."""
        if replica in self._fleet and (share := self._fleet[replica].share).parts != parts:
            self._fleet.share(replica, share._replace(parts=parts), -inf)

    def beside(self, replica: ReplicaId, others: Running, now: float) -> None:
        """What others have running there by now."""
        if replica in self._fleet and (share := self._fleet[replica].share).others != others:
            self._fleet.share(replica, share._replace(others=others), now)

    def pay(self, replica: ReplicaId, parts: int, now: float) -> None:
        """Of `meter.WHOLE_PRICE`, that it splits among its requests from now on."""
        if replica in self._fleet:
            self._fleet[replica].meter.pay(parts, now)

    def payers(self) -> Mapping[ReplicaId, Payer]:
        """What it splits of each replica's price, and among how much."""
        return {live.profile.id: Payer(live.meter.parts, live.meter.weight) for live in self._fleet}
