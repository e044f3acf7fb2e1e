"""`placement.place` for many replicas at once: the same filter, formulas and choice, a column at a time.

The same to the last bit: each operation is that of the loop, in its order; a property test compares them. What cannot be a
column - the forecast of a tight KV cache, the note of who would wait for a replica's streams - is done for the rows that come to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from batching.blocks import blocks_for
from batching.columns import Column, Columns, Mask, Numbers, Rows
from batching.offer import SPARED_RATIO, Offer
from batching.placement import (
    EASE_RATIO,
    EQUAL_RATIO,
    LENT_TO_HEAD_TOKENS,
    PRICE_RATIO,
    SPOT_HAZARD_PER_S,
    TPOT_RATIO,
    Need,
    Placement,
    Row,
    explained,
    fits_cache,
    reserved_output,
    without_prefix,
)
from batching.request import ServiceTier

# Offers from which on columns are cheaper than the loop: the calls of numpy cost as much as scoring so many replicas.
MANY: Final = 120


@dataclass(slots=True)
class _Scored:
    """A column for each figure of a row, also for replicas that have no room."""

    usd: Column
    machine_s: Column
    ttft_s: Column
    tpot_s: Column
    cached: Column
    blocks: Column | int
    prefill_s: Column
    until_s: Column

    def row(self, at: int, offers: Sequence[Offer]) -> Row:
        return (
            float(self.usd[at]),
            float(self.machine_s[at]),
            float(self.ttft_s[at]),
            float(self.tpot_s[at]),
            int(self.cached[at]),
            self.blocks if isinstance(self.blocks, int) else int(self.blocks[at]),
            offers[at],
            float(self.prefill_s[at]),
        )


def place_among(
    need: Need, columns: Columns, tested: Mask, now: float, *, hold: bool = False, by_cost: bool = True
) -> Placement | None:
    """What `place` answers for the offers of the rows in `tested`."""
    cached, blocks = _cached(need, columns), _blocks(need, columns)
    fitting = tested & columns.open
    _drop_unfit(need, columns, fitting)
    fitting &= _within_budgets(need, columns, cached)
    _drop_full(need, columns, fitting, blocks)
    scored = _scored(need, columns, cached, blocks, now)
    _drop_held_up(columns, fitting, scored, now)
    _drop_unending(need, columns, fitting, scored, now)
    considered = int(np.count_nonzero(fitting))
    if not considered:
        return None
    choice = _choose(need, scored, columns, fitting, now, hold=hold, by_cost=by_cost)
    if choice is None:
        return None
    best, runner_up, reason = choice
    shown = [scored.row(row, columns.offers) for row in (best, runner_up) if row is not None]
    return explained(need, shown, reason, considered, now)


# -- filter --------------------------------------------------------------------------------------------------------------


def _cached(need: Need, columns: Columns) -> Column:
    """`placement.cached_on`."""
    if not need.cached_tokens:
        return columns.zeros
    hits = columns.spread(need.cached_tokens)
    return np.minimum(np.floor(hits * columns.numbers.prefix_trust_ratio), max(need.request.prompt_tokens - 1, 0))


def _blocks(need: Need, columns: Columns) -> Column | int:
    """`placement.blocks_needed`; one figure where all replicas are alike."""
    prompt, sequences = need.request.prompt_tokens, need.request.sequences
    if columns.shape is not None:
        size, context = columns.shape
        return blocks_for(prompt, min(need.forecast_tokens, context - prompt), sequences, size)
    sizes = columns.numbers.block_size
    output = np.minimum(need.forecast_tokens, columns.numbers.max_model_len - prompt)
    shared = np.floor(prompt / sizes)
    blocks: Column = shared + sequences * np.ceil((prompt - shared * sizes + output) / sizes)
    return blocks


def _drop_unfit(need: Need, columns: Columns, fitting: Mask) -> None:
    """Those that may not take it whatever room they have: `placement.could_ever_hold`, or they are kept for another."""
    request, numbers = need.request, columns.numbers
    fitting &= request.prompt_tokens + need.min_output_tokens <= numbers.longest_tokens
    if columns.any_protected:
        protected = numbers.protected_for
        fitting &= np.isnan(protected) | (protected == need.ticket)
    if request.cost_tiers is not None:
        fitting &= columns.of_tiers(request.cost_tiers)
    if request.avoid:
        fitting &= columns.none_of(request.avoid)


def _within_budgets(need: Need, columns: Columns, cached: Column) -> Mask:
    """Sequences and prefill; an empty replica takes whatever it could hold at all."""
    request, numbers, new = need.request, columns.numbers, need.request.prompt_tokens - cached
    mask: Mask = (request.sequences <= numbers.free_sequences) & (new <= numbers.free_prefill_tokens)
    if request.service_tier is ServiceTier.BATCH:  # `Offer.has_to_spare`
        mask &= (numbers.headroom_ratio >= SPARED_RATIO) & (numbers.free_sequences > numbers.spared_sequences)
        mask &= numbers.prefill_tokens + new <= np.maximum(numbers.chunk_tokens, new)
    mask |= ~columns.busy
    return mask


def _drop_full(need: Need, columns: Columns, fitting: Mask, blocks: Column | int) -> None:
    """Those whose cache would not hold it, by reservations or by forecast."""
    free = columns.numbers.free_blocks
    tight = free < (max(blocks, 1) if isinstance(blocks, int) else np.maximum(blocks, 1))
    if tight.any():
        for row in (tight & fitting & columns.busy).nonzero()[0].tolist():
            needed = blocks if isinstance(blocks, int) else int(blocks[row])
            fitting[row] = fits_cache(need, columns.offers[row], needed)


def _drop_held_up(columns: Columns, fitting: Mask, scored: _Scored, now: float) -> None:
    """Those whose streams cannot bear so much prefill: `Offer.bears`, which also notes what they would have to bear."""
    o, wanted_s = columns.numbers, scored.until_s
    if columns.any_protected:
        wanted_s = wanted_s - np.where(np.isnan(o.protected_for), 0.0, LENT_TO_HEAD_TOKENS * (o.pace_s - o.decode_s))
    late = wanted_s > np.where(now > o.coming_due_s, o.due_s, np.minimum(o.due_s, o.coming_due_s))
    if late.any():
        late &= fitting & columns.busy
        for row in late.nonzero()[0].tolist():
            columns.offers[row].want(float(wanted_s[row]))
        fitting &= ~late


def _drop_unending(need: Need, columns: Columns, fitting: Mask, scored: _Scored, now: float) -> None:
    """Those that will be gone before it ends; few are, so they are looked at one by one."""
    for row in columns.windowed:
        offer = columns.offers[row]
        assert offer.window is not None
        ttft_s, prefill_s, tpot_s = (float(part[row]) for part in (scored.ttft_s, scored.prefill_s, scored.tpot_s))
        if not offer.window.admits(now, ttft_s, prefill_s, tpot_s, reserved_output(need, offer)):
            fitting[row] = False


# -- score ---------------------------------------------------------------------------------------------------------------


def _scored(need: Need, columns: Columns, cached: Column, blocks: Column | int, now: float) -> _Scored:
    """The formulas of `placement.prefill_steps`, `Offer.held_up_until` and `placement._fitting`."""
    o, prompt, decode_tokens = columns.numbers, need.request.prompt_tokens, need.expected_tokens
    new = prompt - cached
    steps = np.ceil(new / o.chunk_tokens)
    compute_s, attention_s = o.token_s * new, o.attention_s * new * (cached + new / 2)
    own_s = steps * o.chunk_s + np.maximum(compute_s, steps * o.weights_s) + attention_s
    ahead_s = np.maximum(o.prefill_end_s - now, o.prefill_rest_s)
    until_s = now + o.held_up_ratio * ahead_s + np.maximum(0.0, own_s - steps * o.pace_s)
    ttft_s = own_s + np.maximum(ahead_s, o.step_wait_s)
    kv_s = o.kv_token_s * prompt
    tpot_s = o.decode_s + kv_s
    machine_s = (compute_s + attention_s) * o.price_factor
    machine_s += decode_tokens * need.request.sequences * (o.price_decode_s + kv_s) / o.batch
    usd = o.usd_per_s * machine_s
    if (spot := columns.spot).size:
        usd[spot] *= 1 + SPOT_HAZARD_PER_S * (ttft_s[spot] + decode_tokens * tpot_s[spot])
    return _Scored(usd, machine_s, ttft_s, tpot_s, cached, blocks, own_s, until_s)


# -- pick ----------------------------------------------------------------------------------------------------------------


def _choose(
    need: Need, scored: _Scored, columns: Columns, fitting: Mask, now: float, *, hold: bool, by_cost: bool
) -> tuple[int, int | None, str] | None:
    """(the choice, its runner-up, the reason), or None where the request is held."""
    left_s, tpot_s = need.first_token_due_s - now, need.tpot_objective_s * TPOT_RATIO
    meets = fitting & (scored.ttft_s <= left_s - need.slack_s)
    meets &= scored.tpot_s <= tpot_s
    if by_cost:
        with_ease = (meets & (scored.ttft_s <= left_s * EASE_RATIO)).nonzero()[0]
        if with_ease.size:
            best, reason = _cheapest(need, scored, columns, with_ease)
            return best, _runner_up(scored, with_ease, best), reason
    pool = meets.nonzero()[0]
    if not pool.size:
        if hold:
            return None
        pool = fitting.nonzero()[0]
    best = _roomiest(columns.numbers, _near(pool, scored.ttft_s))
    return best, _runner_up(scored, pool, best), "fallback"


def _near(rows: Rows, figures: Column, ratio: float = EQUAL_RATIO) -> Rows:
    """Those of `rows` whose figure is about the least."""
    if rows.size == 1:
        return rows
    own = figures[rows]
    near: Rows = rows[own <= own.min() * ratio]
    return near


def _cheapest(need: Need, scored: _Scored, columns: Columns, pool: Rows) -> tuple[int, str]:
    near = _near(_near(pool, scored.usd, PRICE_RATIO), scored.machine_s, PRICE_RATIO)
    best = _roomiest(columns.numbers, _near(near, scored.ttft_s))
    if not need.cached_tokens:
        return best, "kv_headroom" if near.size > 1 else "cost"
    cached = scored.cached[best]
    if near.size > 1 and np.count_nonzero(scored.cached[near] >= cached) > 1:  # itself and another
        return best, "kv_headroom"
    return best, "prefix_hit" if cached and _prefix_decided(need, scored, columns, best, pool) else "cost"


def _prefix_decided(need: Need, scored: _Scored, columns: Columns, best: int, pool: Rows) -> bool:
    """Had this replica held none of it, would one that holds less have been as good?"""
    if pool.size == 1:
        return True
    less = pool[scored.cached[pool] < scored.cached[best]]
    if not less.size:
        return False
    usd, machine_s = without_prefix(need, scored.row(best, columns.offers))
    asked = scored.usd[less]
    least = asked.min()
    return bool(least < usd or (least == usd and (scored.machine_s[less[asked == usd]] <= machine_s).any()))


def _runner_up(scored: _Scored, pool: Rows, best: int) -> int | None:
    """The cheapest of the others."""
    if pool.size == 1:
        return None
    others = pool[pool != best]
    usd = scored.usd[others]
    equal = others[usd == usd.min()]
    return int(equal[0] if equal.size == 1 else equal[scored.machine_s[equal].argmin()])


def _roomiest(numbers: Numbers, rows: Rows) -> int:
    # Rows are in the order of ids, which break ties.
    return int(rows[0] if rows.size == 1 else rows[numbers.headroom_ratio[rows].argmax()])
