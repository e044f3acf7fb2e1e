"""One target under three loads: one connection, many, and many streams. Figures are in the names' units."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import uvloop

from benchmarks.overhead.load import Load, Seen, run_load
from benchmarks.overhead.targets import Running
from benchmarks.overhead.wire import answer, events, request_bytes

Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of every load."""

    seconds: float
    connections: int
    streams: int
    chunks: int
    gap_s: float


def measure(running: Running, shape: Shape, load_cores: frozenset[int]) -> Figures:
    """One round: the three loads after each other. `load_cores`: where engine and load run."""
    port = running.target.port
    idle_mb, _ = running.memory_mb()

    def requests(connections: int) -> tuple[Seen, float | None]:
        load = Load(
            port=port,
            request=request_bytes(stream=False),
            expected=answer(),
            connections=connections,
            seconds=shape.seconds,
        )
        return _with_cpu(running, load)

    streams = Load(
        port=port,
        request=request_bytes(stream=True),
        expected=b"".join(events(shape.chunks)),
        connections=shape.streams,
        seconds=shape.seconds,
        spread_s=min(shape.seconds, shape.chunks * shape.gap_s),
    )
    # One after the other, so one core loses nothing, and the wake-up of another core, dear in a virtual machine, stays out.
    with running.beside(load_cores):
        one, one_cpu_s = requests(1)
    many, many_cpu_s = requests(shape.connections)
    streamed, stream_cpu_s = _with_cpu(running, streams)
    chunks = streamed.whole * shape.chunks
    _, peak_mb = running.memory_mb()
    return {
        "c1_p50_ms": _ms(one.latencies_s, 0.5),
        "c1_p99_ms": _ms(one.latencies_s, 0.99),
        "c1_cpu_us_per_request": _us_each(one_cpu_s, one.whole),
        "cn_p50_ms": _ms(many.latencies_s, 0.5),
        "cn_p99_ms": _ms(many.latencies_s, 0.99),
        "cn_requests_per_s": many.whole / many.duration_s,
        "cpu_us_per_request": _us_each(many_cpu_s, many.whole),
        "stream_ttft_p50_ms": _ms(streamed.first_s, 0.5),
        "stream_ttft_p99_ms": _ms(streamed.first_s, 0.99),
        "stream_gap_p50_ms": _ms(streamed.gaps_s, 0.5),
        "stream_gap_p99_ms": _ms(streamed.gaps_s, 0.99),
        "chunks_per_s": chunks / streamed.duration_s,
        "cpu_us_per_chunk": _us_each(stream_cpu_s, chunks),
        "rss_idle_mb": idle_mb,
        "rss_peak_mb": peak_mb,
        "requests_whole": one.whole + many.whole,
        "requests_broken": one.broken + many.broken,
        "streams_whole": streamed.whole,
        "streams_broken": streamed.broken,
    }


def combine(rounds: Sequence[Mapping[str, float | None]]) -> Figures:
    """Medians over the rounds, sums of what counts answers; the first round's idle memory, the highest peak."""
    combined: Figures = {}
    for name in rounds[0]:
        values = [value for one in rounds if (value := one[name]) is not None]
        if not values:
            combined[name] = None
        elif name.endswith(("_whole", "_broken")):
            combined[name] = sum(values)
        elif name == "rss_idle_mb":
            combined[name] = values[0]
        else:
            combined[name] = round(max(values) if name == "rss_peak_mb" else median(values), 3)
    return combined


def _with_cpu(running: Running, load: Load) -> tuple[Seen, float | None]:
    before_s = running.cpu_s()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(run_load(load))
    after_s = running.cpu_s()
    return seen, None if before_s is None or after_s is None else after_s - before_s


def _ms(values: list[float], share: float) -> float | None:
    if not values:
        return None
    return sorted(values)[math.ceil(share * len(values)) - 1] * 1000


def _us_each(cpu_s: float | None, events_seen: int) -> float | None:
    return None if cpu_s is None or not events_seen else cpu_s * 1e6 / events_seen
