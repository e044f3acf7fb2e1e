"""What a replica may still owe: how long its next step may take, which first tokens are long overdue, when an answer will end (pure).

Both go by what was predicted, wider the less such predictions of that replica have been right lately.
"""

from typing import Final

from batching.audit import at_worst
from batching.ledger import LeaseRecord
from batching.live_replica import LiveReplica

_UNKNOWN_ERROR: Final = 0.9  # of predictions nobody has judged yet: they may be off by a factor of ten
_OVERDUE_RATIO: Final = 5.0  # times what was predicted at worst; hedging asks a second replica at three
_OVERDUE_FLOOR_S: Final = 2.0


def next_step_s(live: LiveReplica) -> float:
    """At worst, with one chunk of the prompts that wait there."""
    offer, tally, ttft = live.offer, live.audit.tpot, live.audit.ttft
    step_s = at_worst(offer.decode_s, tally.error if tally.known else _UNKNOWN_ERROR)
    ahead_s = min(live.ledger.prefill_s, offer.chunk_s + offer.token_s * offer.chunk_tokens)
    return step_s + at_worst(ahead_s, ttft.error if ttft.known else _UNKNOWN_ERROR)


def predictions_known(live: LiveReplica) -> bool:
    """Whether its steps have been predicted and judged often enough to go by."""
    return live.audit.tpot.known


def patience_s(live: LiveReplica, expected_s: float) -> float:
    """How long a first token may take that was expected after `expected_s`."""
    tally = live.audit.ttft
    return max(_OVERDUE_FLOOR_S, _OVERDUE_RATIO * at_worst(expected_s, tally.error if tally.known else _UNKNOWN_ERROR))


def overdue(live: LiveReplica, now: float) -> int:
    """Requests whose first token, or whole document, should have come long ago. O(leases)."""
    count = 0
    for record in live.ledger.leases.values():
        if record.first_token_s is None:
            expected_s = record.ttft_s
            if not record.lease.request.streaming:  # it shows nothing before its end
                expected_s += record.tpot_s * max(0, record.output_bound - 1)
            count += now - record.placed_s > patience_s(live, expected_s)
    return count


def end_s(record: LeaseRecord, now: float) -> float:
    """When an answer will be whole, by the output length that is reserved for it."""
    emitted = record.emitted_per_sequence
    # One that has outlived its forecast is taken to go on for half as long again.
    left = min(max(record.forecast_tokens - emitted, emitted // 2), record.output_bound - emitted)
    prefill_s = max(0.0, record.placed_s + record.ttft_s - now) if record.first_token_s is None else 0.0
    return now + prefill_s + left * record.tpot_s
