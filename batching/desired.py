"""How many replicas the work of this moment needs to be in time, by model and cost tier: a figure for an autoscaler (docs/autoscaling.md).

Counted in replicas' worth, by the budgets that placement itself keeps: sequences, KV tokens, and prefill against the TTFT objective.
What runs counts where it runs; what waits, for the cheapest tier that can grow. Remembers what a replica of a tier is worth, so
that something can be said when there is none. Starts and stops nothing, and has no hysteresis: that is the autoscaler's.
"""

from collections import defaultdict
from collections.abc import Iterable
from math import inf
from typing import Final, NamedTuple

from batching.claims import blocks_in_use
from batching.fleet import Fleet
from batching.lane import Waiting
from batching.live_replica import LiveReplica
from batching.queue import WaitingQueue
from batching.request import ServiceTier
from batching.step_prior import step_prior
from config.schema import CostTier, Scheduling

# Of what a replica could bear: the rest is for what comes while a machine starts. As much as HPA's and Knative's usual targets (70-80 %).
_TARGET_RATIO: Final = 0.8
_TYPICAL_TOKENS: Final = 1000  # that a sequence holds, for how many of them a step bears; as in batching.live_replica
_MISSED_S: Final = 60.0  # a refusal for want of any replica counts for so long: two polls of KEDA
_SOMETHING: Final = 1e-3  # of a replica: rounded up, it is one

Key = tuple[str, CostTier]


class Worth(NamedTuple):
    """What one replica bears within the objectives."""

    sequences: float
    kv_tokens: float  # inf: not known
    token_s: float  # of prefill
    usd_per_hour: float

    @property
    def usd_per_sequence(self) -> float:
        return self.usd_per_hour / self.sequences


class Desired:
    """`missed` as it happens, `replicas` when somebody looks: O(replicas + leases of replicas with several models + who waits)."""

    def __init__(self, scheduling: Scheduling, fleet: Fleet, queue: WaitingQueue) -> None:
        self._scheduling = scheduling
        self._fleet = fleet
        self._queue = queue
        self._worths: dict[Key, Worth] = {}  # the last known
        self._missed_s: dict[str, float] = {}

    def missed(self, model: str, now: float) -> None:
        """A request for it was refused because no replica can be hoped for."""
        self._missed_s[model] = now

    def replicas(self, now: float) -> dict[Key, float]:
        """Of every model and tier that there ever was: replicas' worth needed, not rounded; parts of several gateways add up."""
        self._learn()
        busy = dict.fromkeys(self._worths, 0.0)
        for live in self._fleet:
            for model, part in self._parts(live):
                of = model, live.profile.cost_tier
                busy[of] = busy.get(of, 0.0) + part / _TARGET_RATIO
        for model, waiting in self._waiting().items():
            if (key := self._grows(model)) is not None:
                busy[key] += self._needed(waiting, self._worths[key]) / _TARGET_RATIO
        at_work = {model for (model, _), parts in busy.items() if parts}
        for model in [model for model, missed_s in self._missed_s.items() if now - missed_s < _MISSED_S]:
            if model not in at_work and (key := self._grows(model)) is not None:
                busy[key] = _SOMETHING
        return busy

    def _learn(self) -> None:
        """A tier's worth is the mean of its replicas'."""
        seen: defaultdict[Key, list[Worth]] = defaultdict(list)
        for live in self._fleet:
            worth = self._worth(live)
            for model in live.profile.models:
                seen[model, live.profile.cost_tier].append(worth)
        for key, worths in seen.items():
            self._worths[key] = Worth(*(sum(column) / len(worths) for column in zip(*worths, strict=True)))

    def _worth(self, live: LiveReplica) -> Worth:
        """Sequences: as many as the engine takes, and a step bears within the TPOT objective."""
        profile, step = live.profile, step_prior(live.profile, self._scheduling.without)
        bearable_s = self._scheduling.objectives.tpot_s / live.speed.tpot_factor - step.overhead_s
        kv_s = step.kv_token_s * _TYPICAL_TOKENS
        borne = min((bearable_s - step.weights_s) / kv_s, bearable_s / (step.token_s + kv_s))
        tokens = inf if live.usable_blocks is None else max(1, live.usable_blocks) * live.block_size
        sequences = max(1.0, min(live.max_num_seqs, borne))
        return Worth(sequences, tokens, step.token_s * live.speed.ttft_factor, profile.usd_per_hour)

    def _parts(self, live: LiveReplica) -> Iterable[tuple[str, float]]:
        """How much of it is in use, by the scarcest of its budgets; one replica's work is at most one replica."""
        ledger, worth = live.ledger, self._worth(live)
        if not ledger.leases:
            return ()
        use = min(
            1.0,
            max(
                ledger.sequences / worth.sequences,
                blocks_in_use(live) * live.block_size / worth.kv_tokens,
                ledger.prefill_s / self._scheduling.objectives.ttft_s,
            ),
        )
        if len(live.profile.models) == 1:
            return ((next(iter(live.profile.models)), use),)
        sequences: defaultdict[str, int] = defaultdict(int)
        for record in ledger.leases.values():
            sequences[record.lease.request.model] += record.lease.request.sequences
        return ((model, use * count / ledger.sequences) for model, count in sequences.items())

    def _waiting(self) -> dict[str, list[Waiting]]:
        found: defaultdict[str, list[Waiting]] = defaultdict(list)
        for waiting in self._queue:
            found[waiting.ticket.request.model].append(waiting)
        return found

    def _needed(self, waiting: Iterable[Waiting], worth: Worth) -> float:
        """For all of them at once. Of batch, which has time, one replica's worth at most."""
        watched, batch = _Sum(worth), _Sum(worth)
        for one in waiting:
            (batch if one.ticket.request.service_tier is ServiceTier.BATCH else watched).add(one)
        return watched.replicas + min(1.0, batch.replicas)

    def _grows(self, model: str) -> Key | None:
        """The cheapest tier for a sequence; what is reserved is there or not, so only where nothing else is known. None: nobody looked while it had a replica."""
        known = {key: worth for key, worth in self._worths.items() if key[0] == model}
        elastic = {key: worth for key, worth in known.items() if key[1] is not CostTier.RESERVED} or known
        return min(elastic, default=None, key=lambda key: (elastic[key].usd_per_sequence, key[1] is CostTier.SPOT))


class _Sum:
    """Of those who wait. Prefill by density, each one's seconds over its objective: up to 1 they can all be in time (Liu and Layland 1973)."""

    def __init__(self, worth: Worth) -> None:
        self._worth = worth
        self._sequences = self._tokens = 0
        self._density = 0.0

    def add(self, waiting: Waiting) -> None:
        need, request = waiting.need, waiting.ticket.request
        self._sequences += request.sequences
        self._tokens += request.prompt_tokens + request.sequences * need.expected_tokens
        self._density += self._worth.token_s * request.prompt_tokens / need.ttft_objective_s

    @property
    def replicas(self) -> float:
        worth = self._worth
        return max(self._sequences / worth.sequences, self._tokens / worth.kv_tokens, self._density)
