"""Where a request goes: filter, score, pick - and the explanation that goes with it.

A pure function of what the request needs, what replicas offer, and the time. Money and time: among replicas predicted to meet
the objectives with ease the cheapest, and of those that cost about the same the earliest; else the earliest first token among
those that meet them at all; else, where some other replica could still meet them, nothing: the request is held. What is equal
in time goes to the most headroom. Does not order requests, or remember anything.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from batching.blocks import UNBOUNDED, blocks_for
from batching.estimators import KnownLength, Lengths
from batching.kv_forecast import Holder, fits
from batching.offer import Offer
from batching.request import ReplicaId, Request, ServiceTier
from config.schema import CostTier

# Of the time that is left until the first token is due: within it money decides, beyond it the earliest.
EASE_RATIO: Final = 0.2
# Of the TTFT objective, that a prediction must leave: at the edge of a deadline a step decides, and who misses it by one has taken
# the room of somebody who would not have. Measured at 1.1 times what a fleet can do: 0, 0.06, 0.1, 0.2 have 82, 84, 89, 91 % in time.
_SLACK_RATIO: Final = 0.1
TPOT_RATIO: Final = (
    0.9  # of the TPOT objective: what is prefilled later slows down what runs; the guard keeps that within bounds
)
# A head that was passed over is borne sooner: streams are lent what so many tokens will gain them once it is prefilled. Measured:
# 0, 5, 10 give nine light tenants beside a greedy one 1.6, 1.5, 1.4 times the p99 TTFT they have alone, at the same highest rate.
LENT_TO_HEAD_TOKENS: Final = 10
EQUAL_RATIO: Final = 1.01  # predictions of time are not better than 1 %
PRICE_RATIO: Final = 1.1  # ... and those of money than a tenth: they rest on a guess of the answer's length
_SPOT: Final = CostTier.SPOT
_BATCH: Final = ServiceTier.BATCH  # an enum's member costs a call to look up
_NEVER: Final = float("inf")
_ROUNDING: Final = 1 + 1e-9
# Reclaims per second and spot machine: one in 20 hours, the order of published spot interruption rates (5 % an hour).
SPOT_HAZARD_PER_S: Final = 0.05 / 3600


# These three are made for every request and not `frozen`, though nobody writes to them: freezing triples what making one costs.
# For the same reason they are made by position where it happens for every request: naming ten fields triples it, too.


@dataclass(init=False, slots=True)
class Score:
    """One candidate's figures; seconds, dollars, tokens."""

    replica: ReplicaId
    ttft_s: float  # predicted first token, from now
    tpot_s: float  # predicted time per output token with this request in the batch
    usd: float  # expected cost of serving it there
    cached_tokens: int  # of its prompt, expected in the replica's prefix cache
    headroom_blocks: int | None  # KV blocks free after it; None: unknown
    meets_objective: bool
    machine_s: float  # of the whole machine, that serving it will use
    prefill_s: float  # ... until its prompt is prefilled, if nothing else is

    def __init__(
        self,
        replica: ReplicaId,
        ttft_s: float,
        tpot_s: float,
        usd: float,
        cached_tokens: int,
        headroom_blocks: int | None,
        meets_objective: bool,
        machine_s: float = 0.0,
        prefill_s: float = 0.0,
    ) -> None:
        self.replica = replica
        self.ttft_s = ttft_s
        self.tpot_s = tpot_s
        self.usd = usd
        self.cached_tokens = cached_tokens
        self.headroom_blocks = headroom_blocks
        self.meets_objective = meets_objective
        self.machine_s = machine_s
        self.prefill_s = prefill_s


@dataclass(slots=True)
class Placement:
    """The choice, and why: `explain()` prints the formula with its values."""

    replica: ReplicaId
    cost_tier: CostTier
    reason: str  # prefix_hit | cost | kv_headroom | fallback: the term that decided, a metric label
    score: Score
    candidates: tuple[Score, ...] = field(default=(), repr=False)  # the choice and the runner-up
    considered: int = 1  # replicas that could take it
    held_for: ReplicaId | None = None  # it waited for this one, which holds more of its beginning (`batching.holding`)

    def explain(self) -> str:
        s = self.score
        room = "?" if s.headroom_blocks is None else str(s.headroom_blocks)
        return (
            f"{self.replica} [{self.cost_tier}] by {self.reason}: ttft {s.ttft_s:.3f}s tpot {s.tpot_s * 1e3:.1f}ms "
            f"${s.usd * 1e6:.2f}e-6 for {s.machine_s:.4f} machine-s cached {s.cached_tokens} headroom {room} "
            f"objective {'met' if s.meets_objective else 'missed'} ({self.considered} candidates)"
            + ("" if self.held_for is None else f", held for {self.held_for}")
        )


