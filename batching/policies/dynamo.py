"""NVIDIA Dynamo's KV router: the fewest blocks to prefill and to decode with, and a queue while every worker prefills."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from batching.blocks import DEFAULT_BLOCK_SIZE
from batching.policies.base import Counting, any_least
from batching.policies.held_chunks import HeldChunks, leading_chunks
from batching.policies.policy import Candidate
from batching.request import ReplicaId, Request, RequestId

PREFILL_LOAD_SCALE: Final = 1.0
QUEUE_THRESHOLD: Final = 2.0
BLOCK_TOKENS: Final = DEFAULT_BLOCK_SIZE  # Dynamo has one block size for a model
_UNTOLD_CACHE_BLOCKS: Final = 31_250  # of a replica that tells no size: an 80 GB machine under an 8B model


@dataclass(slots=True)
class _Sequences:
    """What runs on one worker."""

    prefill_tokens: int = 0  # uncached, no first token yet
    tail_blocks: int = 0  # of prompts, beyond their shareable chunks
    chunks: Counter[int] = field(default_factory=Counter)  # shareable, with how many run on each
    chunk_blocks: float = 0.0  # of all in `chunks`, each once

    def active(self, chunks: Sequence[int]) -> int:
        """How many leading chunks run here. Whoever has a chunk has all before it, so the boundary is found by halves."""
        return bisect_left(range(len(chunks)), x=True, key=lambda index: chunks[index] not in self.chunks)


class Dynamo(Counting):
    """argmin of `max(active prefill + prompt - overlap, 0) + decode`, in blocks; any of the equals. Holds if all prefill.

    Source: ai-dynamo/dynamo 1.4, lib/kv-router/src/scheduling/selector.rs (single files read, not a whole revision):
    `prefill_load_scale * max(active_prefill_blocks + prompt_blocks - overlap_credit, 0) + decode_blocks`, scale 1, credit
    1.0 for blocks on the device, decay 0, temperature 0. Decode blocks are those in use there were the request admitted:
    prompts of what runs, shared chunks once, and its own; output is not tracked (--router-track-output-blocks is off). Active
    sequences are the router's own count, exact and fresh, so nothing is scraped.

    Queue: held while active prefill tokens exceed `queue_threshold * max_num_batched_tokens` on every candidate, first come
    first served. --router-queue-threshold is off by default today; 2.0 was its first default when the queue came (then 4.0,
    16.0, off). None switches it off. A worker that tells no max_num_batched_tokens is never busy.

    Overlap is exact there, from the engines' KV events. Here it is what was prefilled on the replica, in an LRU of its
    `kv_blocks`; output fills no part of that, and blocks in use are not kept from it.
    """

    def __init__(self, seed: int = 0, *, queue_threshold: float | None = QUEUE_THRESHOLD) -> None:
        super().__init__()
        self._random = Random(seed)
        self._queue_threshold = queue_threshold
        self._cached = HeldChunks()
        self._sequences: dict[ReplicaId, _Sequences] = {}
        self._prefilling: dict[tuple[RequestId, ReplicaId], int] = {}
        self._cache_tokens: dict[ReplicaId, int] = {}

    def choose(self, request: Request, candidates: Sequence[Candidate], now: float) -> ReplicaId | None:  # noqa: ARG002
        if self._queue_threshold is not None and all(self._busy(c, self._queue_threshold) for c in candidates):
            return None
        chunks = leading_chunks(request.prefix_hashes)
        cached = self._cached.counts(chunks)
        scores = [self._cost(request, chunks, c.id, cached.get(c.id, 0)) for c in candidates]
        chosen = any_least(candidates, scores, self._random)
        profile = chosen.profile
        cache_blocks = profile.kv_blocks or _UNTOLD_CACHE_BLOCKS
        self._cache_tokens[chosen.id] = cache_blocks * (profile.block_size or DEFAULT_BLOCK_SIZE)
        return chosen.id

    def placed(self, request: Request, replica: ReplicaId, now: float) -> None:
        super().placed(request, replica, now)
        chunks = leading_chunks(request.prefix_hashes)
        cached_tokens = self._cached.counts(chunks).get(replica, 0) * request.prefix_chunk_tokens
        uncached = max(request.prompt_tokens - cached_tokens, 0)
        running = self._sequences.setdefault(replica, _Sequences())
        running.prefill_tokens += uncached
        self._prefilling[request.id, replica] = uncached
        running.tail_blocks += _tail_blocks(request, chunks)
        running.chunk_blocks += (len(chunks) - running.active(chunks)) * _chunk_blocks(request)
        running.chunks.update(chunks)

    def first_token(self, request: Request, replica: ReplicaId, now: float) -> None:
        super().first_token(request, replica, now)
        self._prefilled(request, replica)

    def finished(self, request: Request, replica: ReplicaId, now: float) -> None:
        super().finished(request, replica, now)
        if request.streaming:
            self._end_prefill(request, replica)  # no first token came: nothing was stored, for all that is known
        else:
            self._prefilled(request, replica)
        chunks = leading_chunks(request.prefix_hashes)
        running = self._sequences[replica]
        running.tail_blocks -= _tail_blocks(request, chunks)
        for chunk in chunks:
            running.chunks[chunk] -= 1
            if not running.chunks[chunk]:
                del running.chunks[chunk]
                running.chunk_blocks -= _chunk_blocks(request)
        if replica not in self.in_flight:
            del self._sequences[replica]

    def forget(self, replica: ReplicaId) -> None:
        super().forget(replica)
        self._cached.forget(replica)
        self._cache_tokens.pop(replica, None)

    def _busy(self, candidate: Candidate, threshold: float) -> bool:
        running, step_tokens = self._sequences.get(candidate.id), candidate.profile.max_num_batched_tokens
        return running is not None and step_tokens is not None and running.prefill_tokens > threshold * step_tokens

    def _cost(self, request: Request, chunks: Sequence[int], replica: ReplicaId, cached_chunks: int) -> float:
        prompt_blocks, overlap_blocks = request.prompt_tokens / BLOCK_TOKENS, cached_chunks * _chunk_blocks(request)
        decode_blocks = float(_tail_blocks(request, chunks))
        active_prefill_blocks = 0.0
        new_chunks = len(chunks)
        if (running := self._sequences.get(replica)) is not None:
            active_prefill_blocks = running.prefill_tokens / BLOCK_TOKENS
            decode_blocks += running.chunk_blocks + running.tail_blocks
            new_chunks -= running.active(chunks)
        decode_blocks += new_chunks * _chunk_blocks(request)
        return PREFILL_LOAD_SCALE * max(active_prefill_blocks + prompt_blocks - overlap_blocks, 0.0) + decode_blocks

    def _end_prefill(self, request: Request, replica: ReplicaId) -> bool:
        tokens = self._prefilling.pop((request.id, replica), None)
        if tokens is not None:
            self._sequences[replica].prefill_tokens -= tokens
        return tokens is not None

    def _prefilled(self, request: Request, replica: ReplicaId) -> None:
        if self._end_prefill(request, replica) and request.prefix_hashes and replica in self._cache_tokens:
            # Deepest first: engines free a prompt's last blocks before its first.
            chunks = leading_chunks(request.prefix_hashes)[::-1]
            max_chunks = self._cache_tokens[replica] // max(request.prefix_chunk_tokens, 1)
            self._cached.record(replica, chunks, max_chunks=max_chunks)


def _chunk_blocks(request: Request) -> float:
    return request.prefix_chunk_tokens / BLOCK_TOKENS


def _tail_blocks(request: Request, chunks: Sequence[int]) -> int:
    tail_tokens = request.prompt_tokens - len(chunks) * request.prefix_chunk_tokens
    return max(0, -(-tail_tokens // BLOCK_TOKENS))
