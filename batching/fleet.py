"""All replicas, and the only writer of their state.

Keeps, per model, the offers in the order in which room last grew, so that a request that fitted nowhere is tested again
only where something has changed. Decides nothing: who goes where is placement's business.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import takewhile

from batching.lazy_heap import LazyHeap
from batching.ledger import LeaseRecord
from batching.live_replica import LiveReplica
from batching.offer import Offer
from batching.placement import Need
from batching.prefix_index import PrefixIndex
from batching.replica import TRANSITIONS, EngineLoad, Lifecycle, ReplicaProfile, ReplicaState
from batching.request import ReplicaId
from batching.ticket import LeaseId
from config.schema import Scheduling

# A lifecycle that may become ready by itself: requests for its models wait.
HOPEFUL = frozenset({Lifecycle.READY, Lifecycle.STARTING, Lifecycle.WARMING, Lifecycle.ASLEEP, Lifecycle.WAKING})
CACHE_LOST = frozenset({Lifecycle.DOWN, Lifecycle.ASLEEP, Lifecycle.STARTING})


class Fleet:
    """Per event O(models of the replica)."""

    def __init__(self, scheduling: Scheduling, *, stale_after_s: float) -> None:
        self._scheduling = scheduling
        self._stale_after_s = stale_after_s
        self._replicas: dict[ReplicaId, LiveReplica] = {}
        self._serving: dict[str, OrderedDict[ReplicaId, Offer]] = {}
        self._stale_at: dict[ReplicaId, float] = {}  # of replicas with foreign blocks: when to stop believing in them
        self._assumed: LazyHeap[tuple[float, int], LeaseRecord] = LazyHeap(self._awaits_first_token)
        self.prefixes = PrefixIndex()
        self.leases: dict[LeaseId, LeaseRecord] = {}
        self.known_models: set[str] = set()  # ever served: the configured models and adapters
        self.epoch = 0
        self.grown_models: set[str] = set()  # since the scheduler last took them

    # -- replicas ----------------------------------------------------------------------------------------------------

    def add(self, profile: ReplicaProfile, lifecycle: Lifecycle) -> None:
        """A retired replica may come back under its id while its last leases run."""
        live = self._replicas.get(profile.id)
        if live is None:
            self._replicas[profile.id] = LiveReplica(profile, lifecycle, self._scheduling)
            self._index(profile)
        elif live.retired:
            live.retired = False
            live.lifecycle = lifecycle
            self.prefixes.forget(profile.id)
            self.update(profile)
        else:
            raise ValueError(f"replica {profile.id!r} is in the fleet already")
        self._changed(profile.id)

    def remove(self, replica: ReplicaId) -> None:
        """At once, or with its last lease; nothing is placed there from now on."""
        live = self[replica]
        self._unindex(live.profile, frozenset())
        self.prefixes.forget(replica)
        self._stale_at.pop(replica, None)
        live.retired = True
        if Lifecycle.DRAINING in TRANSITIONS[live.lifecycle]:
            live.lifecycle = Lifecycle.DRAINING
        live.refresh()
        if not live.ledger.leases:
            del self._replicas[replica]

    def update(self, profile: ReplicaProfile) -> None:
        """Price, capacity or models became known or changed."""
        live = self[profile.id]
        if not live.retired:
            self._unindex(live.profile, frozenset(profile.models))
            self._index(profile, live.offer)
        live.describe(profile)
        live.refresh()
        self._grew(live)

    def set_lifecycle(self, replica: ReplicaId, lifecycle: Lifecycle) -> None:
        """Repeating the present one is allowed; what TRANSITIONS does not know raises."""
        live = self[replica]
        if lifecycle is live.lifecycle:
            return
        if lifecycle not in TRANSITIONS[live.lifecycle]:
            raise ValueError(f"replica {replica!r} cannot go from {live.lifecycle} to {lifecycle}")
        live.lifecycle = lifecycle
        if lifecycle in CACHE_LOST:
            self.prefixes.forget(replica)
        self._changed(replica)

    def observe(self, replica: ReplicaId, load: EngineLoad, now: float) -> None:
        """A report that is stale on arrival is kept for people and used for nothing."""
        live = self[replica]
        stale_at = load.observed_s + self._stale_after_s
        if stale_at <= now:
            live.load = load
            return
        live.observe(load)
        if live.foreign_blocks:
            self._stale_at[replica] = stale_at
        else:
            self._stale_at.pop(replica, None)
        self._changed(replica)

    # -- leases ------------------------------------------------------------------------------------------------------

    def open(self, record: LeaseRecord, assume_first_token_s: float | None) -> None:
        """`assume_first_token_s`: when to take the prompt for prefilled, if nobody will say so."""
        live = self[record.lease.replica]
        live.ledger.open(record)
        self.leases[record.lease.id] = record
        self.prefixes.record(live.profile.id, record.lease.request.prefix_hashes)
        if assume_first_token_s is not None:
            self._assumed.push((assume_first_token_s, record.lease.id), record)
        live.refresh()

    def first_token(self, record: LeaseRecord, now: float) -> None:
        live = self[record.lease.replica]
        if record.first_token_s is None:
            record.first_token_s = record.last_token_s = now
            live.speed.learn_ttft(observed_s=now - record.placed_s, predicted_s=record.ttft_s)
        live.ledger.prefilled(record)
        self._changed(live.profile.id)

    def grow(self, record: LeaseRecord, emitted_tokens: int) -> None:
        live = self[record.lease.replica]
        if live.ledger.grow(record, emitted_tokens):
            live.refresh()

    def close(self, lease_id: LeaseId) -> LeaseRecord | None:
        """None if it is gone already."""
        record = self.leases.pop(lease_id, None)
        if record is not None:
            live = self[record.lease.replica]
            live.ledger.close(lease_id)
            self._changed(live.profile.id)
            if live.retired and not live.ledger.leases:
                del self._replicas[live.profile.id]
        return record

    def protect(self, replica: ReplicaId, ticket: int | None) -> None:
        """Only `ticket` may be placed there; None lifts it, which is room for everybody else."""
        live = self._replicas.get(replica)
        if live is not None:
            live.offer.protected_for = ticket
            if ticket is None:
                self._grew(live)

    # -- looking -----------------------------------------------------------------------------------------------------

    def __getitem__(self, replica: ReplicaId) -> LiveReplica:
        return self._replicas[replica]

    def __contains__(self, replica: object) -> bool:
        return replica in self._replicas

    def __iter__(self) -> Iterator[LiveReplica]:
        return iter(self._replicas.values())

    def __len__(self) -> int:
        return len(self._replicas)

    def serves(self, model: str) -> bool:
        return model in self._serving

    def serving(self, model: str) -> list[LiveReplica]:
        return [self._replicas[replica] for replica in self._serving.get(model, ())]

    def offers(self, model: str, *, since: int = -1) -> list[Offer]:
        """Where room grew after epoch `since`, latest first. O(answer)."""
        serving = self._serving.get(model)
        if serving is None:
            return []
        if since < 0:
            return list(serving.values())
        return list(takewhile(lambda offer: offer.epoch > since, reversed(serving.values())))

    def has_room(self, model: str) -> bool:
        """Whether anything at all could be placed for this model; latest growth first, so usually O(1)."""
        serving = self._serving.get(model)
        return serving is not None and any(offer.has_room for offer in reversed(serving.values()))

    def soonest(self, need: Need) -> ReplicaId | None:
        """The replica that would fit it first, of those not protected for somebody else."""
        waits = [
            (wait_s, live.profile.id)
            for live in self.serving(need.request.model)
            if live.offer.protected_for is None and (wait_s := live.seconds_until_fit(need)) is not None
        ]
        return min(waits)[1] if waits else None

    def states(self, now: float) -> tuple[ReplicaState, ...]:
        return tuple(live.state(now) for live in self._replicas.values())

    # -- time --------------------------------------------------------------------------------------------------------

    def elapse(self, now: float) -> None:
        """Stale figures are dropped, prompts whose first token nobody reports are taken for prefilled."""
        for replica in [r for r, stale_at in self._stale_at.items() if stale_at <= now]:
            del self._stale_at[replica]
            self[replica].foreign_blocks = 0
            self._changed(replica)
        while (entry := self._assumed.peek()) and entry[0][0] <= now:
            record = self._assumed.pop()
            self[record.lease.replica].ledger.prefilled(record)
            self._changed(record.lease.replica)

    def next_deadline(self) -> float | None:
        """When `elapse` may make room."""
        times = list(self._stale_at.values())
        if (entry := self._assumed.peek()) is not None:
            times.append(entry[0][0])
        return min(times, default=None)

    def check(self) -> None:
        """Raises AssertionError where the ledgers do not add up."""
        leased = [lease for live in self for lease in live.ledger.leases]
        assert sorted(leased) == sorted(self.leases), "leases"
        for live in self:
            live.ledger.check()

    def _awaits_first_token(self, record: LeaseRecord) -> bool:
        return record.prefill_tokens > 0 and record.lease.id in self.leases

    def _index(self, profile: ReplicaProfile, offer: Offer | None = None) -> None:
        self.known_models.update(profile.models)
        for model in profile.models:
            serving = self._serving.setdefault(model, OrderedDict())
            serving.setdefault(profile.id, offer or self[profile.id].offer)

    def _unindex(self, profile: ReplicaProfile, keep: frozenset[str]) -> None:
        for model in set(profile.models) - keep:
            serving = self._serving.get(model, OrderedDict())
            serving.pop(profile.id, None)
            if not serving:
                self._serving.pop(model, None)
                self.grown_models.add(model)  # its tickets have nobody left to wait for

    def _changed(self, replica: ReplicaId) -> None:
        live = self[replica]
        if live.refresh():
            self._grew(live)

    def _grew(self, live: LiveReplica) -> None:
        self.epoch += 1
        live.offer.epoch = self.epoch
        if live.retired:
            return
        for model in live.profile.models:
            self._serving[model].move_to_end(live.profile.id)
        self.grown_models.update(live.profile.models)
