"""llm-d's newer default, "sticky until saturated": only replicas that hold the prompt are scored, until they are far behind."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from batching.policies.llm_d import LlmD
from batching.policies.policy import Candidate
from batching.request import ReplicaId, Request, RequestId

AFFINITY_THRESHOLD: Final = 0.80
MAX_TTFT_PENALTY_S: Final = 18.0
PEAK_PREFILL_TOKENS_PER_S: Final = 15_928.0


class LlmDSticky(LlmD):
    """`llm_d` over the candidates whose prefix score is 0.80 or more, if there are any and they are not far behind.

    Source: llm-d/llm-d-router (ebab6879, 2026-08-21), plugins/scheduling/filter/prefixcacheaffinity, with its defaults:
    affinityThreshold 0.80, maxTTFTPenaltyMs 18,000, peakPrefillThroughput 15,928 tokens/s (Qwen 32B on two H100),
    explorationProbability 0; and plugins/requestcontrol/dataproducer/inflightload for the tokens.

    The estimate of a replica's TTFT is its tokens in flight / 15,928: uncached prompt tokens of what was sent there and has
    shown no first token. Stickiness is broken when the best sticky replica's is more than 18 s above the best other's.
    The tokens are the gateway's own count, exact and fresh. The scores after the filter, the detector and the 50 ms scrape are
    `llm_d`'s: the filter's documentation leaves them to the profile.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._prefilling: dict[tuple[RequestId, ReplicaId], int] = {}
        self._tokens: Counter[ReplicaId] = Counter()

    def keep(self, candidates: Sequence[Candidate], hits: Mapping[ReplicaId, float]) -> Sequence[Candidate]:
        sticky = [c for c in candidates if hits.get(c.id, 0.0) >= AFFINITY_THRESHOLD]
        others = [c for c in candidates if hits.get(c.id, 0.0) < AFFINITY_THRESHOLD]
        if not sticky:
            return candidates
        if others and self._best_ttft_s(sticky) - self._best_ttft_s(others) > MAX_TTFT_PENALTY_S:
            return candidates
        return sticky

    def placed(self, request: Request, replica: ReplicaId, now: float) -> None:
        # Before the index learns of this very prompt.
        uncached = round(request.prompt_tokens * (1 - self.prefix_scores(request).get(replica, 0.0)))
        self._prefilling[request.id, replica] = uncached
        self._tokens[replica] += uncached
        super().placed(request, replica, now)

    def first_token(self, request: Request, replica: ReplicaId, now: float) -> None:
        super().first_token(request, replica, now)
        self._release(request, replica)

    def finished(self, request: Request, replica: ReplicaId, now: float) -> None:
        super().finished(request, replica, now)
        self._release(request, replica)

    def _release(self, request: Request, replica: ReplicaId) -> None:
        self._tokens[replica] -= self._prefilling.pop((request.id, replica), 0)
        if not self._tokens[replica]:
            del self._tokens[replica]

    def _best_ttft_s(self, candidates: Sequence[Candidate]) -> float:
        return min(self._tokens[c.id] for c in candidates) / PEAK_PREFILL_TOKENS_PER_S
