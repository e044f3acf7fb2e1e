"""One replica while it lives: its ledger, what was learned of it, and the offer that follows from both.

Decides what room it has; not who gets it. Owned by the fleet, which alone calls what changes it.
"""

from math import ceil, inf
from typing import Final

from batching.audit import Audit, Forecast, believed
from batching.blocks import DEFAULT_BLOCK_SIZE, UNBOUNDED
from batching.capacity import LearnedSequences, prior_sequences
from batching.estimators import ReplicaSpeed
from batching.kv_audit import KvAudit
from batching.kv_forecast import KvRisk, free_tokens, holders_of, normal_quantile
from batching.ledger import LeaseRecord, Ledger
from batching.meter import Meter
from batching.offer import Offer
from batching.outlook import PrefillLimit, seconds_until_borne, seconds_until_fit, seconds_until_prefilled
from batching.pace import Pace
from batching.placement import Need, Score
from batching.replica import EngineLoad, Lifecycle, ReplicaProfile
from batching.request import ServiceTier
from batching.shares import ALONE, WHOLE, Share
from batching.step_prior import step_prior
from batching.window import Window
from config.gpus import StepModel
from config.schema import CostTier, Mechanism, Scheduling

# vLLM's smallest default for max_num_batched_tokens: predictions then err to the slow side.
_DEFAULT_CHUNK_TOKENS: Final = 2048
_TELLING_PREFILL_S: Final = (
    0.05  # of shorter prompts the first token tells more of the step under way than of the machine
)
_TYPICAL_TOKENS: Final = 1000  # that each of them holds
_TYPICAL_BATCH: Final = 32  # sequences that share a step of a machine in use; prices decoding, not this moment's load
_PREFIX_RATIO: Final = (
    0.9  # of the KV cache: the rest holds answers, and of prompts what is beyond their last whole chunk
)
# Of prefill that was admitted and shows no first token: an estimate that has run out says little, but not that nothing is left.
_REST_RATIO: Final = 0.25
_TIGHT_RATIO: Final = 0.7  # of the KV blocks reserved at high quantiles: from here on the sum is forecast
_LONGEST_SILENCE_S: Final = 30.0  # after which a replica that left requests without a first token is tried again
_READY: Final = Lifecycle.READY
_RECLAIMING: Final = Lifecycle.RECLAIMING  # an enum's member costs a call to look up
_PACE_MARGIN_RATIO: Final = 0.95  # of the TPOT objective that streams are kept to: step times are means


