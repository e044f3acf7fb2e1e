"""Where a request goes: filter, score, pick - and the explanation that goes with it."""

from dataclasses import dataclass, field

from batching.request import ReplicaId
from config.schema import CostTier


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One candidate's figures; seconds, dollars, tokens."""

    replica: ReplicaId
    ttft_s: float  # predicted first token, from now
    tpot_s: float  # predicted time per output token with this request in the batch
    usd: float  # expected cost of serving it there
    cached_tokens: int  # of its prompt, expected in the replica's prefix cache
    headroom_blocks: int | None  # KV blocks free after it; None: unknown
    meets_objective: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The choice, and why: `explain()` prints the formula with its values."""

    replica: ReplicaId
    cost_tier: CostTier
    reason: str  # prefix_hit | cost | kv_headroom | fallback: the term that decided, a metric label
    score: Score
    candidates: tuple[Score, ...] = field(default=(), repr=False)  # best first, at most a handful

    def explain(self) -> str:
        s = self.score
        room = "?" if s.headroom_blocks is None else str(s.headroom_blocks)
        return (
            f"{self.replica} [{self.cost_tier}] by {self.reason}: ttft {s.ttft_s:.3f}s tpot {s.tpot_s * 1e3:.1f}ms "
            f"${s.usd * 1e6:.2f}e-6 cached {s.cached_tokens} headroom {room} objective {'met' if s.meets_objective else 'missed'} "
            f"({len(self.candidates)} candidates)"
        )
