"""Whether a request waits for the replica that holds its beginning, although another one has room.

A prompt of which most is cached on a replica that is busy with another prompt is often sooner answered there, and always at less
work: to compute its beginning again elsewhere takes time from others, and cache from what others hold. Decides for one request at a
time, from figures alone; the queue keeps who is held, and until when.

Where several gateways share the replica, it may have room that is only not this gateway's: then it is a share that is waited for.
"""

from typing import Final

from batching.fleet import Fleet
from batching.live_replica import LiveReplica
from batching.placement import (
    PRICE_RATIO,
    TPOT_RATIO,
    Need,
    Placement,
    Score,
    blocks_needed,
    fits_cache,
    score_with_room,
)
from batching.request import ReplicaId

_MOST_HOLDERS: Final = 4  # of the same beginning that are looked at: with more of them one will usually have room
_PATIENCE_RATIO: Final = 1.25  # of the expected wait: a guess that is wrong by more is given up
_LEAST_PATIENCE_S: Final = 0.1
_SHARE_S: Final = 0.06  # until more of a replica is given that others do not use: a report (50 ms apart while somebody waits), and its way


def worth_holding(need: Need, placement: Placement, fleet: Fleet, now: float) -> tuple[ReplicaId, float] | None:
    """(the replica to wait for, until when), or None: `placement` is as good. O(replicas that hold any of it)."""
    held, score = need.cached_tokens, placement.score
    most = max(held.values(), default=0)
    if min(most, need.request.prompt_tokens - 1) <= score.cached_tokens:
        return None
    # The last moment at which what there is now, if it is still there then, would be in time.
    last_s = need.first_token_due_s - need.slack_s - score.ttft_s
    holders = [replica for replica, tokens in held.items() if tokens == most and replica in fleet][:_MOST_HOLDERS]
    waits = [
        (wait_s, replica)
        for replica in holders
        if (wait_s := _worthwhile_wait_s(need, score, fleet[replica], now)) is not None and now + wait_s <= last_s
    ]
    if not waits:
        return None
    wait_s, replica = min(waits)
    return replica, min(last_s, now + max(_PATIENCE_RATIO * wait_s, wait_s + _LEAST_PATIENCE_S))


def _worthwhile_wait_s(need: Need, score: Score, live: LiveReplica, now: float) -> float | None:
    """Seconds until the holder's turn comes; None: it lacks more than time, or waiting for it does not pay.

    A second of somebody's wait is worth a second of a machine that others could use meanwhile.
    """
    there = _with_room(need, live, now)
    if there is None or there.cached_tokens <= score.cached_tokens:
        return None
    if there.usd > score.usd * PRICE_RATIO or there.tpot_s > need.tpot_objective_s * TPOT_RATIO:
        return None
    wait_s = live.seconds_until_turn(need, now)
    if not _fits(need, live):
        wait_s = max(wait_s, _SHARE_S)
    first_s, saved_s = max(wait_s + there.prefill_s, there.ttft_s), score.machine_s - there.machine_s
    return wait_s if wait_s > 0 and first_s <= score.ttft_s + saved_s else None


def _with_room(need: Need, live: LiveReplica, now: float) -> Score | None:
    """Its figures there when its turn has come; None where that is for others to say: answers that end, a head that it is kept for."""
    offer = live.offer
    if offer.window is not None and offer.window.closes:
        return None
    if offer.protected_for is not None or not (_fits(need, live) or _would_fit(need, live)):
        return None
    return score_with_room(need, offer, now)


def _fits(need: Need, live: LiveReplica) -> bool:
    """Whether it has slots and blocks for it."""
    offer = live.offer
    return need.request.sequences <= offer.free_sequences and fits_cache(need, offer, blocks_needed(need, offer))


def _would_fit(need: Need, live: LiveReplica) -> bool:
    """Whether it would have them if its share were the whole, by what is known of the others."""
    share, usable = live.share, live.usable_blocks
    if share.whole or live.ledger.sequences + share.others.sequences + need.request.sequences > live.max_num_seqs:
        return False
    used_blocks = live.ledger.reserved_blocks + share.others.blocks
    return usable is None or used_blocks + blocks_needed(need, live.offer) <= usable
