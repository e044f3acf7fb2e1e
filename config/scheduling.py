"""The settings of queue and scheduler: what may wait, for how long, in which order, and what placement tries to keep."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from config.checks import OWN_POLICY, policy_problems, refusal
from config.section import Section


class Mechanism(StrEnum):
    """What the scheduler does beyond first come first served; each can be switched off to see what it is worth."""

    SPEED = "speed"  # GPU types and sizes are told apart
    ATTENTION = "attention"  # prefill time grows with the square of the prompt
    DEADLINES = "deadlines"  # who must have its first token soonest goes first
    LATE_LAST = "late_last"  # who cannot meet its objective any more yields to those who can
    HOLD = "hold"  # a request waits for a replica that will meet its objective instead of taking one that will not
    LATE_BINDING = "late_binding"  # requests wait here, not in the engines
    ITL_GUARD = "itl_guard"  # prefill waits while streams have no time to spare
    KV_FORECAST = "kv_forecast"  # the sum of all growth is forecast, not each request's worst case
    PREFIX = "prefix"  # cached prefixes count as prefill saved
    PREFIX_HOLD = "prefix_hold"  # a request waits for the replica that holds its beginning, where that is worth it
    COST = "cost"  # the cheapest replica that will do, not the fastest
    AUDIT = "audit"  # what was learned loses weight where it does worse than not learning
    SPARING = "sparing"  # batch leaves replicas free of its prompts, as many as those who are watched need
    FLOORS = "floors"  # a guaranteed share for those whom strict order would starve
    EARLY_REFUSAL = "early_refusal"  # who cannot be answered in time is refused at once, and told when it can


Share = Annotated[float, Field(ge=0, le=0.5)]
TierShare = Annotated[float, Field(gt=0, le=1)]


class Floors(Section):
    """Shares of the prompt tokens placed that a class gets while it waits, however much goes before it; the rest is strict order."""

    default: Share = 0.1
    flex: Share = 0.05
    late: Share = Field(0.05, description="requests that cannot meet their objective any more, of all tiers but batch")
    batch: Share = 0.05


class TierShares(Section):
    """Of each bound of the queue, how much a service tier may fill: what is deferred must not leave the others without a place."""

    priority: TierShare = 1.0
    default: TierShare = 1.0
    flex: TierShare = 0.5
    batch: TierShare = 0.5


class Queue(Section):
    """Bounds of the gateway's queue and how long a request may wait in it."""

    max_requests: PositiveInt = Field(
        5000, description="beyond it the lowest tier makes way, else a request gets 503 with Retry-After"
    )
    max_bytes: PositiveInt = Field(2**30, description="bodies held while queued")
    max_tokens: PositiveInt = Field(50_000_000, description="prompt tokens held while queued")
    max_wait_s: PositiveFloat = Field(30.0, description="then 503 with Retry-After")
    aging_s: PositiveFloat = Field(
        10.0, description="waiting so long lifts who is next in a service tier by one; not batch"
    )
    floors: Floors = Floors()
    tier_shares: TierShares = TierShares()


class Objectives(Section):
    """What placement tries to keep. TTFT grows with the prompt: base + per-token part beyond 1,000 tokens."""

    ttft_s: PositiveFloat = 1.0
    ttft_s_per_prompt_token: NonNegativeFloat = Field(0.001, description="for each prompt token beyond 1,000")
    tpot_s: PositiveFloat = 0.1


class Hedge(Section):
    """A second replica is asked where the first keeps a request waiting for its first token far longer than predicted."""

    enabled: bool = True
    after_ratio: float = Field(
        3.0, ge=1, description="times the predicted first token; more where predictions have been wrong"
    )
    floor_s: PositiveFloat = Field(0.5, description="never sooner")


class Scheduling(Section):
    """The scheduler's knobs; each default has its reason beside it."""

    kv_watermark_ratio: float = Field(
        0.02, ge=0, lt=1, description="KV blocks kept free for growth that was not forecast"
    )
    kv_forecast_quantile: float = Field(
        0.95, gt=0, le=1, description="of the learned output length that a lease reserves"
    )
    prefill_chunks: PositiveFloat = Field(
        2.0, description="unprefilled tokens admitted, in units of max_num_batched_tokens"
    )
    bypass_limit: PositiveInt = Field(16, description="how many waiting requests one pass may look past")
    head_protection_s: PositiveFloat = Field(
        0.3, description="a head passed over for so long gets a replica reserved for it; by another tenant: at once"
    )
    objectives: Objectives = Objectives()
    retry_budget_ratio: float = Field(
        0.1, ge=0, le=1, description="of all requests that may be sent twice, hedged or repeated, over the whole fleet"
    )
    hedge: Hedge = Hedge()
    policy: str = Field(
        OWN_POLICY,
        description="`penstock`, or another router's rule to compare with: round_robin, least_requests, ... (docs/baselines.md)",
    )
    without: frozenset[Mechanism] = Field(
        frozenset(), description="mechanisms switched off, to measure what they are worth (docs/benchmarks.md)"
    )

    @model_validator(mode="before")
    @classmethod
    def _budget_where_it_was(cls, data: object) -> object:
        """`hedge.budget_ratio` is what it was called while hedges alone took from it; the present name wins."""
        if isinstance(data, dict) and isinstance(hedge := data.get("hedge"), dict) and "budget_ratio" in hedge:
            rest = {name: value for name, value in hedge.items() if name != "budget_ratio"}
            return {"retry_budget_ratio": hedge["budget_ratio"], **data, "hedge": rest}
        return data

    @field_validator("policy")
    @classmethod
    def _policy_that_there_is(cls, policy: str) -> str:
        problems = list(policy_problems(policy))
        if problems:
            raise refusal("policy", problems)
        return policy
