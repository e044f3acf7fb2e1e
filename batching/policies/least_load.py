"""SMG's `least_load`: where the work waiting would be done soonest, in seconds, with a barrier against full KV caches."""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Final

from batching.policies.base import Counting, any_least
from batching.policies.policy import Candidate
from batching.replica import EngineLoad
from batching.request import ReplicaId, Request

KV_PRESSURE_S: Final = 0.15  # lambda
MEAN_PREFILL_TOKENS: Final = 1024  # p
DEFAULT_THROUGHPUT: Final = 2000.0  # tokens a second
MAX_KV_RATIO: Final = 0.999  # k is clamped, as k/(1-k) has a pole


class LeastLoad(Counting):
    """argmin of `(queued + dispatched since the poll) / throughput + lambda * k / (1 - k)`; any of the equals. Never holds.

    Source: SMG (smg-project/smg f8daa883, 2026-08-22), model_gateway/src/policies/least_load.rs; lambda = 0.15 s, p = 1024
    tokens, throughput = 2000 tokens/s, k clamped at 0.999, loads polled every 10 s, `max_waiting_requests` off.

    As its HTTP path does with vLLM's /metrics, which tell neither tokens waiting nor tokens a second: `queued` is
    p * requests waiting, every request dispatched since the poll counts p, and the throughput is the default. A poll without
    the KV gauge counts for nothing. A replica never heard of while others were scores `in flight * p / throughput`;
    with nobody heard of it is the fewest in flight.
    """

    scrape_interval_s: float | None = 10.0

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = Random(seed)
        self._polled_s: dict[ReplicaId, float] = {}
        self._since_poll: Counter[ReplicaId] = Counter()  # requests

    def choose(self, request: Request, candidates: Sequence[Candidate], now: float) -> ReplicaId | None:  # noqa: ARG002
        return self.soonest(candidates)

    def placed(self, request: Request, replica: ReplicaId, now: float) -> None:
        super().placed(request, replica, now)
        self._since_poll[replica] += 1

    def forget(self, replica: ReplicaId) -> None:
        super().forget(replica)
        self._since_poll.pop(replica, None)
        self._polled_s.pop(replica, None)

    def soonest(self, candidates: Sequence[Candidate]) -> ReplicaId:
        """The least score of these; whether anybody was heard of is asked of these alone, as in the original."""
        heard = any(_told(c.load) for c in candidates)
        return any_least(candidates, [self._score(c, heard) for c in candidates], self._random).id

    def _score(self, candidate: Candidate, heard: bool) -> float:
        load = candidate.load
        if load is None or load.kv_usage_ratio is None:
            in_flight = self.in_flight[candidate.id]
            return in_flight * MEAN_PREFILL_TOKENS / DEFAULT_THROUGHPUT if heard else in_flight
        self._note_poll(candidate.id, load)
        requests = (load.waiting or 0) + self._since_poll[candidate.id]
        k = min(max(load.kv_usage_ratio, 0.0), MAX_KV_RATIO)
        return requests * MEAN_PREFILL_TOKENS / DEFAULT_THROUGHPUT + KV_PRESSURE_S * k / (1 - k)

    def _note_poll(self, replica: ReplicaId, load: EngineLoad) -> None:
        # A fresh report contains what was dispatched before it.
        if self._polled_s.get(replica) != load.observed_s:
            self._polled_s[replica] = load.observed_s
            self._since_poll.pop(replica, None)


def _told(load: EngineLoad | None) -> bool:
    return load is not None and load.kv_usage_ratio is not None
