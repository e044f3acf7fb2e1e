"""A load of streams whose client measures for itself, and what the gateway's page says of the same: for tests that both agree."""

import asyncio
import json
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.engine_process import EngineProcess, replica
from tests.support.gateway_process import serving
from tests.support.raw_http import post
from tests.support.scrape import from_page, page
from tests.support.stream_check import expected_answer
from tests.support.stream_client import CHAT, chat_body

_PATIENCE_S = 300.0
_DELTA, _EMPTY = b'"content":"', b'"content":""'
_CUT_BYTES = 40  # of what is looked for, at most


@dataclass(slots=True)
class Measured:
    """By the client, in seconds; a gap a token after the first, none where two came at once."""

    ttft_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0


@asynccontextmanager
async def fleet(folder: Path, *, engines: int, speed: float, workers: int) -> AsyncIterator[str]:
    """A gateway process over engine processes; its URL. Nothing is asked twice, refused or held for being slow."""
    async with AsyncExitStack() as stack:
        processes = [stack.enter_context(EngineProcess(speed=speed, seed=number)) for number in range(engines)]
        for process in processes:
            await process.ready()
        slow = {"ttft_s": 60.0, "tpot_s": 10.0}
        config = {
            "replicas": [replica(f"r{number}", process.url) for number, process in enumerate(processes)],
            "scheduling": {"objectives": slow, "hedge": {"enabled": False}},
            "server": {"workers": workers},
            "log_level": "warning",
        }
        path = folder / "penstock.json"
        path.write_text(json.dumps(config))
        gateway = await stack.enter_async_context(serving(path))
        yield gateway.url


async def load(url: str, streams: int, *, tokens: int, over_s: float) -> Measured:
    """So many streams, begun evenly over `over_s`, each on a connection of its own; every one must be whole."""
    measured = Measured()
    async with asyncio.timeout(_PATIENCE_S), asyncio.TaskGroup() as tasks:
        for number in range(streams):
            tasks.create_task(_stream(url, number, tokens + number % 7, over_s * number / streams, measured))
    return measured


async def _stream(url: str, number: int, tokens: int, begin_s: float, measured: Measured) -> None:
    body = chat_body(f"question {number} " * (1 + number % 5), tokens)
    expected = expected_answer(body)
    await asyncio.sleep(begin_s)
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    transport, client = await loop.create_connection(lambda: _Client(measured), parts.hostname, parts.port)
    try:
        client.ask(transport, post(CHAT, body))
        await client.done
        assert client.head.startswith(b"HTTP/1.1 200 ")
        assert client.seen == expected.completion_tokens
        measured.output_tokens += client.seen
        measured.prompt_tokens += expected.prompt_tokens
    finally:
        transport.close()


class _Client(asyncio.Protocol):
    """Reads one stream, and does next to nothing with it: a client that lags measures itself."""

    def __init__(self, measured: Measured) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.head = b""
        self.seen = 0
        self._time = asyncio.get_running_loop().time
        self._measured = measured
        self._last_s = 0.0
        self._tail = b""  # where an event may have been cut

    def ask(self, transport: asyncio.Transport, request: bytes) -> None:
        self._last_s = self._time()
        transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = self._time()
        self.head = self.head or data[:64]
        text = self._tail + data
        if (came := _deltas(text) - _deltas(self._tail)) > 0:
            (self._measured.gaps_s if self.seen else self._measured.ttft_s).append(now - self._last_s)
            self._measured.gaps_s += [0.0] * (came - 1)
            self._last_s = now
        self.seen += came
        self._tail = text[-_CUT_BYTES:]
        if text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(AssertionError(f"the stream broke off: {exc!r}, {self._tail!r}"))


def _deltas(text: bytes) -> int:
    """Of events with something to say: the first one's is empty."""
    return text.count(_DELTA) - text.count(_EMPTY)


def miscounted(url: str, measured: Measured) -> list[str]:
    """Counts on the gateway's page that are not the client's."""
    text, found = page(f"{url}/metrics"), []
    counts = {
        "penstock_time_to_first_token_seconds_count": len(measured.ttft_s),
        "penstock_inter_token_latency_seconds_count": len(measured.gaps_s),
        "penstock_output_length_tokens_sum": measured.output_tokens,
        "penstock_prompt_length_tokens_sum": measured.prompt_tokens,
    }
    for name, count in counts.items():
        if (told := from_page(text, name)) != count:
            found.append(f"{name}: {told:g}, and {count} were counted")
    for kinds, tokens in ((("input", "cached_input"), measured.prompt_tokens), (("output",), measured.output_tokens)):
        told = sum(from_page(text, "penstock_tokens_total", kind=kind, source="reported") for kind in kinds)
        if told != tokens:
            found.append(f"tokens_total of {kinds}: {told:g}, and {tokens} were counted")
    return found


def disagreements(url: str, measured: Measured, quantiles: Iterable[float]) -> list[str]:
    """Times on the gateway's page that are not the client's: quantiles more than a bucket apart."""
    text, found = page(f"{url}/metrics"), []
    for name, values in (("time_to_first_token", measured.ttft_s), ("inter_token_latency", measured.gaps_s)):
        bounds, cumulated = _buckets(text, f"penstock_{name}_seconds_bucket")
        for quantile in quantiles:
            ours = bisect_left(cumulated, quantile * cumulated[-1])
            value = sorted(values)[min(len(values) - 1, int(quantile * len(values)))]
            theirs = bisect_left(bounds, value)
            if abs(ours - theirs) > 1:
                found.append(f"{name} p{quantile * 100:g}: below {bounds[ours]:g} s, and {value:.4f} s were measured")
    return found


def _buckets(text: str, name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Upper bounds and cumulated counts, over all labels."""
    sums: dict[float, float] = {}
    for line in text.splitlines():
        if line.startswith(name + "{"):
            labels, count = line.rsplit(" ", 1)
            told = labels.split('le="')[1].split('"')[0]
            bound = inf if told == "+Inf" else float(told)
            sums[bound] = sums.get(bound, 0.0) + float(count)
    bounds = sorted(sums)
    return bounds, [sums[bound] for bound in bounds]
