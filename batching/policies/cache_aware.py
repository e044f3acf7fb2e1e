"""SMG's `cache_aware`: to who holds the prompt's beginning, unless that replica is far busier than the mean."""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Final

from batching.policies.base import Counting, any_least
from batching.policies.held_chunks import HeldChunks, leading_chunks
from batching.policies.policy import Candidate
from batching.request import ReplicaId, Request, RequestId

CACHE_THRESHOLD: Final = 0.3  # of the prompt
SPILL_RATIO: Final = 1.5  # times the mean load
SPILL_REQUESTS: Final = 64  # beyond the mean load
MAX_TREE_CHARS: Final = 67_108_864
CHARS_PER_TOKEN: Final = 4  # the tree of the HTTP path counts characters; ours counts chunks of tokens


class CacheAware(Counting):
    """More than 0.3 of the prompt matched: the least loaded of those that hold it, else the least loaded. Never holds.

    Source: SMG (smg-project/smg f8daa883, 2026-08-22), model_gateway/src/policies/cache_aware.rs, the approximate tree of
    its HTTP path, with the defaults of its command line: cache_threshold 0.3, balance_rel_threshold 1.5,
    balance_abs_threshold 64, max_tree_size 67,108,864 characters. Load is the gateway's own count of requests in flight:
    the KV thresholds are off by default, and then it polls nobody.

    The gate: a holder with `load > 1.5 * mean` and `load > mean + 64` loses the request to the least loaded, which becomes
    a holder too. Equally loaded holders: any. Least loaded: by (load, requests ever sent there, id).
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = Random(seed)
        self._tree = HeldChunks(shared=True)
        self._sent: Counter[ReplicaId] = Counter()
        self._unrecorded: RequestId | None = None

    def choose(self, request: Request, candidates: Sequence[Candidate], now: float) -> ReplicaId | None:  # noqa: ARG002
        self._unrecorded = None
        depth, holders = self._tree.deepest(leading_chunks(request.prefix_hashes))
        if depth * request.prefix_chunk_tokens <= CACHE_THRESHOLD * request.prompt_tokens:
            return self._least_loaded(candidates)
        holding = set(holders)
        matched = [c for c in candidates if c.id in holding]
        if not matched:
            # Its holders cannot take it now. The original then takes its first worker and leaves the tree as it is.
            self._unrecorded = request.id
            return min(c.id for c in candidates)
        chosen = any_least(matched, [self.in_flight[c.id] for c in matched], self._random).id
        load, mean = self.in_flight[chosen], sum(self.in_flight[c.id] for c in candidates) / len(candidates)
        if load > SPILL_RATIO * mean and load > mean + SPILL_REQUESTS:
            return self._least_loaded(candidates)
        return chosen

    def placed(self, request: Request, replica: ReplicaId, now: float) -> None:
        super().placed(request, replica, now)
        if request.id == self._unrecorded:
            return
        self._sent[replica] += 1
        if request.prefix_hashes:
            # Deepest first: the tree loses leaves before what they hang on.
            chunks = leading_chunks(request.prefix_hashes)[::-1]
            chunk_chars = max(request.prefix_chunk_tokens, 1) * CHARS_PER_TOKEN
            self._tree.record(replica, chunks, max_chunks=MAX_TREE_CHARS // chunk_chars)

    def forget(self, replica: ReplicaId) -> None:
        super().forget(replica)
        self._tree.forget(replica)
        self._sent.pop(replica, None)

    def _least_loaded(self, candidates: Sequence[Candidate]) -> ReplicaId:
        return min(candidates, key=lambda c: (self.in_flight[c.id], self._sent[c.id], c.id)).id
