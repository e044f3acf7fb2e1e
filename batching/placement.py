"""Where a request goes: filter, score, pick - and the explanation that goes with it.

A pure function of what the request needs and what replicas offer. Money and time: among replicas predicted to meet the
objectives the cheapest; if none meets them the earliest first token; equal within 1 % goes to the most headroom.
Does not hold requests back, order them, or remember anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from batching.blocks import UNBOUNDED, blocks_for
from batching.offer import Offer
from batching.request import ReplicaId, Request
from config.schema import CostTier

# Of an objective that a prediction must stay below: predictions are means, and what is placed next slows down what runs
# (benchmarks.simulate, mixed fleet at x16 of the Azure trace: 91 % met without it, 96 % with it; docs/benchmarks.md).
_MARGIN_RATIO = 0.6
_EQUAL_RATIO = 1.01  # predictions are not better than 1 %
_ROUNDING = 1 + 1e-9
# Reclaims per second and spot machine: one in 20 hours, the order of published spot interruption rates (5 % an hour).
_SPOT_HAZARD_PER_S = 0.05 / 3600


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
    machine_s: float = 0.0  # of the whole machine, that serving it will use


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The choice, and why: `explain()` prints the formula with its values."""

    replica: ReplicaId
    cost_tier: CostTier
    reason: str  # prefix_hit | cost | kv_headroom | fallback: the term that decided, a metric label
    score: Score
    candidates: tuple[Score, ...] = field(default=(), repr=False)  # the choice and the runner-up
    considered: int = 1  # replicas that could take it

    def explain(self) -> str:
        s = self.score
        room = "?" if s.headroom_blocks is None else str(s.headroom_blocks)
        return (
            f"{self.replica} [{self.cost_tier}] by {self.reason}: ttft {s.ttft_s:.3f}s tpot {s.tpot_s * 1e3:.1f}ms "
            f"${s.usd * 1e6:.2f}e-6 for {s.machine_s:.4f} machine-s cached {s.cached_tokens} headroom {room} "
            f"objective {'met' if s.meets_objective else 'missed'} ({self.considered} candidates)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one request asks of a replica, estimates resolved; made anew when it is tested anew."""

    request: Request
    ticket: int
    forecast_tokens: int  # output per sequence to reserve for
    expected_tokens: int  # output per sequence on average
    ttft_objective_s: float
    tpot_objective_s: float
    min_output_tokens: int = 1  # 0 for embeddings
    cached_tokens: Mapping[ReplicaId, int] = field(default_factory=dict)  # expected in each prefix cache


# (usd, machine_s, ttft_s, tpot_s, cached tokens, blocks, offer): a bare tuple, as one is made for every replica scored.
_Row = tuple[float, float, float, float, int, int, Offer]
_USD: Final = 0
_MACHINE: Final = 1
_TTFT: Final = 2
_TPOT: Final = 3
_CACHED: Final = 4
_BLOCKS: Final = 5
_OFFER: Final = 6


def place(need: Need, offers: Sequence[Offer]) -> Placement | None:
    """The best of `offers` for `need`, or None where it fits none of them now. O(offers)."""
    rows = _fitting(need, offers)
    if not rows:
        return None
    ttft_s, tpot_s = need.ttft_objective_s * _MARGIN_RATIO, need.tpot_objective_s * _MARGIN_RATIO
    meeting = [row for row in rows if row[_TTFT] <= ttft_s and row[_TPOT] <= tpot_s]
    best, reason = _cheapest(need, meeting) if meeting else _earliest(rows)
    others = [row for row in meeting or rows if row is not best]
    shown = (best, min(others, key=itemgetter(_USD, _MACHINE))) if others else (best,)
    scores = tuple(_public(need, row) for row in shown)
    offer = best[_OFFER]
    return Placement(
        replica=offer.replica,
        cost_tier=offer.cost_tier,
        reason=reason,
        score=scores[0],
        candidates=scores,
        considered=len(rows),
    )


def reserved_output(need: Need, offer: Offer) -> int:
    """Output tokens per sequence that a lease on this replica reserves."""
    return min(need.forecast_tokens, offer.max_model_len - need.request.prompt_tokens)


def blocks_needed(need: Need, offer: Offer) -> int:
    """KV blocks that a lease on this replica reserves."""
    request = need.request
    output = reserved_output(need, offer)
    return blocks_for(request.prompt_tokens, output, request.sequences, offer.block_size)


def cached_on(need: Need, offer: Offer) -> int:
    """Prompt tokens expected in this replica's prefix cache; the last token is always computed."""
    hit = need.cached_tokens.get(offer.replica, 0)
    return max(0, min(int(hit * offer.prefix_trust_ratio), need.request.prompt_tokens - 1)) if hit else 0


def could_ever_hold(request: Request, offer: Offer, *, min_output_tokens: int) -> bool:
    """Whether the replica, empty, would take this request: tier, retries and sizes."""
    return (
        (request.cost_tiers is None or offer.cost_tier in request.cost_tiers)
        and offer.replica not in request.avoid
        and request.prompt_tokens + min_output_tokens <= offer.longest_tokens
    )


def blocks_if_fits(need: Need, offer: Offer) -> int | None:
    """KV blocks that the request would reserve there, or None if a budget or a constraint forbids it now."""
    rows = _fitting(need, (offer,))
    return rows[0][_BLOCKS] if rows else None


def _fitting(need: Need, offers: Sequence[Offer]) -> list[_Row]:
    """Filter and score, in one flat loop with few calls: it runs for every replica and every decision.

    An empty replica takes whatever it could hold at all, so that a request wider than a budget still goes somewhere.
    """
    request, ticket = need.request, need.ticket
    prompt, sequences = request.prompt_tokens, request.sequences
    shortest = prompt + need.min_output_tokens
    constrained = request.cost_tiers is not None or bool(request.avoid)
    cached_tokens, decode_tokens = need.cached_tokens, need.expected_tokens
    spot = CostTier.SPOT
    rows: list[_Row] = []
    cached = blocks = block_size = max_model_len = 0
    for o in offers:
        if not o.open or shortest > o.longest_tokens or (o.protected_for is not None and o.protected_for != ticket):
            continue
        if constrained and not could_ever_hold(request, o, min_output_tokens=need.min_output_tokens):
            continue
        empty = o.empty
        if not empty and sequences > o.free_sequences:
            continue
        if cached_tokens:
            cached = cached_on(need, o) if o.replica in cached_tokens else 0
        new = prompt - cached
        if o.block_size != block_size or o.max_model_len != max_model_len:  # seldom: replicas of a model are alike
            block_size, max_model_len, blocks = o.block_size, o.max_model_len, blocks_needed(need, o)
        if not empty and (blocks > o.free_blocks or o.free_blocks <= 0 or new > o.free_prefill_tokens):
            continue
        # Chunked prefill: what was admitted before goes first; each step also decodes for everybody, reads the weights.
        ahead = o.prefill_tokens + new
        steps = -(-ahead // o.chunk_tokens)
        compute_s, weights_s = o.token_s * ahead, steps * o.weights_s
        if weights_s > compute_s:  # noqa: PLR1730 - a call to max costs a tenth of the loop
            compute_s = weights_s
        attention_s = o.attention_s * new * (cached + new / 2)
        ttft_s = o.ttft_factor * (steps * o.chunk_s + compute_s + attention_s)
        tpot_s = o.tpot_factor * (o.decode_s + o.kv_token_s * prompt)
        decode_s = decode_tokens * tpot_s
        # The share of the machine: all of it while prefilling, one of `batch` while decoding. Without the learned factors: they
        # tell this moment's load from the next, and a price that moves with them herds everybody onto one replica.
        busy_s = decode_tokens * sequences * (o.decode_s + o.kv_token_s * prompt) / o.batch
        machine_s = o.token_s * new + attention_s + busy_s
        usd = o.usd_per_s * machine_s
        if o.cost_tier is spot:  # a reclaim costs the work again
            usd *= 1 + _SPOT_HAZARD_PER_S * (ttft_s + decode_s)
        rows.append((usd, machine_s, ttft_s, tpot_s, cached, blocks, o))
    return rows


def _cheapest(need: Need, rows: list[_Row]) -> tuple[_Row, str]:
    limit = min(rows, key=itemgetter(_USD))[_USD] * _EQUAL_RATIO
    near = [row for row in rows if row[_USD] <= limit]
    # Equal in money - reserved or unpriced machines all are - is told apart by how much of a machine it uses.
    limit = min(near, key=itemgetter(_MACHINE))[_MACHINE] * _EQUAL_RATIO
    near = [row for row in near if row[_MACHINE] <= limit]
    best = _roomiest(near)
    if len(near) > 1 and any(row[_CACHED] >= best[_CACHED] for row in near if row is not best):
        return best, "kv_headroom"
    return best, "prefix_hit" if best[_CACHED] and _prefix_decided(need, best, rows) else "cost"


def _prefix_decided(need: Need, best: _Row, rows: list[_Row]) -> bool:
    offer, cached = best[_OFFER], best[_CACHED]
    prompt = need.request.prompt_tokens
    new = prompt - cached
    saved_s = offer.token_s * cached + offer.attention_s * (prompt**2 / 2 - new * (cached + new / 2))
    without_s = best[_MACHINE] + offer.ttft_factor * saved_s
    without_usd = best[_USD] * without_s / best[_MACHINE]
    # Had this replica held none of it, would one that holds less have been as good?
    rivals = [row for row in rows if row is not best]
    return not rivals or any(
        row[_CACHED] < cached and (row[_USD], row[_MACHINE]) <= (without_usd * _ROUNDING, without_s * _ROUNDING)
        for row in rivals
    )


def _earliest(rows: list[_Row]) -> tuple[_Row, str]:
    limit = min(rows, key=itemgetter(_TTFT))[_TTFT] * _EQUAL_RATIO
    return _roomiest([row for row in rows if row[_TTFT] <= limit]), "fallback"


def _roomiest(rows: list[_Row]) -> _Row:
    # Ids break ties, so that the same events always give the same placements.
    return rows[0] if len(rows) == 1 else min(rows, key=lambda row: (-row[_OFFER].headroom_ratio, row[_OFFER].replica))


def _public(need: Need, row: _Row) -> Score:
    usd, machine_s, ttft_s, tpot_s, cached, blocks, offer = row
    free = offer.free_blocks
    return Score(
        replica=offer.replica,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        usd=usd,
        cached_tokens=cached,
        headroom_blocks=None if free >= UNBOUNDED else max(0, free - blocks),
        meets_objective=ttft_s <= need.ttft_objective_s and tpot_s <= need.tpot_objective_s,
        machine_s=machine_s,
    )
