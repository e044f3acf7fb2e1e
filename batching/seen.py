"""What people and the shell see of a live replica: a copy of its figures. Decides nothing."""

from batching.live_replica import LiveReplica
from batching.replica import ReplicaState


def state_of(live: LiveReplica, now: float, stale_after_s: float, *, briefly: bool = False) -> ReplicaState:
    """`briefly`: without what predictions have been worth, which takes most of the time."""
    ledger, profile = live.ledger, live.profile
    overrun = 0 if profile.kv_blocks is None else max(0, -live.offer.free_blocks)
    return ReplicaState(
        profile=profile,
        lifecycle=live.lifecycle,
        running=ledger.sequences,
        max_num_seqs=live.max_num_seqs,
        prefill_tokens=ledger.prefill_tokens,
        held_blocks=ledger.held_blocks,
        reserved_blocks=ledger.reserved_blocks,
        foreign_blocks=live.foreign_blocks,
        share=live.share,
        load=live.load,
        load_age_s=None if live.load is None else max(0.0, now - live.load.observed_s),
        ledger_only=live.ledger_only(now, stale_after_s),
        audit={} if briefly else live.audit.errors(),
        extras={}
        if briefly
        else {
            "overrun_blocks": overrun,  # into the watermark, by growth that was not forecast
            "ttft_factor": live.speed.ttft_factor,
            "tpot_factor": live.speed.tpot_factor,
            "prefix_trust_ratio": live.speed.prefix_trust_ratio,
            "kv_margin": live.kv_risk.margin,
        },
    )
