"""One replica while it lives: its ledger, what was learned of it, and the offer that follows from both.

Decides what room it has; not who gets it. Owned by the fleet, which alone calls what changes it.
"""

from dataclasses import replace
from math import ceil, inf
from statistics import NormalDist

from batching.audit import Audit, Forecast, believed
from batching.blocks import DEFAULT_BLOCK_SIZE, UNBOUNDED
from batching.capacity import LearnedSequences, prior_sequences
from batching.estimators import ReplicaSpeed
from batching.kv_audit import KvAudit
from batching.kv_forecast import Holder, KvRisk, free_tokens
from batching.ledger import LeaseRecord, Ledger
from batching.offer import Offer
from batching.pace import Pace
from batching.placement import Need, Score, blocks_if_fits, blocks_needed, cached_on, could_ever_hold, prefill_steps
from batching.replica import EngineLoad, Lifecycle, ReplicaProfile, ReplicaState
from batching.request import ServiceTier
from batching.shares import ALONE, Share
from config.gpus import StepModel, step_model
from config.schema import CostTier, Mechanism, Scheduling

_DEFAULT_CHUNK_TOKENS = (
    2048  # vLLM's smallest default for max_num_batched_tokens: predictions then err to the slow side
)
_TELLING_PREFILL_S = 0.05  # of shorter prompts the first token tells more of the step under way than of the machine
_TYPICAL_TOKENS = 1000  # that each of them holds
_TYPICAL_BATCH = 32  # sequences that share a step of a machine in use; prices decoding, not this moment's load
# Of prefill that was admitted and shows no first token: an estimate that has run out says little, but not that nothing is left.
_PREFIX_RATIO = 0.9  # of the KV cache: the rest holds answers, and of prompts what is beyond their last whole chunk
_REST_RATIO = 0.25
_TIGHT_RATIO = 0.7  # of the KV blocks reserved at high quantiles: from here on the sum is forecast
_LONGEST_SILENCE_S = 30.0  # after which a replica that left requests without a first token is tried again
_READY = Lifecycle.READY  # an enum's member costs a call to look up
_PACE_MARGIN_RATIO = 0.95  # of the TPOT objective that streams are kept to: step times are means


