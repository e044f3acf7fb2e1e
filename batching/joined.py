"""The running batch that a placement has joined, as the gateway knows it; for metrics. Decides nothing."""

from typing import NamedTuple, Self

from batching.live_replica import LiveReplica


class Joined(NamedTuple):
    """Of one replica, all gateways' parts together."""

    sequences: int
    most: int  # max_num_seqs: declared, asked or learned
    step_tokens: int  # that its next step computes: prefill that was admitted, and a token for each sequence

    @classmethod
    def of(cls, live: LiveReplica) -> Self:
        sequences = live.ledger.sequences + live.share.others.sequences
        tokens = min(live.offer.chunk_tokens, live.ledger.prefill_tokens) + sequences
        return cls(sequences, live.max_num_seqs, tokens)
