"""One replica while it lives: its ledger, what was learned of it, and the offer that follows from both.

Decides what room it has; not who gets it. Owned by the fleet, which alone calls what changes it.
"""

from math import ceil, inf

from batching.blocks import DEFAULT_BLOCK_SIZE, UNBOUNDED
from batching.capacity import LearnedSequences, prior_sequences
from batching.estimators import ReplicaSpeed
from batching.ledger import Ledger
from batching.offer import Offer
from batching.placement import Need, blocks_if_fits, blocks_needed, could_ever_hold
from batching.replica import EngineLoad, Lifecycle, ReplicaProfile, ReplicaState
from config.gpus import StepModel, step_model
from config.schema import CostTier, Scheduling

_DEFAULT_CHUNK_TOKENS = (
    2048  # vLLM's smallest default for max_num_batched_tokens: predictions then err to the slow side
)
_TYPICAL_BATCH = 32  # sequences that share a step of a machine in use; prices decoding, not this moment's load


class LiveReplica:
    """`refresh` must follow every change; it says whether room grew."""

    def __init__(self, profile: ReplicaProfile, lifecycle: Lifecycle, scheduling: Scheduling) -> None:
        self._scheduling = scheduling
        self.profile = profile
        self.lifecycle = lifecycle
        self.retired = False  # removed, but leases live
        self.load: EngineLoad | None = None
        self.foreign_blocks = 0
        self.ledger = Ledger()
        self.learned = LearnedSequences(prior_sequences(profile.gpu, profile.gpu_count))
        self.speed = ReplicaSpeed()
        self.offer = Offer(replica=profile.id)
        self._step: StepModel
        self.describe(profile)

    @property
    def max_num_seqs(self) -> int:
        """Declared or asked, else learned."""
        return self.profile.max_num_seqs or self.learned.limit

    @property
    def block_size(self) -> int:
        return self.profile.block_size or DEFAULT_BLOCK_SIZE

    def describe(self, profile: ReplicaProfile) -> None:
        """Takes a profile, new or changed: everything that only depends on it."""
        if self.block_size != (profile.block_size or DEFAULT_BLOCK_SIZE):
            self.ledger.rebase(profile.block_size or DEFAULT_BLOCK_SIZE)
        self.profile = profile
        step = self._step = step_model(
            profile.gpu,
            count=profile.gpu_count,
            speed=profile.speed,
            shape=profile.shape,
            pipeline=profile.pipeline_parallel,
        )
        offer = self.offer
        offer.cost_tier = profile.cost_tier
        offer.usd_per_s = 0.0 if profile.cost_tier is CostTier.RESERVED else profile.usd_per_hour / 3600
        offer.max_model_len = profile.max_model_len or UNBOUNDED
        offer.block_size = self.block_size
        capacity_tokens = UNBOUNDED if profile.kv_blocks is None else profile.kv_blocks * self.block_size
        offer.longest_tokens = min(offer.max_model_len, capacity_tokens)
        offer.chunk_tokens = profile.max_num_batched_tokens or _DEFAULT_CHUNK_TOKENS
        offer.token_s, offer.weights_s = step.token_s, step.weights_s
        offer.attention_s, offer.kv_token_s = step.attention_s, step.kv_token_s

    def observe(self, load: EngineLoad) -> None:
        """A fresh report. What is the engine's beyond ours is fixed now: our own figure moves on, its report does not."""
        self.load = load
        self.learned.observe(load, ours=self.ledger.sequences)
        self.foreign_blocks = 0
        if load.kv_usage_ratio is not None and self.profile.kv_blocks is not None:
            used = round(load.kv_usage_ratio * self.profile.kv_blocks)
            self.foreign_blocks = max(0, used - self.ledger.held_blocks)

    def refresh(self) -> bool:
        """Rewrites the offer; True if something that did not fit before may fit now."""
        offer, ledger, step = self.offer, self.ledger, self._step
        before = (offer.open, offer.empty, offer.free_sequences, offer.free_blocks, offer.free_prefill_tokens)
        offer.open = self.lifecycle is Lifecycle.READY and not self.retired
        offer.empty = not ledger.leases
        limit = self.max_num_seqs
        offer.free_sequences = limit - ledger.sequences
        offer.free_prefill_tokens = self._free_prefill_tokens()
        offer.free_blocks, offer.headroom_ratio = self._free_blocks(limit)
        offer.batch = min(limit, _TYPICAL_BATCH)
        offer.prefill_tokens = ledger.prefill_tokens
        kv_s = step.kv_token_s * (ledger.held_tokens + self.foreign_blocks * self.block_size)
        offer.chunk_s = step.overhead_s + kv_s + step.token_s * ledger.sequences
        offer.decode_s = step.overhead_s + max(step.weights_s, step.token_s * (ledger.sequences + 1)) + kv_s
        speed = self.speed
        offer.ttft_factor, offer.tpot_factor = speed.ttft_factor, speed.tpot_factor
        offer.prefix_trust_ratio = speed.prefix_trust_ratio
        return offer.open and (
            not before[0]
            or offer.empty > before[1]
            or offer.free_sequences > before[2]
            or offer.free_blocks > before[3]
            or offer.free_prefill_tokens > before[4]
        )

    def _free_prefill_tokens(self) -> int:
        budget = self.profile.max_num_batched_tokens
        # With nothing outstanding a prompt longer than the budget is taken too: it has to go somewhere.
        if budget is None or self.ledger.prefill_tokens == 0:
            return UNBOUNDED
        return int(self._scheduling.prefill_chunks * budget) - self.ledger.prefill_tokens

    def _free_blocks(self, sequence_limit: int) -> tuple[int, float]:
        blocks = self.profile.kv_blocks
        if blocks is None:
            return UNBOUNDED, 1 - self.ledger.sequences / sequence_limit
        used = self.ledger.reserved_blocks + self.foreign_blocks
        return blocks - ceil(self._scheduling.kv_watermark_ratio * blocks) - used, 1 - used / blocks

    def seconds_until_fit(self, need: Need) -> float | None:
        """When it will fit if nothing else is placed here: leases are taken to end as forecast. None: never."""
        offer = self.offer
        if not offer.open or not could_ever_hold(need.request, offer, min_output_tokens=need.min_output_tokens):
            return None
        if blocks_if_fits(need, offer) is not None:
            return 0.0
        blocks, sequences = -offer.free_blocks, need.request.sequences - offer.free_sequences
        blocks += blocks_needed(need, offer)
        prefill = need.request.prompt_tokens - offer.free_prefill_tokens
        ends = sorted(
            (
                (r.forecast_tokens - r.emitted_per_sequence) * offer.tpot_factor * r.tpot_s,
                r.lease.id,
                r.reserved_blocks,
                r.lease.request.sequences,
                r.prefill_tokens,
            )
            for r in self.ledger.leases.values()
        )
        for end_s, _, freed, ended, prefilled in ends:
            blocks, sequences, prefill = blocks - freed, sequences - ended, prefill - prefilled
            if blocks <= 0 and sequences <= 0 and prefill <= 0:
                return end_s
        return ends[-1][0] if ends else inf  # empty takes whatever it could ever hold

    def state(self, now: float) -> ReplicaState:
        ledger, profile = self.ledger, self.profile
        overrun = 0 if profile.kv_blocks is None else max(0, -self.offer.free_blocks)
        return ReplicaState(
            profile=profile,
            lifecycle=self.lifecycle,
            running=ledger.sequences,
            max_num_seqs=self.max_num_seqs,
            prefill_tokens=ledger.prefill_tokens,
            held_blocks=ledger.held_blocks,
            reserved_blocks=ledger.reserved_blocks,
            foreign_blocks=self.foreign_blocks,
            load=self.load,
            load_age_s=None if self.load is None else max(0.0, now - self.load.observed_s),
            extras={
                "overrun_blocks": overrun,  # into the watermark, by growth that was not forecast
                "ttft_factor": self.speed.ttft_factor,
                "tpot_factor": self.speed.tpot_factor,
                "prefix_trust_ratio": self.speed.prefix_trust_ratio,
            },
        )

    def __repr__(self) -> str:
        return f"<{self.profile.id} {self.lifecycle} {self.ledger!r}>"