class LiveReplica:
    """`refresh` must follow every change; it says whether room grew."""

    def __init__(self, profile: ReplicaProfile, lifecycle: Lifecycle, scheduling: Scheduling) -> None:
        self._scheduling = scheduling
        self.profile = profile
        self.lifecycle = lifecycle
        self.retired = False  # removed, but leases live
        self.load: EngineLoad | None = None
        self.foreign_blocks = 0
        self.share: Share = ALONE  # of its budgets, where other gateways use it, too
        self.ledger = Ledger()
        self.learned = LearnedSequences(prior_sequences(profile.gpu, profile.gpu_count))
        self.speed = ReplicaSpeed()
        self.audit = Audit(doubting=Mechanism.AUDIT not in scheduling.without)
        self._kv_audit = KvAudit(self.audit)
        self._trust = self.audit.ttft, self.audit.tpot, self.audit.cached  # looked up at every event
        self.pace = Pace(0.0, 0.0)
        self.kv_risk = KvRisk(_normal_quantile(scheduling.kv_forecast_quantile))
        self.least_output_tokens = 16  # what nearly every answer here reaches
        self._prefill_end_s = 0.0
        self.silent_until_s = -inf  # another replica was sooner: it is taken to give no first token until then
        self._silence_s = 0.0  # how long that was; doubles until it gives one
        self._now = 0.0
        self._stepped: tuple[float, int] | None = None  # since when only decoding: (time, steps)
        self.offer = Offer(replica=profile.id)
        self._step: StepModel
        self._guards = Mechanism.ITL_GUARD not in scheduling.without
        self.describe(profile)

    @property
    def max_num_seqs(self) -> int:
        """Declared or asked, else learned."""
        return self.profile.max_num_seqs or self.learned.limit

    @property
    def usable_blocks(self) -> int | None:
        """KV blocks that all gateways together may reserve; None: not known."""
        return None if self._usable_blocks is None else self._usable_blocks - self.foreign_blocks

    @property
    def block_size(self) -> int:
        return self.profile.block_size or DEFAULT_BLOCK_SIZE

    def cached_chunks(self, chunk_tokens: int) -> int | None:
        """Chunks of prompts that its KV cache can hold; None: not known."""
        blocks = self.profile.kv_blocks
        return None if blocks is None else int(_PREFIX_RATIO * blocks) * self.block_size // chunk_tokens

    def describe(self, profile: ReplicaProfile) -> None:
        """Takes a profile, new or changed: everything that only depends on it."""
        if self.block_size != (profile.block_size or DEFAULT_BLOCK_SIZE):
            self.ledger.rebase(profile.block_size or DEFAULT_BLOCK_SIZE)
        self.profile = profile
        step = self._step = _prior(profile, self._scheduling.without)
        offer = self.offer
        offer.cost_tier = profile.cost_tier
        offer.usd_per_s = 0.0 if profile.cost_tier is CostTier.RESERVED else profile.usd_per_hour / 3600
        offer.max_model_len = profile.max_model_len or UNBOUNDED
        offer.block_size = self.block_size
        capacity_tokens = UNBOUNDED if profile.kv_blocks is None else profile.kv_blocks * self.block_size
        offer.longest_tokens = min(offer.max_model_len, capacity_tokens)
        offer.chunk_tokens = profile.max_num_batched_tokens or _DEFAULT_CHUNK_TOKENS
        self._limit_prefill(profile.max_num_batched_tokens)
        watermark = ceil(self._scheduling.kv_watermark_ratio * (profile.kv_blocks or 0))
        self._usable_blocks = None if profile.kv_blocks is None else profile.kv_blocks - watermark
        if not self.ledger.leases:
            objective_s = self._scheduling.objectives.tpot_s * _PACE_MARGIN_RATIO
            decode_s = step.overhead_s + step.weights_s + step.kv_token_s * _TYPICAL_BATCH * _TYPICAL_TOKENS
            self.pace = Pace(objective_s, objective_s - decode_s)

    def observe(self, load: EngineLoad, now: float) -> None:
        """A fresh report. What is the engine's beyond ours is fixed now: our own figure moves on, its report does not."""
        self.load = load
        self._now = now  # also what lets go of streams that fell silent: nothing else may happen here
        self.learned.observe(load, ours=self.ledger.sequences + self.share.others_sequences)
        self.kv_risk.observe(load.preemptions_total, load.kv_usage_ratio)
        known_blocks = self.ledger.held_blocks + self.share.others_blocks
        believed_blocks, used = known_blocks + self.foreign_blocks, None
        self.foreign_blocks = 0
        if load.kv_usage_ratio is not None and self.profile.kv_blocks is not None:
            used = round(load.kv_usage_ratio * self.profile.kv_blocks)
            self.foreign_blocks = max(0, used - known_blocks)
        self._kv_audit.reported(used, believed_blocks=believed_blocks)
        self._kv_audit.look(self.ledger.leases, self.pace.steps, now)

    def opened(self, record: LeaseRecord) -> None:
        """One more request is on its way there."""
        record.alone = not self.ledger.prefill_tokens
        self.ledger.open(record)
        self._now = record.placed_s
        self._prefill_end_s = max(self._prefill_end_s, record.placed_s) + record.prefill_s
        request = record.lease.request
        if request.streaming and record.prefill_tokens and request.service_tier is not ServiceTier.BATCH:
            self.pace.expect(record, self._prefill_end_s, least_tokens=self.least_output_tokens)
        self._stepped = None

    def prefilled(self, record: LeaseRecord, now: float) -> None:
        """Its first token is out, or taken for so."""
        self.ledger.prefilled(record)
        self._now = now
        self._prefill_end_s = now + self.ledger.prefill_s
        self._stepped = None

    def elapse(self, now: float) -> None:
        """Time has passed in which its streams may have got nothing."""
        self._now = max(self._now, now)

    def fell_silent(self, record: LeaseRecord, now: float) -> None:
        """Another replica answered what it was asked before. It is taken to be as slow again: whoever can goes elsewhere."""
        self._now = now
        least_s = self._scheduling.objectives.ttft_s  # with less it would still be good enough for most
        self._silence_s = min(max(2 * self._silence_s, now - record.placed_s, least_s), _LONGEST_SILENCE_S)
        self.silent_until_s = now + self._silence_s

    def spoke(self) -> None:
        """It gave a first token, or an answer."""
        self._silence_s, self.silent_until_s = 0.0, -inf

    def began(self, record: LeaseRecord, now: float) -> None:
        """Its first token was seen."""
        telling = record.alone and not record.believed_cached_tokens and record.prefill_s >= _TELLING_PREFILL_S
        if telling and record.forecast is not None:
            self.speed.learn_ttft(observed_s=now - record.placed_s, predicted_s=record.forecast.ttft_s)
        if record.lease.request.service_tier is not ServiceTier.BATCH:  # nobody watches those
            self.pace.begin(record, now, least_tokens=self.least_output_tokens)

    def grew(self, record: LeaseRecord, emitted_tokens: int, now: float) -> bool:
        """Whether what it offers has changed: a block boundary was crossed, or its streams can bear more."""
        crossed = self.ledger.grow(record, emitted_tokens)
        self._now = now
        if record.first_token_s is not None and self.pace.advance(record):
            self._learn_step(now)
            if self._guards:
                self.offer.due_s = self.pace.due_s(now)  # for who arrives next; who was turned away is told below
            if inf > self.offer.wanted_due_s <= self.offer.binding_s(now):
                return True
        return crossed

    def closed(self, record: LeaseRecord, now: float) -> None:
        """It has ended."""
        self._now = now
        if record.prefill_s:
            self._prefill_end_s -= record.prefill_s
        self.ledger.close(record.lease.id)
        self.pace.end(record)
        self._stepped = None

    def _learn_step(self, now: float) -> None:
        """From steps in which the batch stayed as it was and nothing was prefilled."""
        if self._stepped is not None and not self.ledger.prefill_tokens:
            since_s, steps = self._stepped
            predicted_s = self.speed.tpot_factor * self.offer.price_decode_s  # whatever the audit thinks of the factor
            self.speed.learn_step(observed_s=(now - since_s) / (self.pace.steps - steps), predicted_s=predicted_s)
        self._stepped = (now, self.pace.steps)

    # -- what it offers ----------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Rewrites the offer; True if something that did not fit before may fit now."""
        offer, ledger, share = self.offer, self.ledger, self.share
        was_open, was_empty, sequences, blocks, prefill = (
            offer.open, offer.empty, offer.free_sequences, offer.free_blocks, offer.prefill_tokens,
        )  # fmt: skip
        offer.open = self.lifecycle is _READY and not self.retired
        offer.empty = not ledger.leases and share.whole  # else what it takes beyond its budgets would be others'
        limit = share.of(self.max_num_seqs)
        offer.free_sequences = limit - ledger.sequences
        offer.spared_sequences = limit // 10
        offer.prefill_tokens = ledger.prefill_tokens
        ahead = ledger.prefill_tokens
        offer.free_prefill_tokens = share.of(self._prefill_budget) - ahead
        if share.scaled(ahead) <= self._prefill_free_to:
            offer.free_prefill_tokens = UNBOUNDED
        offer.free_blocks, offer.headroom_ratio = self._free_blocks(limit)
        offer.known_free_tokens, offer.forecast = None, self._forecast
        offer.batch = min(self.max_num_seqs, _TYPICAL_BATCH)
        self._refresh_times()
        eased = inf > offer.wanted_due_s <= offer.binding_s(self._now)
        if eased:
            offer.wanted_due_s = inf
        return offer.open and (
            eased
            or not was_open
            or offer.empty > was_empty
            or offer.free_sequences > sequences
            or offer.free_blocks > blocks
            or offer.prefill_tokens < prefill  # also what batch and the streams can bear depends on it
        )

    def _refresh_times(self) -> None:
        offer, ledger, share, step = self.offer, self.ledger, self.share, self._step
        running = ledger.sequences + share.others_sequences
        ttft, tpot, cached = self._trust
        prefill = believed(self.speed.ttft_factor, 1.0, ttft.weight)
        decode = believed(self.speed.tpot_factor, 1.0, tpot.weight)
        offer.prefix_trust_ratio = believed(self.speed.prefix_trust_ratio, 0.0, cached.weight)
        kv_s = step.kv_token_s * (ledger.held_tokens + (self.foreign_blocks + share.others_blocks) * self.block_size)
        offer.price_decode_s = step.overhead_s + max(step.weights_s, step.token_s * (running + 1)) + kv_s
        offer.price_factor = 1 / prefill
        offer.decode_s = decode * offer.price_decode_s
        offer.kv_token_s = decode * step.kv_token_s
        offer.chunk_s = prefill * (step.overhead_s + kv_s + step.token_s * running)
        offer.token_s, offer.weights_s = prefill * step.token_s, prefill * step.weights_s
        offer.attention_s = prefill * step.attention_s
        offer.prefill_end_s = max(self._prefill_end_s, self.silent_until_s)
        offer.prefill_rest_s = _REST_RATIO * ledger.prefill_s
        offer.step_wait_s = 0.0 if offer.empty else offer.decode_s / 2
        if not self._guards:
            return
        if ledger.prefill_s:
            given_s = self.pace.objective_s * ceil(ledger.prefill_tokens / offer.chunk_tokens)
            offer.held_up_ratio = max(0.0, 1 - given_s / ledger.prefill_s)
        offer.pace_s = self.pace.objective_s
        offer.due_s = self.pace.due_s(self._now)
        offer.coming_due_s = self.pace.coming_due_s(self._now, offer.held_up_ratio)

    def forecast(self, need: Need, score: Score) -> Forecast:
        """What is said of a request that is placed here now; factors enter the times as factors, and are exchanged as such."""
        offer, speed = self.offer, self.speed
        ttft_prior_s = score.ttft_s * offer.price_factor
        tpot_prior_s = score.tpot_s * offer.price_decode_s / offer.decode_s if offer.decode_s > 0 else score.tpot_s
        held = need.cached_tokens.get(offer.replica, 0)
        cached = min(int(held * speed.prefix_trust_ratio), need.request.prompt_tokens - 1) if held else 0
        return Forecast(
            ttft_prior_s * speed.ttft_factor, ttft_prior_s, tpot_prior_s * speed.tpot_factor, tpot_prior_s,
            need.learned_tokens, need.prior_tokens, cached,
        )  # fmt: skip

    def _limit_prefill(self, step: int | None) -> None:
        if step is None or Mechanism.LATE_BINDING in self._scheduling.without:
            self._prefill_free_to, self._prefill_budget = inf, UNBOUNDED
            return
        # A prompt longer than the budget goes behind at most what is short of its last step: it has to go somewhere.
        self._prefill_free_to = max(0.0, self._scheduling.prefill_chunks - 1) * step
        self._prefill_budget = int(self._scheduling.prefill_chunks * step)

    def _free_blocks(self, sequence_limit: int) -> tuple[int, float]:
        if self._usable_blocks is None or self.profile.kv_blocks is None:
            return UNBOUNDED, 1 - self.ledger.sequences / max(sequence_limit, 1)
        reserved, foreign, share = self.ledger.reserved_blocks, self.foreign_blocks, self.share
        used = share.scaled(reserved) + foreign
        return share.of(self._usable_blocks - foreign) - reserved, 1 - used / self.profile.kv_blocks

    def _forecast(self) -> tuple[float, ...] | None:
        """Only where reserving every lease's own quantile would begin to bind."""
        blocks = self.profile.kv_blocks
        if (
            blocks is None
            or self.share.scaled(self.ledger.reserved_blocks) + self.foreign_blocks < _TIGHT_RATIO * blocks
            or Mechanism.KV_FORECAST in self._scheduling.without
        ):
            return None
        half_block = self.block_size // 2  # the last block of a sequence is half empty on average
        holders = [
            Holder(
                record.held_tokens + half_block * record.lease.request.sequences,
                record.lease.request.sequences,
                record.lengths.survival(record.emitted_per_sequence, record.output_bound),
                max(0, record.output_bound - record.emitted_per_sequence),
            )
            for record in self.ledger.leases.values()
            if record.lengths is not None
        ]
        usable = self.share.of(self.usable_blocks or 0)
        return free_tokens(usable * self.block_size, holders, self.kv_risk.margin)

    def seconds_until_fit(self, need: Need) -> float | None:
        """When it will fit if nothing else is placed here: leases are taken to end as forecast. None: never."""
        offer = self.offer
        if not offer.open or not could_ever_hold(need.request, offer, min_output_tokens=need.min_output_tokens):
            return None
        if blocks_if_fits(need, offer, self._now) is not None:
            return 0.0
        earned_s = self._seconds_until_borne(need)
        blocks, sequences = -offer.free_blocks, need.request.sequences - offer.free_sequences
        blocks += blocks_needed(need, offer)
        prefill = need.request.prompt_tokens - offer.free_prefill_tokens
        if blocks <= 0 and sequences <= 0 and prefill <= 0:
            return earned_s
        ends = sorted(
            (
                (r.forecast_tokens - r.emitted_per_sequence) * r.tpot_s,
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
                return max(end_s, earned_s)
        return ends[-1][0] if ends else inf  # empty takes whatever it could ever hold

    def _seconds_until_borne(self, need: Need) -> float:
        """When its streams will have gained enough to bear the prompt, if they are left alone until then."""
        offer = self.offer
        steps, own_s = prefill_steps(offer, need.request.prompt_tokens - cached_on(need, offer), cached_on(need, offer))
        short_s = offer.held_up_until(self._now, own_s, steps) - offer.binding_s(self._now)
        if short_s <= 0:
            return 0.0
        gain_s = offer.pace_s - offer.decode_s
        return short_s * offer.decode_s / gain_s if gain_s > 0 else inf

    def ledger_only(self, now: float, stale_after_s: float) -> bool:
        """Whether our own ledger is all there is: the engine has told no KV usage that means something, or not lately."""
        load = self.load
        told = load is not None and load.kv_usage_ratio is not None and now < load.observed_s + stale_after_s
        return not told or self.profile.kv_blocks is None

    def state(self, now: float, stale_after_s: float) -> ReplicaState:
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
            share=self.share,
            load=self.load,
            load_age_s=None if self.load is None else max(0.0, now - self.load.observed_s),
            ledger_only=self.ledger_only(now, stale_after_s),
            audit=self.audit.errors(),
            extras={
                "overrun_blocks": overrun,  # into the watermark, by growth that was not forecast
                "ttft_factor": self.speed.ttft_factor,
                "tpot_factor": self.speed.tpot_factor,
                "prefix_trust_ratio": self.speed.prefix_trust_ratio,
                "kv_margin": self.kv_risk.margin,
            },
        )

    def __repr__(self) -> str:
        return f"<{self.profile.id} {self.lifecycle} {self.ledger!r}>"


def _prior(profile: ReplicaProfile, without: frozenset[Mechanism]) -> StepModel:
    if Mechanism.SPEED in without:
        step = step_model("unknown")
    else:
        step = step_model(
            profile.gpu,
            count=profile.gpu_count,
            speed=profile.speed,
            shape=profile.shape,
            pipeline=profile.pipeline_parallel,
        )
    return replace(step, attention_s=0.0) if Mechanism.ATTENTION in without else step


def _normal_quantile(q: float) -> float:
    """Standard deviations of a normal distribution below which a share of `q` lies; within what `KvRisk` may learn."""
    return min(max(NormalDist().inv_cdf(min(q, 0.9999)), 1.0), 6.0)