class LiveReplica:
    """`refresh` must follow every change but those that `grew` makes; it says whether room grew."""

    def __init__(self, profile: ReplicaProfile, lifecycle: Lifecycle, scheduling: Scheduling) -> None:
        self._scheduling = scheduling
        self.profile = profile
        self.lifecycle = lifecycle
        self.retired = False  # removed, but leases live
        self.load: EngineLoad | None = None
        self.foreign_blocks = 0
        self.share: Share = ALONE  # of its budgets, where other gateways use it, too
        self.ledger = Ledger()
        self.meter = Meter(profile)
        self.learned = LearnedSequences(prior_sequences(profile.gpu, profile.gpu_count))
        self.speed = ReplicaSpeed()
        self.audit = Audit(doubting=Mechanism.AUDIT not in scheduling.without)
        self._kv_audit = KvAudit(self.audit)
        self._trust = self.audit.ttft, self.audit.tpot, self.audit.cached  # looked up at every event
        self.pace = Pace(0.0, 0.0)
        self.kv_risk = KvRisk(normal_quantile(scheduling.kv_forecast_quantile))
        self.least_output_tokens = 16  # what nearly every answer here reaches
        self._prefill_end_s = 0.0
        self.silent_until_s = -inf  # another replica was sooner: it is taken to give no first token until then
        self._prefill_factor = 1.0  # of the prior's seconds, as far as it is believed
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
        step = self._step = step_prior(profile, self._scheduling.without)
        offer = self.offer
        offer.cost_tier = profile.cost_tier
        offer.usd_per_s = 0.0 if profile.cost_tier is CostTier.RESERVED else profile.usd_per_hour / 3600
        offer.max_model_len = profile.max_model_len or UNBOUNDED
        offer.block_size = self.block_size
        capacity_tokens = UNBOUNDED if profile.kv_blocks is None else profile.kv_blocks * self.block_size
        offer.longest_tokens = min(offer.max_model_len, capacity_tokens)
        offer.chunk_tokens = profile.max_num_batched_tokens or _DEFAULT_CHUNK_TOKENS
        binds_late = Mechanism.LATE_BINDING not in self._scheduling.without
        steps = self._scheduling.prefill_chunks if binds_late else None
        self._prefill_limit = PrefillLimit.of_engine(profile.max_num_batched_tokens, steps)
        self.meter.weigh_by(step, batch=min(self.max_num_seqs, _TYPICAL_BATCH), chunk_tokens=offer.chunk_tokens)
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
        self.learned.observe(load, ours=self.ledger.sequences + self.share.others.sequences)
        self.kv_risk.observe(load.preemptions_total, load.kv_usage_ratio)
        known_blocks = self.ledger.held_blocks + self.share.others.blocks
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
        self.meter.open(record, record.placed_s)
        self._now = record.placed_s
        self._prefill_end_s = max(self._prefill_end_s, record.placed_s) + record.prefill_s
        request = record.lease.request
        if request.streaming and record.prefill_tokens and request.service_tier is not ServiceTier.BATCH:
            self.pace.expect(record, self._prefill_end_s, least_tokens=self.least_output_tokens)
        self._stepped = None

    def prefilled(self, record: LeaseRecord, now: float) -> None:
        """Its first token is out, or taken for so."""
        self.ledger.prefilled(record)
        self.meter.weigh(record, now)
        self._now = now
        self._prefill_end_s = now + self.ledger.prefill_s + self.share.others.prefill_s
        self._stepped = None

    def share_with(self, share: Share, now: float) -> bool:
        """What may be used, and what others have running: their prefill goes first, as ours does. True: it may be more than before."""
        before, more_s = self.share, share.others.prefill_s - self.share.others.prefill_s
        self.share, self._now = share, max(self._now, now)
        if more_s > 0:
            self._prefill_end_s = max(self._prefill_end_s, now) + more_s
        elif more_s < 0:
            self._prefill_end_s = now + self.ledger.prefill_s + share.others.prefill_s
        return share.parts > before.parts

    def elapse(self, now: float) -> None:
        """Time has passed in which its streams may have got nothing."""
        self._now = max(self._now, now)

    def set_window(self, window: Window | None, now: float) -> None:
        """Until when it takes what, from now on."""
        self.elapse(now)
        self.offer.window = window

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

    def grew(self, record: LeaseRecord, emitted_tokens: int, now: float) -> bool | None:
        """Some tokens more, and what they change of its offer: None, nothing; True, what did not fit before may fit now."""
        if changed := self.ledger.grow(record, emitted_tokens):
            self.meter.weigh(record, now)
        stepped = record.first_token_s is not None and self.pace.advance(record)
        self._now = now
        if not stepped and not changed:  # most streams of a batch only follow the first of them
            return None
        offer = self.offer
        offer.told = None
        if stepped:
            self._learn_step(now)
        if self._guards:
            offer.due_s = self.pace.due_s(now)  # for who arrives next; who was turned away is told below
        if stepped and inf > offer.wanted_due_s <= offer.binding_s(now):
            changed = True
        if not changed:
            return False
        self._refresh_blocks()
        self._refresh_decode()
        if self._guards:
            offer.coming_due_s = self.pace.coming_due_s(now, offer.held_up_ratio)
        return self._eased() and offer.open

    def closed(self, record: LeaseRecord, now: float) -> None:
        """It has ended."""
        self._now = now
        if record.prefill_s:
            self._prefill_end_s -= record.prefill_s
        self.ledger.close(record.lease.id)
        self.meter.close(record, now)
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
        offer.told = None
        if offer.window is not None:
            offer.window = offer.window.judged_by(self.audit)
        offer.open = (self.lifecycle is _READY or self._until_reclaimed()) and not self.retired
        limit = whole = self.profile.max_num_seqs or self.learned.limit
        offer.empty = not ledger.leases
        if share.parts != WHOLE:
            offer.empty = False  # what it takes beyond its budgets would be others'
            limit = share.of(whole)
        offer.free_sequences = limit - ledger.sequences
        offer.spared_sequences = limit // 10
        offer.batch = whole if whole < _TYPICAL_BATCH else _TYPICAL_BATCH
        self._refresh_blocks()
        self._refresh_prefill()
        self._refresh_decode()
        if self._guards:
            offer.pace_s = self.pace.objective_s
            offer.due_s = self.pace.due_s(self._now)
            offer.coming_due_s = self.pace.coming_due_s(self._now, offer.held_up_ratio)
        return (
            self._eased()
            or not was_open
            or offer.empty > was_empty
            or offer.free_sequences > sequences
            or offer.free_blocks > blocks
            or offer.prefill_tokens < prefill  # also what batch and the streams can bear depends on it
        ) and offer.open

    def _until_reclaimed(self) -> bool:
        """A notice runs, and there is time left in which something may be done."""
        window = self.offer.window
        return self.lifecycle is _RECLAIMING and window is not None and self._now < window.ends_s < inf

    def _refresh_blocks(self) -> None:
        """What the KV cache has left; its forecast is made when somebody asks."""
        offer = self.offer
        offer.known_free_tokens, offer.forecast = None, self._forecast
        if self._usable_blocks is None or self.profile.kv_blocks is None:
            offer.free_blocks = UNBOUNDED
            offer.headroom_ratio = 1 - self.ledger.sequences / max(self.share.of(self.max_num_seqs), 1)
        else:
            reserved, usable, share = self.ledger.reserved_blocks, self._usable_blocks - self.foreign_blocks, self.share
            dense = reserved
            if share.parts != WHOLE:
                usable, dense = share.of(usable), share.scaled(reserved)
            offer.free_blocks = usable - reserved
            offer.headroom_ratio = 1 - (dense + self.foreign_blocks) / self.profile.kv_blocks

    def _refresh_prefill(self) -> None:
        """What a prompt costs here, and what was admitted before it."""
        offer, ledger, step, speed = self.offer, self.ledger, self._step, self.speed
        ttft, _, cached = self._trust
        factor = speed.ttft_factor if ttft.weight == 1.0 else believed(speed.ttft_factor, 1.0, ttft.weight)
        trust = speed.prefix_trust_ratio
        offer.prefix_trust_ratio = trust if cached.weight == 1.0 else believed(trust, 0.0, cached.weight)
        self._prefill_factor = factor
        offer.price_factor = 1 / factor
        offer.token_s, offer.weights_s = factor * step.token_s, factor * step.weights_s
        offer.attention_s = factor * step.attention_s
        ahead, ahead_s = ledger.prefill_tokens, ledger.prefill_s + self.share.others.prefill_s
        offer.prefill_tokens = ahead
        limit = self._prefill_limit if self.share.parts == WHOLE else self._prefill_limit.part(self.share)
        offer.free_prefill_tokens = UNBOUNDED if ahead <= limit.open_up_to else limit.budget - ahead
        ends_s, silent_s = self._prefill_end_s, self.silent_until_s
        offer.prefill_end_s = ends_s if ends_s >= silent_s else silent_s
        offer.prefill_rest_s = _REST_RATIO * ahead_s
        if ahead_s and self._guards:
            given_s = self.pace.objective_s * ceil(ahead / offer.chunk_tokens)
            offer.held_up_ratio = max(0.0, 1 - given_s / ahead_s)

    def _refresh_decode(self) -> None:
        """What a token costs here."""
        offer, ledger, step, tpot = self.offer, self.ledger, self._step, self._trust[1]
        factor, sequences = self.speed.tpot_factor, ledger.sequences + self.share.others.sequences
        if tpot.weight != 1.0:
            factor = believed(factor, 1.0, tpot.weight)
        held_tokens = ledger.held_tokens
        if others := self.foreign_blocks + self.share.others.blocks:
            held_tokens += others * self.block_size
        kv_s, compute_s = step.kv_token_s * held_tokens, step.token_s * (sequences + 1)
        weights_s = step.weights_s
        price_s = offer.price_decode_s = step.overhead_s + (weights_s if weights_s >= compute_s else compute_s) + kv_s
        decode_s = offer.decode_s = factor * price_s
        offer.kv_token_s = factor * step.kv_token_s
        offer.chunk_s = self._prefill_factor * (step.overhead_s + kv_s + step.token_s * sequences)
        offer.step_wait_s = 0.0 if offer.empty else decode_s / 2

    def _eased(self) -> bool:
        """Whether its streams can bear now what was refused for their sake; it is forgotten then."""
        offer = self.offer
        if offer.wanted_due_s == inf or offer.wanted_due_s > offer.binding_s(self._now):
            return False
        offer.wanted_due_s = inf
        return True

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

    def _forecast(self) -> tuple[float, ...] | None:
        """Only where reserving every lease's own quantile would begin to bind."""
        blocks = self.profile.kv_blocks
        if (
            blocks is None
            or self.share.scaled(self.ledger.reserved_blocks) + self.foreign_blocks < _TIGHT_RATIO * blocks
            or Mechanism.KV_FORECAST in self._scheduling.without
        ):
            return None
        holders = holders_of(self.ledger.leases.values(), self.block_size)
        usable = self.share.of(self.usable_blocks or 0)
        return free_tokens(usable * self.block_size, holders, self.kv_risk.margin)

    def seconds_until_turn(self, need: Need, now: float) -> float:
        """Until a prompt for which there are slots and blocks may come behind those ahead; what takes time is their prefill."""
        limit, leases = self._prefill_limit.part(self.share), self.ledger.leases.values()
        prefilled_s = seconds_until_prefilled(need, self.offer, leases, limit, now)
        return prefilled_s + seconds_until_borne(need, self.offer, now)

    def seconds_until_fit(self, need: Need) -> float | None:
        """When it will fit if nothing else is placed here; None: never."""
        return seconds_until_fit(need, self.offer, self.ledger, self._now)

    def ledger_only(self, now: float, stale_after_s: float) -> bool:
        """Whether our own ledger is all there is: the engine has told no KV usage that means something, or not lately."""
        load = self.load
        told = load is not None and load.kv_usage_ratio is not None and now < load.observed_s + stale_after_s
        return not told or self.profile.kv_blocks is None

    def __repr__(self) -> str:
        return f"<{self.profile.id} {self.lifecycle} {self.ledger!r}>"
