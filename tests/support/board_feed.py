"""The board's page over a feed that a test writes: the files as they are served, and `/admin/live` with whatever is pushed."""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
from fastapi import FastAPI, Response
from starlette.responses import StreamingResponse

from config.schema import Server
from router.board.document import Candidate, Live, Money, PlacementLine, Pulse, QueueRow, ReplicaCard
from router.board.page import add_page
from tests.support.servers import served

MODELS = ("llama-3.1-8b", "llama-3.1-70b", "qwen-2.5-32b")
MACHINES = (  # gpu, count, tier, usd, on demand, blocks
    ("H100-80G", 8, "reserved", 19.6, 31.2, 210_000),
    ("H100-80G", 1, "reserved", 2.5, 3.9, 27_500),
    ("A100-80G", 1, "on_demand", 3.0, 3.0, 27_000),
    ("A100-80G", 2, "spot", 2.4, 6.0, 54_000),
    ("L4-24G", 1, "spot", 0.3, 0.8, 6_000),
)


def unix() -> float:
    return datetime.now(UTC).timestamp()


def card(name: str, **more: Any) -> ReplicaCard:
    """A ready replica; `more` says otherwise."""
    known: dict[str, Any] = {
        "name": name, "models": ("m",), "backend": "vllm", "gpu": "A100-80G", "gpus": 1, "cost_tier": "on_demand", "usd_per_hour": 3.0,
        "on_demand_usd_per_hour": 3.0, "lifecycle": "ready", "running": 0, "max_num_seqs": 256, "waiting": 0, "kv_blocks": 1000, "block_size": 16,
    }  # fmt: skip
    return ReplicaCard(**{**known, **more})


def live(*cards: ReplicaCard, whole: bool = True, **more: Any) -> Live:
    """A document of now."""
    now = unix()
    return Live(
        **{"whole": whole, "unix_s": now, "started_unix_s": now - 3600, "penstock": "0.1.0", "replicas": cards, **more}
    )


def line(request_id: str, replica: str, **more: Any) -> PlacementLine:
    known: dict[str, Any] = {
        "request_id": request_id, "unix_s": unix(), "model": "m", "service_tier": "default", "replica": replica, "cost_tier": "on_demand",
        "reason": "cost", "formula": f"{replica} by cost", "queued_s": 0.0,
        "candidates": (Candidate(replica=replica, usd=1e-6, ttft_s=0.05, tpot_s=0.01, cached_tokens=0, headroom_blocks=900, meets=True),),
    }  # fmt: skip
    return PlacementLine(**{**known, **more})


class Feed:
    """What viewers are told. `hello` is sent to each that comes, `push` to all that are there."""

    def __init__(self, hello: Callable[[], Live]) -> None:
        self.hello = hello
        self.viewers: set[asyncio.Queue[bytes | None]] = set()
        self.came = 0

    def push(self, told: Live) -> None:
        for viewer in self.viewers:
            viewer.put_nowait(b"data: " + msgspec.json.encode(told) + b"\n\n")

    def cut(self) -> None:
        for viewer in self.viewers:
            viewer.put_nowait(None)

    async def stream(self) -> AsyncIterator[bytes]:
        viewer: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.viewers.add(viewer)
        self.came += 1
        try:
            yield b"data: " + msgspec.json.encode(self.hello()) + b"\n\n"
            while (said := await viewer.get()) is not None:
                yield said
        finally:
            self.viewers.discard(viewer)


@asynccontextmanager
async def board_over(feed: Feed, more: Callable[[FastAPI], None] = lambda _: None) -> AsyncIterator[str]:
    """Its URL; `more` adds routes."""
    api = FastAPI(redirect_slashes=False)
    add_page(api, SimpleNamespace(config=SimpleNamespace(server=Server()), admin_at=None))  # type: ignore[arg-type]

    @api.get("/admin/live")
    async def stream() -> Response:
        return StreamingResponse(feed.stream(), media_type="text/event-stream")

    more(api)
    async with served(api, graceful_s=1) as url:
        try:
            yield url
        finally:
            feed.cut()


