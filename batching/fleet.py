"""All replicas, and the only writer of their state.

Keeps, per model, the offers with slots in the order in which room last grew, so that a request that fitted nowhere is tested again
only where something has changed. Decides nothing: who goes where is placement's business.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import takewhile
from math import inf
from typing import Final

from batching.columns import Columns, Mask
from batching.kinds import Kinds
from batching.lazy_heap import LazyHeap
from batching.ledger import LeaseRecord
from batching.live_replica import LiveReplica
from batching.offer import Offer
from batching.placement import Need
from batching.prefix_index import PrefixIndex
from batching.replica import CACHE_LOST, TRANSITIONS, EngineLoad, Lifecycle, ReplicaProfile, ReplicaState
from batching.request import ReplicaId, ServiceTier
from batching.seen import state_of
from batching.shares import Share
from batching.ticket import LeaseId
from batching.watched_load import WatchedLoad
from config.schema import Scheduling

_REPACE_S: Final = 0.5
_SPARE_S: Final = 0.25  # the load that batch makes way for has fallen by an eighth then
_BATCH: Final = ServiceTier.BATCH
_NONE: Final[Mapping[ReplicaId, Offer]] = {}


class Fleet:
    """Per event O(models of the replica)."""

    def __init__(self, scheduling: Scheduling, *, stale_after_s: float) -> None:
        self._scheduling = scheduling
        self._stale_after_s = stale_after_s
        self._replicas: dict[ReplicaId, LiveReplica] = {}
        self._serving: dict[str, dict[ReplicaId, Offer]] = {}
        # Of them, those with slots, in the order in which they grew.
        self._roomy: dict[str, OrderedDict[ReplicaId, Offer]] = {}
        self._stale_at: dict[ReplicaId, float] = {}  # of replicas with foreign blocks: when to stop believing in them
        self._stale_from_s = inf  # none of them sooner: they are looked through when it has come
        self._assumed: LazyHeap[tuple[float, int], LeaseRecord] = LazyHeap(self._awaits_first_token)
        self.kinds = Kinds(lambda model: self._serving.get(model, _NONE).values())
        self._watched: defaultdict[str, WatchedLoad] = defaultdict(WatchedLoad)  # by model
        self._batch_prefills: set[ReplicaId] = set()  # replicas where a prompt of batch is being prefilled
        self._spare_s: float | None = None  # when to look again at batch that made way
        self._repace_s: float | None = None  # when to look at replicas that refused for their streams' sake
        self._full_since: dict[str, int] = {}  # by model: the epoch in which nobody had room
        self._columns = Columns()
        self.prefixes = PrefixIndex()
        self.leases: dict[LeaseId, LeaseRecord] = {}
        self.known_models: set[str] = set()  # ever served: the configured models and adapters
        self.epoch = 0
        self.grown_models: set[str] = set()  # since the scheduler last took them
        self.lost_models: set[str] = set()  # whose last replica has gone since then; it may have come back

    # -- replicas ----------------------------------------------------------------------------------------------------

    def add(self, profile: ReplicaProfile, lifecycle: Lifecycle) -> None:
        """A retired replica may come back under its id while its last leases run."""
        live = self._replicas.get(profile.id)
        if live is None:
            live = self._replicas[profile.id] = LiveReplica(profile, lifecycle, self._scheduling)
            self._columns.add(live.offer)
            self._index(profile)
        elif live.retired:
            live.retired = False
            live.lifecycle = lifecycle
            self.prefixes.forget(profile.id)
            self.update(profile)
        else:
            raise ValueError(f"replica {profile.id!r} is in the fleet already")
        self._changed(live)

    def remove(self, replica: ReplicaId) -> None:
        """At once, or with its last lease; nothing is placed there from now on."""
        live = self[replica]
        self._unindex(live.profile, frozenset())
        self.prefixes.forget(replica)
        self._stale_at.pop(replica, None)
        live.retired = True
        if Lifecycle.DRAINING in TRANSITIONS[live.lifecycle]:
            live.lifecycle = Lifecycle.DRAINING
        self._rewritten(live)
        if not live.ledger.leases:
            self._forget(live)

    def update(self, profile: ReplicaProfile) -> None:
        """Price, capacity or models became known or changed."""
        live = self[profile.id]
        if not live.retired:
            self._unindex(live.profile, frozenset(profile.models))
            self._index(profile, live.offer)
        live.describe(profile)
        self._rewritten(live)
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
        self._changed(live)

    def observe(self, replica: ReplicaId, load: EngineLoad, now: float) -> None:
        """A report that is stale on arrival is kept for people and used for nothing."""
        live = self[replica]
        stale_at = load.observed_s + self._stale_after_s
        if stale_at <= now:
            live.load = load
            return
        live.observe(load, now)
        if live.foreign_blocks:
            self._stale_at[replica] = stale_at
            self._stale_from_s = min(self._stale_from_s, stale_at)
        else:
            self._stale_at.pop(replica, None)
        self._changed(live)

    def share(self, replica: ReplicaId, share: Share, now: float) -> None:
        live = self._replicas[replica]
        if live.share_with(share, now) | self._rewritten(live):
            self._grew(live)

    # -- leases ------------------------------------------------------------------------------------------------------

    def open(self, record: LeaseRecord, assume_first_token_s: float | None) -> None:
        """`assume_first_token_s`: when to take the prompt for prefilled, if nobody will say so."""
        lease = record.lease
        request, live = lease.request, self._replicas[lease.replica]
        live.opened(record)
        self.leases[lease.id] = record
        if request.service_tier is not _BATCH:
            self._watched[request.model].add(record.prefill_s, record.placed_s)
        if request.prefix_hashes:
            self.prefixes.record(lease.replica, request.prefix_hashes, live.cached_chunks(request.prefix_chunk_tokens))
        if assume_first_token_s is not None:
            self._assumed.push((assume_first_token_s, lease.id), record)
        self._changed(live)  # room, too: it may be seen only now that an expected stream did not come

    def first_token(self, record: LeaseRecord, now: float) -> None:
        live = self._replicas[record.lease.replica]
        if record.first_token_s is None:
            record.first_token_s = record.last_token_s = now
            live.began(record, now)
        live.prefilled(record, now)
        self._changed(live)

    def fell_silent(self, record: LeaseRecord, now: float) -> None:
        """It was asked first and another replica gave the first token."""
        live = self._replicas[record.lease.replica]
        live.fell_silent(record, now)
        self._changed(live)

    def grow(self, record: LeaseRecord, emitted_tokens: int, now: float) -> None:
        replica = record.lease.replica
        live = self._replicas[replica]
        grown = live.grew(record, emitted_tokens, now)
        if grown:
            self._columns.change(replica)
            self._grew(live)
        elif grown is not None:
            self._columns.move(replica)

    def close(self, lease_id: LeaseId, now: float) -> LeaseRecord | None:
        """None if it is gone already."""
        record = self.leases.pop(lease_id, None)
        if record is not None:
            live = self._replicas[record.lease.replica]
            live.closed(record, now)
            self._changed(live)
            if live.retired and not live.ledger.leases:
                self._forget(live)
        return record

    def protect(self, replica: ReplicaId, ticket: int | None) -> None:
        """Only `ticket` may be placed there; None lifts it, which is room for everybody else."""
        if (live := self._replicas.get(replica)) is not None:
            live.offer.protected_for, live.offer.told = ticket, None
            self._columns.change(replica)
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

    def count(self, model: str) -> int:
        """Replicas that serve it, ready or not."""
        return len(self._serving.get(model, ()))

    def serving(self, model: str) -> list[LiveReplica]:
        return [self._replicas[replica] for replica in self._serving.get(model, ())]

    def offers(self, model: str, *, since: int = -1) -> list[Offer]:
        """With slots, and where room grew after epoch `since`, latest first. O(answer)."""
        roomy = self._roomy.get(model)
        if roomy is None:
            return []
        if since < 0:
            return list(roomy.values())
        return list(takewhile(lambda offer: offer.epoch > since, reversed(roomy.values())))

    def roomy(self, model: str) -> Collection[Offer]:
        """All with slots, in the order in which room grew, to look at before anything changes. O(1)."""
        return self._roomy.get(model, _NONE).values()

    def columns(self, model: str, *, since: int = -1) -> tuple[Columns, Mask]:
        """The same as columns of the fleet, and which of their rows; some without slots are among them. O(changes)."""
        self._columns.read()
        return self._columns, self._columns.grown(model, self.each_offer(model), since)

    def each_offer(self, model: str) -> Collection[Offer]:
        """Of all that serve a model, to look at before anything changes."""
        return self._serving.get(model, _NONE).values()

    def has_room(self, model: str, now: float) -> bool:
        """Whether anything at all could be placed for this model; latest growth first, so usually O(1); once an epoch else."""
        if self._full_since.get(model) == self.epoch:
            return False  # only a new epoch brings room
        if roomy := self._roomy.get(model):
            for offer in reversed(roomy.values()):
                if offer.has_room(now):
                    return True
        self._full_since[model] = self.epoch
        self.note_paced(self.each_offer(model), now)
        return False

    def spares(self, model: str, now: float) -> bool:
        """Whether a prompt of batch may be prefilled: enough replicas stay free of such for those who are watched.

        If not, it is asked again soon: their load falls without an event that says so.
        """
        serving = self._serving.get(model, {})
        limit = self._watched[model].batch_replicas(len(serving), now)
        if limit == len(serving) or sum(1 for replica in self._batch_prefills if replica in serving) < limit:
            return True
        if self._spare_s is None:
            self._spare_s = now + _SPARE_S
        return False

    def note_paced(self, offers: Iterable[Offer], now: float) -> None:
        """Something was refused; if streams that have no time to spare were why, they are looked at again soon.

        Their tokens say when they can bear more. Streams that get none say nothing, and are let go for that.
        """
        if self._repace_s is None and any(offer.wanted_due_s != inf for offer in offers):
            self._repace_s = now + _REPACE_S

    def soonest(self, need: Need) -> ReplicaId | None:
        """The replica that would fit it first, of those not protected for somebody else."""
        waits = [
            (wait_s, live.profile.id)
            for live in self.serving(need.request.model)
            if live.offer.protected_for is None and (wait_s := live.seconds_until_fit(need)) is not None
        ]
        return min(waits)[1] if waits else None

    def states(self, now: float, *, briefly: bool = False) -> tuple[ReplicaState, ...]:
        return tuple(state_of(live, now, self._stale_after_s, briefly=briefly) for live in self._replicas.values())

    def ledger_only(self, replica: ReplicaId, now: float) -> bool:
        """Whether nothing of what its engine says of its KV cache is gone by now."""
        return self[replica].ledger_only(now, self._stale_after_s)

    # -- time --------------------------------------------------------------------------------------------------------

    def elapse(self, now: float) -> None:
        """Stale figures are dropped, prompts whose first token nobody reports are taken for prefilled."""
        if self._stale_from_s <= now:
            for replica in [r for r, stale_at in self._stale_at.items() if stale_at <= now]:
                del self._stale_at[replica]
                live = self._replicas[replica]
                live.foreign_blocks = 0
                self._changed(live)
            self._stale_from_s = min(self._stale_at.values(), default=inf)
        if self._repace_s is not None and self._repace_s <= now:
            paced = [live for live in self if live.offer.wanted_due_s != inf]
            for live in paced:
                live.elapse(now)
                self._changed(live)
            self._repace_s = now + _REPACE_S if any(live.offer.wanted_due_s != inf for live in paced) else None
        if self._spare_s is not None and self._spare_s <= now:
            self._spare_s = None
            self.grown_models.update(self._watched.keys() & self._serving.keys())
        while self._assumed.entries and (entry := self._assumed.peek()) and entry[0][0] <= now:
            record = self._assumed.pop()
            live = self._replicas[record.lease.replica]
            live.prefilled(record, now)
            self._changed(live)

    def next_deadline(self) -> float | None:
        """When `elapse` may make room."""
        time_s = min(self._stale_from_s, inf if self._repace_s is None else self._repace_s)
        if self._spare_s is not None:
            time_s = min(time_s, self._spare_s)
        if (entry := self._assumed.peek()) is not None:
            time_s = min(time_s, entry[0][0])
        return time_s if time_s < inf else None

    def check(self) -> None:
        """Raises AssertionError where the ledgers do not add up."""
        leased = [lease for live in self for lease in live.ledger.leases]
        assert sorted(leased) == sorted(self.leases), "leases"
        for live in self:
            live.ledger.check()
            for model in () if live.retired else live.profile.models:
                assert live.offer.has_slots == (live.profile.id in self._roomy[model]), "roomy"
        self._columns.check()

    def _awaits_first_token(self, record: LeaseRecord) -> bool:
        return record.prefill_tokens > 0 and record.lease.id in self.leases

    def _index(self, profile: ReplicaProfile, offer: Offer | None = None) -> None:
        self.known_models.update(profile.models)
        for model in profile.models:
            self._columns.reassign(model)
            self._serving.setdefault(model, {}).setdefault(profile.id, offer or self[profile.id].offer)
            self._roomy.setdefault(model, OrderedDict())

    def _unindex(self, profile: ReplicaProfile, keep: frozenset[str]) -> None:
        for model in set(profile.models) - keep:
            self._columns.reassign(model)
            serving = self._serving.get(model, {})
            serving.pop(profile.id, None)
            self._roomy[model].pop(profile.id, None)
            if not serving:
                self._serving.pop(model, None)
                del self._roomy[model]
                self.grown_models.add(model)  # its tickets have nobody left to wait for
                self.lost_models.add(model)

    def _forget(self, live: LiveReplica) -> None:
        del self._replicas[live.profile.id]
        self._stale_at.pop(live.profile.id, None)  # it may have reported while its last leases ran
        self._batch_prefills.discard(live.profile.id)
        self._columns.remove(live.profile.id)

    def _rewritten(self, live: LiveReplica) -> bool:
        replica, batch_prefills = live.profile.id, self._batch_prefills
        self._columns.change(replica)
        if live.ledger.batch_prefill_tokens:
            batch_prefills.add(replica)
        elif replica in batch_prefills:
            batch_prefills.discard(replica)
            if self._spare_s is not None:  # others may take batch now, though this one has no room
                self.grown_models.update(live.profile.models)
        grown = live.refresh()
        if not live.offer.has_slots:
            for model in live.profile.models:
                if (roomy := self._roomy.get(model)) is not None:
                    roomy.pop(replica, None)
        return grown

    def _changed(self, live: LiveReplica) -> None:
        if self._rewritten(live):
            self._grew(live)

    def _grew(self, live: LiveReplica) -> None:
        self.epoch += 1
        live.offer.epoch = self.epoch
        if live.retired:
            return
        if live.offer.has_slots:
            for model in live.profile.models:
                roomy = self._roomy[model]
                roomy[live.profile.id] = live.offer
                roomy.move_to_end(live.profile.id)
        self.grown_models.update(live.profile.models)
