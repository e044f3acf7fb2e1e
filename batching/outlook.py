"""When a busy replica can take one more request, if nothing else is placed there meanwhile.

Guesses from its leases, only used to compare replicas: prompts are prefilled in the order in which they came, streams gain with each
token, answers end as forecast. Decides nothing.
"""

from collections.abc import Iterable
from math import inf
from typing import NamedTuple, Self

from batching.blocks import UNBOUNDED
from batching.ledger import LeaseRecord, Ledger
from batching.offer import Offer
from batching.placement import (
    Need,
    blocks_if_fits,
    blocks_needed,
    cached_on,
    could_ever_hold,
    prefill_steps,
    score_with_room,
)
from batching.shares import Share


class PrefillLimit(NamedTuple):
    """Prompt tokens that one replica may have ahead of it; a prompt longer than the budget has to go somewhere, too."""

    budget: int = UNBOUNDED
    open_up_to: float = inf  # so many ahead, and a prompt of any length may come behind them

    @classmethod
    def of_engine(cls, step_tokens: int | None, steps: float | None) -> Self:
        """So many steps of an engine; either None: no limit."""
        if step_tokens is None or steps is None:
            return cls()
        # A prompt longer than the budget goes behind at most what is short of its last step: it has to go somewhere.
        return cls(int(steps * step_tokens), max(0.0, steps - 1) * step_tokens)

    def free(self, ahead: int) -> int:
        """Tokens that may come behind those."""
        return UNBOUNDED if ahead <= self.open_up_to else self.budget - ahead

    def part(self, share: Share) -> "PrefillLimit":
        """The part of it that is ours."""
        if share.whole or self.budget == UNBOUNDED:
            return self
        return PrefillLimit(share.of(self.budget), share.of(int(self.open_up_to)))


def seconds_until_prefilled(
    need: Need, offer: Offer, leases: Iterable[LeaseRecord], limit: PrefillLimit, now: float
) -> float:
    """Until so many of the prompts ahead have their first token that this one may come behind the rest. O(leases)."""
    new, ahead = need.request.prompt_tokens - cached_on(need, offer), offer.prefill_tokens
    if limit.free(ahead) >= new:
        return 0.0
    coming = [record for record in leases if record.prefill_tokens]
    end_s = offer.ahead_s(now) - sum(record.prefill_s for record in coming)
    for record in coming:
        end_s += record.prefill_s
        ahead -= record.prefill_tokens
        if limit.free(ahead) >= new:
            break
    return max(0.0, end_s)


def seconds_until_borne(need: Need, offer: Offer, now: float) -> float:
    """Until its streams have gained enough to bear the prompt, if they are left alone until then."""
    cached = cached_on(need, offer)
    steps, own_s = prefill_steps(offer, need.request.prompt_tokens - cached, cached)
    short_s = offer.held_up_until(now, own_s, steps) - offer.binding_s(now)
    if short_s <= 0:
        return 0.0
    gain_s = offer.pace_s - offer.decode_s
    return short_s * offer.decode_s / gain_s if gain_s > 0 else inf


def worth_waiting_for(need: Need, offer: Offer, now: float) -> bool:
    """Whether room there would be room for it: not where its window closes meanwhile, or is too short for it."""
    window = offer.window
    return window is None or (not window.closes and score_with_room(need, offer, now) is not None)


def seconds_until_fit(need: Need, offer: Offer, ledger: Ledger, now: float) -> float | None:
    """From now; leases are taken to end as forecast. None: never."""
    if not offer.open or not could_ever_hold(need.request, offer, min_output_tokens=need.min_output_tokens):
        return None
    if not worth_waiting_for(need, offer, now):
        return None
    if blocks_if_fits(need, offer, now) is not None:
        return 0.0
    earned_s = seconds_until_borne(need, offer, now)
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
        for r in ledger.leases.values()
    )
    for end_s, _, freed, ended, prefilled in ends:
        blocks, sequences, prefill = blocks - freed, sequences - ended, prefill - prefilled
        if blocks <= 0 and sequences <= 0 and prefill <= 0:
            return max(end_s, earned_s)
    return ends[-1][0] if ends else inf  # empty takes whatever it could ever hold