class Fleet:
    """A fleet at work, drawn from a seed: figures that move as a fleet's do, a second at a time."""

    def __init__(self, replicas: int, seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self._second = 0
        self.names = [f"{self._kind(i)[0].lower().replace('-80g', '').replace('-24g', '')}-{self._kind(i)[2].replace('_', '-')}-{i}" for i in range(replicas)]  # fmt: skip
        self._full = [self._rng.random() * 0.8 for _ in range(replicas)]
        self.pulses = [self._pulse(-120 + i) for i in range(120)]

    def whole(self) -> Live:
        return live(*(self._card(i) for i in range(len(self.names))), **self._rest(), pulses=tuple(self.pulses), placements=tuple(self._line(i) for i in range(12)))  # fmt: skip

    def second(self) -> Live:
        """Every card changes a little, as under load."""
        self._second += 1
        self._full = [min(max(full + self._rng.gauss(0, 0.02), 0.0), 0.97) for full in self._full]
        pulse = self._pulse(0)
        self.pulses = [*self.pulses[1:], pulse]
        cards = [self._card(i) for i in range(len(self.names))]
        return live(*cards, whole=False, **self._rest(), pulses=(pulse,), placements=(self._line(0),))

    def _kind(self, i: int) -> tuple[str, int, str, float, float, int]:
        return MACHINES[i % len(MACHINES)]

    def _card(self, i: int) -> ReplicaCard:
        gpu, gpus, tier, usd, demand, blocks = self._kind(i)
        held = int(blocks * self._full[i])
        per_s = self._full[i] * gpus * 900
        trouble: dict[str, Any] = {}
        if tier == "spot" and i % 40 == 3:
            trouble = {"lifecycle": "reclaiming", "reason": "reclaim", "why": "aws takes it away", "deadline_unix_s": unix() + 100 - self._second}  # fmt: skip
        elif i % 97 == 96:
            trouble = {"lifecycle": "down", "why": "3 looks in a row failed: connection refused"}
        return card(
            self.names[i], models=(MODELS[i % 3],), gpu=gpu, gpus=gpus, cost_tier=tier, usd_per_hour=usd, on_demand_usd_per_hour=demand,
            kv_blocks=blocks, held_blocks=held, reserved_blocks=int(held * 1.25), foreign_blocks=int(blocks * 0.03) if i % 7 == 0 else 0,
            running=int(self._full[i] * 180), waiting=int(i % 11 == 0), output_tokens_per_s=per_s,
            usd_per_million_output_tokens=usd / 3600 / per_s * 1e6 if per_s else None, **trouble,
        )  # fmt: skip

    def _rest(self) -> dict[str, Any]:
        kinds = [self._kind(i) for i in range(len(self.names))]
        money = Money(usd_per_hour=sum(k[3] for k in kinds), on_demand_usd_per_hour=sum(k[4] for k in kinds))
        queue = (
            QueueRow(
                model=MODELS[1], service_tier="flex", tenant="t-5be1c09a12f4", depth=41, tokens=61_200, oldest_s=12.4
            ),
            QueueRow(
                model=MODELS[1], service_tier="default", tenant="t-90aa31d7c702", depth=6, tokens=8_100, oldest_s=0.8
            ),
        )
        return {"money": money, "queue": queue}

    def _pulse(self, at_s: int) -> Pulse:
        wave = 1 + 0.3 * math.sin((self._second + at_s) / 15) + self._rng.random() * 0.1
        return Pulse(
            unix_s=unix() + at_s, ttft_p50_s=0.11 * wave, ttft_p95_s=0.3 * wave + self._rng.random() * 0.1, itl_p50_s=0.011 * wave, itl_p95_s=0.019 * wave,
            output_tokens=int(40 * wave * len(self.names)), requests=int(0.2 * wave * len(self.names)), errors=int(self._rng.random() < 0.02),
            queue_depth=47, kv_used_ratio=0.36 * wave,
        )  # fmt: skip

    def _line(self, back_s: int) -> PlacementLine:
        i = self._rng.randrange(len(self.names))
        tier, reason = self._kind(i)[2], self._rng.choice(("prefix_hit", "cost", "cost", "kv_headroom", "fallback"))
        others = [self.names[(i + k) % len(self.names)] for k in range(3)]
        candidates = tuple(
            Candidate(replica=name, usd=0.0 if tier == "reserved" and k == 0 else 3.1e-5 * (1 + k), ttft_s=0.08 * (1 + k), tpot_s=0.012,
                      cached_tokens=1024 if reason == "prefix_hit" and k == 0 else 0, headroom_blocks=9000 - k, meets=k < 2)
            for k, name in enumerate(others)
        )  # fmt: skip
        return line(
            f"req-{self._rng.randrange(10**9):x}", others[0], unix_s=unix() - back_s, model=MODELS[i % 3], cost_tier=tier, reason=reason, candidates=candidates,
            service_tier=self._rng.choice(("default", "priority", "flex")), queued_s=self._rng.random() * 0.2, ttft_s=0.2 * self._rng.random() if back_s else None,
            outcome="completed" if back_s > 2 else None,
        )  # fmt: skip
