"""What one replica offers a new request right now: budgets left and the coefficients of its time and price.

A flat snapshot that the fleet rewrites whenever the replica changes, so that a policy is a function of (need, offers) and
scoring a hundred replicas stays a tight loop. Decides nothing; only `LiveReplica` writes it.
"""

from dataclasses import dataclass

from batching.blocks import DEFAULT_BLOCK_SIZE, UNBOUNDED
from batching.request import ReplicaId
from config.schema import CostTier


@dataclass(slots=True, eq=False, kw_only=True)
class Offer:
    """Seconds, dollars, tokens and blocks; `UNBOUNDED` where no limit is known."""

    replica: ReplicaId
    cost_tier: CostTier = CostTier.ON_DEMAND
    usd_per_s: float = 0.0  # of a second of the whole machine; 0 for reserved: it is paid for anyway
    open: bool = False  # ready for new work
    protected_for: int | None = None  # the one ticket that may still be placed here
    epoch: int = 0  # the fleet's count when room here last grew

    empty: bool = True  # none of our leases
    free_sequences: int = 0
    free_prefill_tokens: int = UNBOUNDED
    free_blocks: int = UNBOUNDED
    headroom_ratio: float = 1.0  # of the KV blocks, else of the sequences, that are free
    max_model_len: int = UNBOUNDED
    longest_tokens: int = UNBOUNDED  # of one sequence: its context or the whole KV cache, whichever ends first
    block_size: int = DEFAULT_BLOCK_SIZE

    prefill_tokens: int = 0  # admitted before, still to be prefilled
    chunk_tokens: int = 2048  # prompt tokens an engine step takes
    token_s: float = 0.0
    weights_s: float = 0.0
    attention_s: float = 0.0
    kv_token_s: float = 0.0
    chunk_s: float = 0.0  # of each step, whatever prompt is in it: overhead and everybody's decoding
    decode_s: float = 0.0  # a decode step with one more sequence, its own KV aside
    batch: int = 32  # sequences a step is shared by when the replica is in use
    ttft_factor: float = 1.0  # learned: observed over predicted
    tpot_factor: float = 1.0
    prefix_trust_ratio: float = 1.0  # learned: cached tokens reported over expected

    @property
    def has_room(self) -> bool:
        """Whether anything at all could be placed here."""
        return (
            self.open
            and self.protected_for is None
            and (self.empty or (self.free_sequences > 0 and self.free_blocks > 0 and self.free_prefill_tokens > 0))
        )
