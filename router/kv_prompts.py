"""What becomes of a prompt after its request, where the replica tells its KV events: its tokens are learned, its belief is settled.

Off the hot path and bounded: one question at a time to an engine, few waiting, the rest dropped - a prompt that was dropped is only
believed in as without events. Decides when and whether to ask; what the answer means is `batching.kv_belief`'s.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from backends.kv_events.messages import seed
from backends.kv_events.prompts import TokensUnavailableError, ask, own_tokens, question
from batching.kv_belief import Change, KvBelief
from batching.request import ReplicaId
from config.schema import ReplicaConfig
from metrics.catalog import Metrics
from router.exchange import Exchange

log = logging.getLogger("penstock.kv_events")

# From a request's end until its engine's events are certainly here: vLLM's publisher sends a step's events within 0.1 s.
SETTLE_S = 1.0
_MAX_UNSETTLED = 1024  # requests of the last second or so, of all replicas that tell
_MAX_QUESTIONS = 32  # waiting for one engine; older prompts would hardly be in its cache any more
_MAX_BODY_BYTES = 2**20  # longer prompts are not asked about: the engine would tokenize them for a second
_MAX_BODIES_BYTES = 32 * 2**20  # all that wait together
_MAX_PAUSE_S = 60.0  # between questions to an engine whose answers are of no use


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """A request that was at a replica, as far as it is needed later."""

    replica: ReplicaId
    due_s: float
    path: str
    body: bytes  # empty: known already, or too long to ask about
    model: str
    chunks: tuple[int, ...]
    chunk_share: float  # of the prompt's tokens that one chunk takes
    chunk_tokens: int | None  # exact, where the prompt came as token ids
    prompt_tokens: int | None  # as the engine counted


class _Asking:
    """One engine to which questions go."""

    def __init__(self, config: ReplicaConfig) -> None:
        assert config.url is not None, "the schema demands a url for vllm replicas"
        self.base_url = config.url.rstrip("/").removesuffix("/v1")
        self.api_key = config.api_key
        self.waiting: asyncio.Queue[_Served] = asyncio.Queue(_MAX_QUESTIONS)
        self.misses = 0
        self.paused_until_s = 0.0


class KvPrompts:
    """Fed by `attempted`; `add` gives the coroutine function that works for one replica."""

    def __init__(
        self,
        belief: KvBelief,
        apply: Callable[[ReplicaId, Change], None],
        metrics: Metrics,
        http: httpx.AsyncClient,
        is_adapter: Callable[[ReplicaId, str], bool],
    ) -> None:
        self._belief = belief
        self._apply = apply
        self._metrics = metrics
        self._http = http
        self._is_adapter = is_adapter
        self._engines: dict[ReplicaId, _Asking] = {}
        self._unsettled = 0
        self._body_bytes = 0

    def add(self, config: ReplicaConfig) -> Callable[[], Coroutine[Any, Any, None]]:
        engine = self._engines[ReplicaId(config.name)] = _Asking(config)
        return lambda: self._learn_all(engine)

    def remove(self, replica: ReplicaId) -> None:
        engine = self._engines.pop(replica, None)
        while engine is not None and not engine.waiting.empty():
            self._body_bytes -= len(engine.waiting.get_nowait().body)

    def attempted(self, exchange: Exchange) -> None:
        """Keep what is needed of a request, until its engine has told what it did."""
        spec, placed = exchange.spec, exchange.placed
        if spec is None or placed is None or placed.lease.replica not in self._engines or not spec.prefix_chunks:
            return
        if self._unsettled >= _MAX_UNSETTLED:
            self._count(placed.lease.replica, "dropped")
            return
        body, usage, loop = exchange.inbound.body, exchange.usage, asyncio.get_running_loop()
        if len(body) > _MAX_BODY_BYTES or self._body_bytes + len(body) > _MAX_BODIES_BYTES:
            body = b""
        served = _Served(
            replica=placed.lease.replica,
            due_s=loop.time() + SETTLE_S,
            path=exchange.inbound.path,
            body=body,
            model=spec.model,
            chunks=spec.prefix_chunks,
            chunk_share=spec.prefix_chunk_chars
            / max(spec.prompt_chars, spec.prefix_chunk_chars * len(spec.prefix_chunks)),
            chunk_tokens=spec.prefix_chunk_tokens,
            prompt_tokens=usage.prompt_tokens if usage is not None else None,
        )
        self._unsettled += 1
        self._body_bytes += len(body)
        loop.call_at(served.due_s, self._due, served)

    def _due(self, served: _Served) -> None:
        self._unsettled -= 1
        engine = self._engines.get(served.replica)
        if engine is not None and served.body and self._belief.lacks(served.replica, served.chunks):
            if not engine.waiting.full() and asyncio.get_running_loop().time() >= engine.paused_until_s:
                engine.waiting.put_nowait(served)
                return
            self._count(served.replica, "dropped")
        self._body_bytes -= len(served.body)
        if engine is not None:
            self._settle(served)

    async def _learn_all(self, engine: _Asking) -> None:
        while True:
            served = await engine.waiting.get()
            self._body_bytes -= len(served.body)
            if self._belief.lacks(served.replica, served.chunks):
                outcome = await self._learn(engine, served)
                if outcome is not None:
                    self._count(served.replica, outcome)
                    self._rest(engine, useful=outcome == "mapped")
            self._settle(served)

    async def _learn(self, engine: _Asking, served: _Served) -> str | None:
        """None: it cannot be asked about."""
        fields = msgspec.json.decode(served.body)
        tokens = own_tokens(served.path, fields)
        if tokens is None:
            asked = question(served.path, fields)
            if asked is None or served.prompt_tokens is None:
                return None
            try:
                tokens = await ask(self._http, engine.base_url, engine.api_key, asked)
            except TokensUnavailableError as error:
                log.debug("replica %s: %s", served.replica, error)
                return "failed"
            # The engine read something else: a template of its own for this endpoint, a truncation.
            if len(tokens) != served.prompt_tokens:
                return "mismatched"
        changes = self._belief.learn(
            served.replica,
            served.chunks,
            tokens,
            chunk_tokens=served.chunk_tokens or served.chunk_share * len(tokens),
            seed=seed(served.model if self._is_adapter(served.replica, served.model) else None),
        )
        for replica, change in changes.items():
            self._apply(replica, change)
        return "mapped"

    def _settle(self, served: _Served) -> None:
        self._apply(served.replica, self._belief.settle(served.replica, served.chunks))

    def _rest(self, engine: _Asking, *, useful: bool) -> None:
        """Answers of no use cost the engine, too: ask ever more rarely."""
        engine.misses = 0 if useful else engine.misses + 1
        if engine.misses:
            pause_s = min(_MAX_PAUSE_S, 2.0 ** min(engine.misses, 10) / 8)
            engine.paused_until_s = asyncio.get_running_loop().time() + pause_s

    def _count(self, replica: ReplicaId, outcome: str) -> None:
        self._metrics.kv_event_prompts_total.labels(replica, outcome).inc()
