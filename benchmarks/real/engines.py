"""The two engines of unequal KV cache, what they say of themselves, and a watch over them while a load runs."""

import asyncio
import contextlib
import os
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.real.vllm_server import VllmServer
from tests.support.scrape import from_page, page

BATCH_TOKENS: Final = 2048  # vLLM's default for its size; it says so in no metric, so the gateway is told
_LOOK_S: Final = 0.5  # an engine takes 10 ms of a core to print its metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One running engine under the name that it has as a replica."""

    name: str
    server: VllmServer
    max_num_seqs: int

    def replica(self) -> dict[str, Any]:
        """Its entry in the gateway's configuration. What machine it is nobody knows: the gateway must learn its speed."""
        return {
            "name": self.name,
            "backend": "vllm",
            "url": self.server.url,
            "gpu": {"type": "unknown"},
            "capacity": {"max_num_seqs": self.max_num_seqs, "max_num_batched_tokens": BATCH_TOKENS},
        }

    def metrics(self) -> str:
        """Raises RuntimeError where it has died."""
        with self._answering():
            return page(f"{self.server.url}/metrics")

    def forget_prefixes(self) -> None:
        """So that no run finds what the one before has left."""
        request = urllib.request.Request(f"{self.server.url}/reset_prefix_cache", method="POST")
        with self._answering(), urllib.request.urlopen(request, timeout=30):
            pass

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """An engine that is gone ends the benchmark with a sentence and with what it said last."""
        try:
            yield
        except OSError as error:
            raise RuntimeError(
                f"engine {self.name} does not answer ({error}); its log ends:\n{self._last_words()}"
            ) from error

    def _last_words(self) -> str:
        lines = self.server.log.read_text("utf-8", "replace").splitlines()
        errors = [line for line in lines if "Error" in line]
        return "\n".join(errors[:5] or lines[-10:])


@contextmanager
def engines(blocks: Sequence[int], *, max_num_seqs: int, folder: Path) -> Iterator[list[Engine]]:
    """One engine for each number of KV blocks, ready and warm. Raises RuntimeError where one does not start."""
    with ExitStack() as stack:
        started = []
        for index, count in enumerate(blocks):
            name = f"kv{count}" if blocks.count(count) == 1 else f"kv{count}-{index}"
            server = VllmServer(folder / f"{name}.log", blocks=count, max_num_seqs=max_num_seqs)
            stack.callback(server.stop)
            started.append(Engine(name=name, server=server.start(), max_num_seqs=max_num_seqs))
        cores = sorted(os.sched_getaffinity(0))
        for index, engine in enumerate(started):
            engine.server.wait_ready(timeout_s=600).warm().step_back(cores[index % len(cores)])
        yield started


def counters(engines: Sequence[Engine]) -> dict[str, float]:
    """Sums over the engines of what only ever grows."""
    names = {"preemptions": "vllm:num_preemptions_total", "prefix_hit_tokens": "vllm:prefix_cache_hits_total"}
    pages = [engine.metrics() for engine in engines]
    return {name: sum(from_page(text, metric) for text in pages) for name, metric in names.items()}


@dataclass(slots=True)
class Seen:
    """What one engine showed, a look after the other."""

    kv_usage: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Watch:
    """Looks at all engines and the gateway's queue until cancelled."""

    engines: Sequence[Engine]
    gateway_port: int
    seen: dict[str, Seen] = field(default_factory=dict)
    queued: list[float] = field(default_factory=list)

    async def run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.to_thread(self._look)
                await asyncio.sleep(_LOOK_S)

    def _look(self) -> None:
        for engine in self.engines:
            text, seen = engine.metrics(), self.seen.setdefault(engine.name, Seen())
            seen.kv_usage.append(from_page(text, "vllm:kv_cache_usage_perc"))
            seen.running.append(from_page(text, "vllm:num_requests_running"))
            seen.waiting.append(from_page(text, "vllm:num_requests_waiting"))
        with contextlib.suppress(TimeoutError):  # 10 s: the load goes on, and shows in its times what that cost
            ours = page(f"http://127.0.0.1:{self.gateway_port}/metrics")
            self.queued.append(from_page(ours, "penstock_queue_depth"))
