"""What one replica offers a new request: budgets left and the coefficients of its time and price.

A flat snapshot that the fleet rewrites whenever the replica changes, so that a policy is a function of (need, offers, now) and
scoring a hundred replicas stays a tight loop. Decides nothing; only `LiveReplica` writes it, but for `wanted_due_s`.
"""

from dataclasses import dataclass

from batching.blocks import DEFAULT_BLOCK_SIZE, UNBOUNDED
from batching.request import ReplicaId
from config.schema import CostTier

_NEVER = float("inf")


@dataclass(slots=True, eq=False, kw_only=True)
class Offer:
    """Seconds, dollars, tokens and blocks; `UNBOUNDED` where no limit is known. Learned factors are multiplied in."""

    replica: ReplicaId
    cost_tier: CostTier = CostTier.ON_DEMAND
    usd_per_s: float = 0.0  # of a second of the whole machine; 0 for reserved: it is paid for anyway
    open: bool = False  # ready for new work
    protected_for: int | None = None  # the one ticket that may still be placed here
    epoch: int = 0  # the fleet's count when room here last grew

    empty: bool = True  # none of our leases
    free_sequences: int = 0
    free_prefill_tokens: int = UNBOUNDED
    free_blocks: int = UNBOUNDED  # every lease at the high quantile of its forecast
    free_tokens: tuple[float, ...] | None = None  # the same as one forecast of the sum (kv_forecast); None: not needed
    headroom_ratio: float = 1.0  # of the KV blocks, else of the sequences, that are free
    max_model_len: int = UNBOUNDED
    longest_tokens: int = UNBOUNDED  # of one sequence: its context or the whole KV cache, whichever ends first
    block_size: int = DEFAULT_BLOCK_SIZE

    # When: what was admitted before is prefilled at `prefill_end_s`, but never sooner than in `prefill_rest_s`.
    prefill_end_s: float = 0.0
    prefill_rest_s: float = 0.0
    step_wait_s: float = 0.0  # for the step under way when nothing is being prefilled
    chunk_tokens: int = 2048  # prompt tokens an engine step takes
    token_s: float = 0.0
    weights_s: float = 0.0
    attention_s: float = 0.0
    chunk_s: float = 0.0  # of each step, whatever prompt is in it: overhead and everybody's decoding

    # How its streams fare: none may be held up beyond `due_s` by prefill.
    decode_s: float = 0.0  # a decode step with one more sequence, its own KV aside
    kv_token_s: float = 0.0
    due_s: float = _NEVER  # when the first of the streams falls behind its objective if it gets no token
    held_up_ratio: float = 1.0  # of a second of prefill: each of its steps still gives every stream one token
    wanted_due_s: float = _NEVER  # written by placement: the least `due_s` at which something that was tried would fit

    price_decode_s: float = 0.0  # as `decode_s` without learned factors
    price_factor: float = 1.0  # what makes `token_s` and `attention_s` those of the GPU type again
    batch: int = 32  # sequences a step is shared by when the replica is in use
    prefix_trust_ratio: float = 1.0  # learned: cached tokens reported over expected

    @property
    def has_room(self) -> bool:
        """Whether anything at all could be placed here."""
        return (
            self.open
            and self.protected_for is None
            and (self.empty or (self.free_sequences > 0 and self.free_blocks_any and self.free_prefill_tokens > 0))
        )

    @property
    def free_blocks_any(self) -> bool:
        """Whether a single KV block is to be had."""
        return self.free_blocks > 0 or (self.free_tokens is not None and min(self.free_tokens) > 0)
