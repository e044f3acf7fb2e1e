"""production-stack's `prefixaware`: to who has seen the longest beginning of the prompt, whatever its load."""

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Final

from batching.policies.base import Counting
from batching.policies.policy import Candidate
from batching.prefix_index import PrefixIndex
from batching.request import ReplicaId, Request

QPS_WINDOW_S: Final = 60.0
# The original's HashTrie never evicts and was seen to fill 16 GB (production-stack#687). This bound is for our memory
# only, about 150 MB: at the gateway's 64 tokens a chunk it remembers 67M tokens of distinct prompts, at the traces' 512 all
# of them.
MAX_CHUNKS: Final = 1_048_576
_MAX_ARRIVALS: Final = 65_536  # of one replica in the window: a thousand a second


class PrefixAware(Counting):
    """Any of those that hold the most leading chunks; with no match that is any of all. Looks at no load, never holds.

    Source: vllm-project/production-stack (a6c01db0, 2026-08-05), routers/routing_logic.py `PrefixAwareRouter` and
    prefix/hashtrie.py. `min_match_tokens` stands for --prefix-min-match-length (default 0, in characters there): a shorter
    match goes to the lowest QPS over the last 60 s (--request-stats-window), first of all to a replica that never had a
    request. By default no match is ever too short, so the QPS is not looked at.
    """

    def __init__(self, seed: int = 0, *, min_match_tokens: int = 0) -> None:
        super().__init__()
        self._random = Random(seed)
        self._min_match_tokens = min_match_tokens
        self._trie = PrefixIndex(MAX_CHUNKS)
        self._arrivals: dict[ReplicaId, deque[float]] = {}

    def choose(self, request: Request, candidates: Sequence[Candidate], now: float) -> ReplicaId | None:
        matched = self._trie.match(request.prefix_hashes)
        deepest = max((matched.get(c.id, 0) for c in candidates), default=0)
        if deepest * request.prefix_chunk_tokens < self._min_match_tokens:
            return self._lowest_qps(candidates, now)
        return self._random.choice([c.id for c in candidates if matched.get(c.id, 0) == deepest])

    def placed(self, request: Request, replica: ReplicaId, now: float) -> None:
        super().placed(request, replica, now)
        self._trie.record(replica, request.prefix_hashes)
        self._arrivals.setdefault(replica, deque(maxlen=_MAX_ARRIVALS)).append(now)

    def forget(self, replica: ReplicaId) -> None:
        super().forget(replica)
        self._trie.forget(replica)
        self._arrivals.pop(replica, None)

    def _lowest_qps(self, candidates: Sequence[Candidate], now: float) -> ReplicaId:
        """The first of the least, by id."""
        return min(candidates, key=lambda c: (self._requests_in_window(c.id, now), c.id)).id

    def _requests_in_window(self, replica: ReplicaId, now: float) -> int:
        arrivals = self._arrivals.get(replica)
        if arrivals is None:
            return -1
        while arrivals and arrivals[0] < now - QPS_WINDOW_S:
            arrivals.popleft()
        return len(arrivals)
