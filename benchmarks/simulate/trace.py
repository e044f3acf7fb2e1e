"""Requests to replay: an Azure-style CSV, a Mooncake-style JSONL, or a seeded synthetic trace of the same shape.

Only arrival times, lengths and (Mooncake) the hashes of 512-token prompt blocks; nobody's words.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from random import Random
from typing import Final

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


def read_trace(path: Path, limit: int | None = None) -> list[Call]:
    """The first `limit` requests in order of arrival; raises ValueError for a file of neither shape.

    A prompt or an answer of no tokens, which real traces contain, counts as one of one token.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.read(1)
        file.seek(0)
        calls = sorted(_mooncake(file) if first == "{" else _azure(file, path.name), key=lambda call: call.arrival_s)
    if not calls:
        raise ValueError(f"{path.name}: no requests")
    start_s = calls[0].arrival_s
    return [replace(call, arrival_s=call.arrival_s - start_s) for call in calls[:limit]]


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


def _azure(lines: Iterable[str], name: str) -> Iterator[Call]:
    rows = csv.DictReader(lines)
    missing = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} - set(rows.fieldnames or ())
    if missing:
        raise ValueError(f"{name}: neither JSON lines nor a CSV with {', '.join(sorted(missing))}")
    for row in rows:
        yield Call(
            arrival_s=_seconds(row["TIMESTAMP"]),
            prompt_tokens=max(1, int(row["ContextTokens"])),
            output_tokens=max(1, int(row["GeneratedTokens"])),
        )


def _seconds(timestamp: str) -> float:
    """Seconds since any fixed moment, from a date or from plain seconds."""
    try:
        return float(timestamp)
    except ValueError:
        moment = datetime.fromisoformat(timestamp)
        return (moment - datetime(2000, 1, 1, tzinfo=moment.tzinfo)).total_seconds()


def _mooncake(lines: Iterable[str]) -> Iterator[Call]:
    for line in lines:
        if line.strip():
            row = json.loads(line)
            yield Call(
                arrival_s=row["timestamp"] / 1000,
                prompt_tokens=max(1, row["input_length"]),
                output_tokens=max(1, row["output_length"]),
                prefix_blocks=tuple(row.get("hash_ids", ())),
            )