@dataclass(slots=True)
class Need:
    """What one request asks of a replica, estimates resolved; made anew when it is tested anew."""

    request: Request
    ticket: int
    forecast_tokens: int  # output per sequence to reserve for
    expected_tokens: int  # output per sequence on average
    ttft_objective_s: float
    tpot_objective_s: float
    learned_tokens: int = 0  # `expected_tokens` as it was learned, and without learning: for the audit
    prior_tokens: int = 0
    min_output_tokens: int = 1  # 0 for embeddings
    output_bound: int = UNBOUNDED  # tokens per sequence that the client allows
    lengths: Lengths | KnownLength | None = None  # what is known of how long such answers get
    cached_tokens: Mapping[ReplicaId, int] = field(default_factory=dict)  # expected in each prefix cache

    @property
    def first_token_due_s(self) -> float:
        """When the first token must be there, on the caller's clock."""
        return self.request.arrived_s + self.ttft_objective_s

    @property
    def slack_s(self) -> float:
        """Before that, by when it is to be predicted."""
        return 0.0 if self.ttft_objective_s == _NEVER else _SLACK_RATIO * self.ttft_objective_s


# (usd, machine_s, ttft_s, tpot_s, cached tokens, blocks, offer, prefill_s): a bare tuple, as one is made for every replica scored.
Row = tuple[float, float, float, float, int, int, Offer, float]
_USD: Final = 0
_MACHINE: Final = 1
_TTFT: Final = 2
_TPOT: Final = 3
_CACHED: Final = 4
_BLOCKS: Final = 5
_OFFER: Final = 6


def place(
    need: Need, offers: Iterable[Offer], now: float = 0.0, *, hold: bool = False, by_cost: bool = True
) -> Placement | None:
    """The best of `offers` for `need`, or None where it fits none of them now. O(offers).

    `hold`: None also where every one that has room would miss an objective. `by_cost` False: always the earliest first token.
    """
    rows = _fitting(need, offers, now)
    if not rows:
        return None
    left_s, tpot_s = need.first_token_due_s - now, need.tpot_objective_s * TPOT_RATIO
    meets_s, eased_s = left_s - need.slack_s, left_s * EASE_RATIO if by_cost else -_NEVER
    pool: list[Row] = []
    with_ease: list[Row] = []
    for row in rows:
        if row[_TTFT] <= meets_s and row[_TPOT] <= tpot_s:
            pool.append(row)
            if row[_TTFT] <= eased_s:
                with_ease.append(row)
    if with_ease:
        pool = with_ease
        best, reason = _cheapest(need, pool)
    elif pool or not hold:
        pool = pool or rows
        best, reason = _earliest(pool), "fallback"
    else:
        return None
    runner_up = _runner_up(pool, best)
    return explained(need, (best,) if runner_up is None else (best, runner_up), reason, len(rows), now)


def explained(need: Need, shown: Sequence[Row], reason: str, considered: int, now: float) -> Placement:
    """The placement on the first of `shown`; the other is its runner-up."""
    offer, score = shown[0][_OFFER], _public(need, shown[0], now)
    scores = (score,) if len(shown) == 1 else (score, _public(need, shown[1], now))
    return Placement(offer.replica, offer.cost_tier, reason, score, scores, considered)


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


def blocks_if_fits(need: Need, offer: Offer, now: float = 0.0) -> int | None:
    """KV blocks that the request would reserve there, or None if a budget or a constraint forbids it now."""
    rows = _fitting(need, (offer,), now)
    return rows[0][_BLOCKS] if rows else None


def score_with_room(need: Need, offer: Offer, now: float) -> Score | None:
    """Its figures there if its budgets and its streams were no matter; None: it could never be placed there."""
    rows = _fitting(need, (replace(offer, empty=True),), now)
    return _public(need, rows[0], now) if rows else None


