"""Requests to replay, and a seeded synthetic trace of the shape that real ones have; `trace_files` reads those.

Only arrival times, lengths and the hashes of 512-token prompt blocks; nobody's words.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import Final

from batching.request import ServiceTier

PREFIX_BLOCK_TOKENS: Final = 512  # of a Mooncake hash; the last one of a prompt may cover fewer

# Medians as published for a production chat service (Splitwise, ISCA 2024, section III: 1,020 in, 129 out), tails as usual
# for lognormal lengths: p99 about twelve times the median.
_SYNTHETIC_PROMPT = (math.log(1020), 1.1)
_SYNTHETIC_OUTPUT = (math.log(129), 1.0)
_SYNTHETIC_LONGEST_TOKENS: Final = 16_384
_SYNTHETIC_RATE_PER_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request of a trace; `arrival_s` counts from the first."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_blocks: tuple[int, ...] = ()  # chained hashes: equal hashes, equal prefixes
    tenant: str = "anonymous"
    service_tier: ServiceTier = ServiceTier.DEFAULT
    max_wait_s: float | None = None  # since its arrival; None: the queue's own bound


def block_hash(call: Call, block_size: int) -> Callable[[int], int | None]:
    """The hash of each KV block that the prompt fills; what is generated is not shared, as nobody else's prompt is known to have it."""
    blocks = call.prefix_blocks
    if not blocks:
        return _unshared
    per_hash = -(-PREFIX_BLOCK_TOKENS // block_size)  # exact where the block size divides 512, as all usual ones do
    full_blocks = min(call.prompt_tokens // block_size, len(blocks) * PREFIX_BLOCK_TOKENS // block_size)

    def hash_of(index: int) -> int | None:
        if index >= full_blocks:
            return None
        start = index * block_size
        return blocks[start // PREFIX_BLOCK_TOKENS] * per_hash + start % PREFIX_BLOCK_TOKENS // block_size

    return hash_of


def synthetic_trace(seed: int, requests: int) -> list[Call]:
    """Poisson arrivals, lognormal lengths; the same seed gives the same trace, and a longer one begins with a shorter."""
    return list(islice(_synthetic(Random(seed)), requests))


def faster(calls: Iterable[Call], rate_scale: float) -> list[Call]:
    """The same requests, `rate_scale` times as many a second."""
    return [replace(call, arrival_s=call.arrival_s / rate_scale) for call in calls]


def _synthetic(random: Random) -> Iterator[Call]:
    now_s = 0.0
    while True:
        yield Call(
            arrival_s=now_s,
            prompt_tokens=_length(random, _SYNTHETIC_PROMPT),
            output_tokens=_length(random, _SYNTHETIC_OUTPUT),
        )
        now_s += random.expovariate(_SYNTHETIC_RATE_PER_S)


def _length(random: Random, lognormal: tuple[float, float]) -> int:
    return max(1, min(_SYNTHETIC_LONGEST_TOKENS, round(random.lognormvariate(*lognormal))))


def _unshared(_: int) -> int | None:
    return None
