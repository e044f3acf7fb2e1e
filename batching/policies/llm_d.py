"""llm-d's endpoint picker: a weighted sum of scores takes the replica, and a pool that is saturated takes nobody."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from batching.policies.base import Counting, any_least
from batching.policies.held_chunks import HeldChunks, leading_chunks
from batching.policies.policy import Candidate
from batching.request import ReplicaId, Request, RequestId

SCRAPE_INTERVAL_S: Final = 0.05
STALE_S: Final = 0.2

PREFIX_WEIGHT: Final = 3.0
QUEUE_WEIGHT: Final = 2.0
KV_WEIGHT: Final = 2.0
NO_HIT_LRU_WEIGHT: Final = 2.0
_NEUTRAL: Final = 0.5  # what the no-hit-LRU scorer gives everybody if somebody has a hit

QUEUE_THRESHOLD: Final = 5  # requests waiting
KV_THRESHOLD: Final = 0.8  # of the KV cache

BLOCK_TOKENS: Final = 64  # its floor for the index, whatever the engine's blocks are
MAX_PREFIX_TOKENS: Final = 131_072
LRU_BLOCKS: Final = 31_250  # of a server that does not tell its size
_MAX_COLD_REPLICAS: Final = 1024


class LlmD(Counting):
    """Holds while the pool is saturated, else the highest `3 prefix + 2 queue + 2 kv + 2 no-hit-LRU`; any of the equals.

    Source: llm-d/llm-d-router (ebab6879, 2026-08-21), pkg/epp: the legacy default blend with its max-score picker, and the
    utilization detector under flow control. The engines' metrics are scraped every 50 ms.

    Scores, each clamped to 0..1: prefix = matched blocks / blocks of the prompt; queue = (max - q) / (max - min) of requests
    waiting, 1 if all are equal; kv = 1 - usage; no-hit-LRU = 0.5 for all if anybody matches, else 1 for a replica that
    never got such a cold request down to 0 for the one that got the last.

    Saturation: the mean over the pool of max(waiting / 5, kv usage / 0.8), where a report that is missing or older than
    200 ms counts 1.0 and is not asked; requests go out while it is below 1. Nothing sent between two scrapes is seen.

    The index: per server an LRU of as many 64-token blocks as its engine tells KV blocks (autotune), 31,250 if it tells none.
    First come first served is the scheduler's order here; the bounds of the band (5000 requests, 60 s) are `queue`'s.
    """

    scrape_interval_s: float | None = SCRAPE_INTERVAL_S

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = Random(seed)
        self._index = HeldChunks()
        self._cold: OrderedDict[ReplicaId, None] = OrderedDict()  # last cold request longest ago first
        self._cold_request: RequestId | None = None
        self._lru_blocks: dict[ReplicaId, int] = {}

    def choose(self, request: Request, candidates: Sequence[Candidate], now: float) -> ReplicaId | None:
        if saturation(candidates, now) >= 1.0:
            return None
        hits = self.prefix_scores(request)
        kept = self.keep(candidates, hits)
        scores = self._blend(kept, hits)
        self._cold_request = None if any(c.id in hits for c in kept) else request.id
        chosen = any_least(kept, [-score for score in scores], self._random)
        self._lru_blocks[chosen.id] = chosen.profile.kv_blocks or LRU_BLOCKS
        return chosen.id

    def placed(self, request: Request, replica: ReplicaId, now: float) -> None:
        super().placed(request, replica, now)
        if request.id == self._cold_request:
            self._cold[replica] = None
            self._cold.move_to_end(replica)
            if len(self._cold) > _MAX_COLD_REPLICAS:
                self._cold.popitem(last=False)
        if request.prefix_hashes:
            # From the front, as the original: the beginning is the oldest and is lost first.
            lru_tokens = self._lru_blocks.get(replica, LRU_BLOCKS) * BLOCK_TOKENS
            chunks = leading_chunks(request.prefix_hashes)
            self._index.record(replica, chunks, max_chunks=lru_tokens // max(request.prefix_chunk_tokens, 1))

    def forget(self, replica: ReplicaId) -> None:
        super().forget(replica)
        self._index.forget(replica)
        self._lru_blocks.pop(replica, None)
        self._cold.pop(replica, None)

    def keep(self, candidates: Sequence[Candidate], hits: Mapping[ReplicaId, float]) -> Sequence[Candidate]:  # noqa: ARG002
        """Before scoring: whom to score at all."""
        return candidates

    def prefix_scores(self, request: Request) -> dict[ReplicaId, float]:
        """Matched blocks / blocks of the prompt; absent: nothing matched."""
        total = min(request.prompt_tokens, MAX_PREFIX_TOKENS) // BLOCK_TOKENS
        matched = self._index.counts(leading_chunks(request.prefix_hashes)) if total else {}
        blocks = {replica: chunks * request.prefix_chunk_tokens // BLOCK_TOKENS for replica, chunks in matched.items()}
        return {replica: min(1.0, count / total) for replica, count in blocks.items() if count}

    def _blend(self, candidates: Sequence[Candidate], hits: Mapping[ReplicaId, float]) -> list[float]:
        waiting = [_waiting(c) for c in candidates]
        longest, shortest = max(waiting), min(waiting)
        spread = longest - shortest
        no_hit = self._no_hit_lru(candidates, hits)
        return [
            PREFIX_WEIGHT * hits.get(c.id, 0.0)
            + QUEUE_WEIGHT * ((longest - queue) / spread if spread else 1.0)
            + KV_WEIGHT * min(max(1.0 - _kv(c), 0.0), 1.0)
            + NO_HIT_LRU_WEIGHT * cold
            for c, queue, cold in zip(candidates, waiting, no_hit, strict=True)
        ]

    def _no_hit_lru(self, candidates: Sequence[Candidate], hits: Mapping[ReplicaId, float]) -> list[float]:
        if any(c.id in hits for c in candidates):
            return [_NEUTRAL] * len(candidates)
        if len(candidates) == 1:
            return [1.0]
        used = {replica: position for position, replica in enumerate(self._cold)}
        never = [c.id for c in candidates if c.id not in used]
        rank = {replica: position for position, replica in enumerate(never)}
        last = len(candidates) - 1
        return [max(0.0, 1 - rank.get(c.id, len(never) + used.get(c.id, 0)) / last) for c in candidates]


def saturation(candidates: Sequence[Candidate], now: float) -> float:
    """Of the pool; 1.0 and more is full."""
    return sum(_endpoint_saturation(c, now) for c in candidates) / len(candidates)


def _endpoint_saturation(candidate: Candidate, now: float) -> float:
    load = candidate.load
    if load is None or now - load.observed_s > STALE_S:
        return 1.0
    return max(_waiting(candidate) / QUEUE_THRESHOLD, _kv(candidate) / KV_THRESHOLD)


def _waiting(candidate: Candidate) -> int:
    """Zero where nothing was said, as the original's metrics begin."""
    return (candidate.load.waiting or 0) if candidate.load else 0


def _kv(candidate: Candidate) -> float:
    return (candidate.load.kv_usage_ratio or 0.0) if candidate.load else 0.0