def prefill_steps(offer: Offer, new: int, cached: int) -> tuple[int, float]:
    """Engine steps for `new` prompt tokens behind `cached` ones, and their seconds if nothing else is prefilled.

    Chunked prefill: each step also decodes for everybody and reads the weights; attention grows with the square.
    """
    steps = -(-new // offer.chunk_tokens)
    compute_s, weights_s = offer.token_s * new, steps * offer.weights_s
    return steps, steps * offer.chunk_s + max(compute_s, weights_s) + offer.attention_s * new * (cached + new / 2)


def holder(need: Need, block_size: int) -> Holder:
    """The request as one more term of a replica's KV forecast."""
    request = need.request
    tokens = request.prompt_tokens + request.sequences * block_size // 2
    survival = () if need.lengths is None else need.lengths.survival(0, need.output_bound)
    return Holder(tokens, request.sequences, survival, need.output_bound)


def fits_cache(need: Need, offer: Offer, blocks: int) -> bool:
    """Reserving at the high quantile fits, or else the forecast of the sum says that it does."""
    if blocks <= offer.free_blocks and offer.free_blocks > 0:
        return True
    free = offer.free_tokens() if need.lengths is not None else None
    if free is None or need.request.prompt_tokens > free[0]:
        return False
    return fits(free, holder(need, offer.block_size))


def _fitting(need: Need, offers: Iterable[Offer], now: float) -> list[Row]:
    """Filter and score, in one flat loop with few calls: it runs for every replica and every decision.

    An empty replica takes whatever it could hold at all, so that a request wider than a budget still goes somewhere.
    """
    request, ticket = need.request, need.ticket
    prompt, sequences = request.prompt_tokens, request.sequences
    shortest = prompt + need.min_output_tokens
    constrained = request.cost_tiers is not None or bool(request.avoid)
    cached_tokens, decode_tokens = need.cached_tokens, need.expected_tokens
    last = max(prompt - 1, 0)
    patient = request.service_tier is _BATCH
    rows: list[Row] = []
    cached = blocks = block_size = max_model_len = 0
    for o in offers:
        protected_for = o.protected_for
        if (
            not o.open
            or shortest > o.longest_tokens
            or (protected_for is not None and protected_for != ticket)
            or (constrained and not could_ever_hold(request, o, min_output_tokens=need.min_output_tokens))
        ):
            continue
        if cached_tokens:  # as `cached_on`
            hit = cached_tokens.get(o.replica)
            cached = min(int(hit * o.prefix_trust_ratio), last) if hit else 0
        new = prompt - cached
        if o.block_size != block_size or o.max_model_len != max_model_len:  # seldom: replicas of a model are alike
            block_size, max_model_len, blocks = o.block_size, o.max_model_len, blocks_needed(need, o)
        if not (empty := o.empty) and (
            sequences > o.free_sequences
            or new > o.free_prefill_tokens
            or (patient and not o.has_to_spare(new))
            or ((blocks > o.free_blocks or o.free_blocks <= 0) and not fits_cache(need, o, blocks))
        ):
            continue
        # As `prefill_steps`, whose terms the price shares.
        steps = -(-new // o.chunk_tokens)
        compute_s, attention_s = o.token_s * new, o.attention_s * new * (cached + new / 2)
        own_s = steps * o.weights_s
        own_s = steps * o.chunk_s + (compute_s if compute_s >= own_s else own_s) + attention_s
        ahead_s, rest_s = o.prefill_end_s - now, o.prefill_rest_s
        if rest_s > ahead_s:
            ahead_s = rest_s
        if not empty:  # as `Offer.bears`: streams that cannot bear so much prefill turn it away
            due_s, coming_s = o.due_s, o.coming_due_s
            if now <= coming_s < due_s:
                due_s = coming_s
            if due_s != _NEVER:
                beyond_s = own_s - steps * o.pace_s
                wanted_s = now + o.held_up_ratio * ahead_s + (beyond_s if beyond_s > 0.0 else 0.0)
                if protected_for is not None:
                    wanted_s -= LENT_TO_HEAD_TOKENS * (o.pace_s - o.decode_s)
                if wanted_s > due_s:
                    o.want(wanted_s)
                    continue
        kv_s, wait_s = o.kv_token_s * prompt, o.step_wait_s
        ttft_s, tpot_s = own_s + (ahead_s if ahead_s >= wait_s else wait_s), o.decode_s + kv_s
        if o.window is not None and not o.window.admits(now, ttft_s, own_s, tpot_s, reserved_output(need, o)):
            continue
        # The share of the machine: all of it while prefilling, one of `batch` while decoding. Without the learned factors: they
        # tell this moment's load from the next, and a price that moves with them herds everybody onto one replica.
        machine_s = (compute_s + attention_s) * o.price_factor
        machine_s += decode_tokens * sequences * (o.price_decode_s + kv_s) / o.batch
        usd = o.usd_per_s * machine_s
        if o.cost_tier is _SPOT:  # a reclaim costs the work again
            usd *= 1 + SPOT_HAZARD_PER_S * (ttft_s + decode_tokens * tpot_s)
        rows.append((usd, machine_s, ttft_s, tpot_s, cached, blocks, o, own_s))
    return rows


def _near(rows: list[Any], at: int, ratio: float) -> list[Row]:
    """Those whose figure is about the least."""
    if len(rows) == 1:
        return rows
    least = rows[0][at]
    for row in rows:
        if row[at] < least:
            least = row[at]
    limit, near = least * ratio, []
    for row in rows:
        if row[at] <= limit:
            near.append(row)  # noqa: PERF401 - a comprehension is one more call
    return near


def _cheapest(need: Need, rows: list[Row]) -> tuple[Row, str]:
    # Equal in money - reserved or unpriced machines all are - is told apart by how much of a machine it uses.
    near = _near(_near(rows, _USD, PRICE_RATIO), _MACHINE, PRICE_RATIO)
    best = _earliest(near)
    for row in near:
        if row[_CACHED] >= best[_CACHED] and row[_OFFER] is not best[_OFFER]:
            return best, "kv_headroom"
    return best, "prefix_hit" if best[_CACHED] and _prefix_decided(need, best, rows) else "cost"


def _runner_up(rows: list[Row], best: Row) -> Row | None:
    """The cheapest of the others."""
    second: Row | None = None
    for row in rows:
        if row[_OFFER] is not best[_OFFER] and (
            second is None
            or row[_USD] < second[_USD]
            or (row[_USD] == second[_USD] and row[_MACHINE] < second[_MACHINE])
        ):
            second = row
    return second


def without_prefix(need: Need, row: Row) -> tuple[float, float]:
    """(dollars, seconds of the machine) that it would be if nothing were cached there; a trifle more, for rounding."""
    offer, cached = row[_OFFER], row[_CACHED]
    prompt = need.request.prompt_tokens
    new = prompt - cached
    saved_s = offer.token_s * cached + offer.attention_s * (prompt**2 / 2 - new * (cached + new / 2))
    without_s = row[_MACHINE] + offer.price_factor * saved_s
    return row[_USD] * without_s / row[_MACHINE] * _ROUNDING, without_s * _ROUNDING


def _prefix_decided(need: Need, best: Row, rows: list[Row]) -> bool:
    # Had this replica held none of it, would one that holds less have been as good?
    if len(rows) == 1:
        return True
    usd, machine_s = without_prefix(need, best)
    for row in rows:
        if row[_CACHED] < best[_CACHED] and (row[_USD] < usd or (row[_USD] == usd and row[_MACHINE] <= machine_s)):
            return True
    return False


def _earliest(rows: list[Row]) -> Row:
    near = _near(rows, _TTFT, EQUAL_RATIO)
    if len(near) == 1:
        return near[0]
    # Ids break ties, so that the same events always give the same placements.
    return min(near, key=lambda row: (-row[_OFFER].headroom_ratio, row[_OFFER].replica))


def _public(need: Need, row: Row, now: float) -> Score:
    usd, machine_s, ttft_s, tpot_s, cached, blocks, offer, prefill_s = row
    free = offer.free_blocks
    headroom = None if free >= UNBOUNDED else max(0, free - blocks)
    meets = now + ttft_s <= need.first_token_due_s and tpot_s <= need.tpot_objective_s
    return Score(offer.replica, ttft_s, tpot_s, usd, cached, headroom, meets, machine_s, prefill_s)
