"""When one replica will have room for a request that fits nowhere now, if nothing else is placed there.

A guess by forecasts, only used to compare replicas. Changes nothing.
"""

from math import inf

from batching.ledger import Ledger
from batching.offer import Offer
from batching.outlook import seconds_until_borne
from batching.placement import Need, blocks_if_fits, blocks_needed, could_ever_hold


def seconds_until_fit(need: Need, offer: Offer, ledger: Ledger, now: float) -> float | None:
    """From now; leases are taken to end as forecast. None: never."""
    if not offer.open or not could_ever_hold(need.request, offer, min_output_tokens=need.min_output_tokens):
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
