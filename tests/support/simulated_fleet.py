"""A whole gateway over in-process simulated engines, under virtual time: traffic to send, and what the engines say of it."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from backends.backend import Backend
from backends.simulated.backend import SimulatedBackend
from backends.simulated.bodies import chat_text
from backends.simulated.engine import Engine
from backends.simulated.tokens import expected_text
from config.schema import Config
from tests.support.asgi import Call, chat, post
from tests.support.conditions import at_rest
from tests.support.gateways import Running, gateway_over

CHAT = "/v1/chat/completions"


def fleet_config(
    *names: str, capacity: Mapping[str, int] | None = None, gpu: str = "A100-80G", **sections: Any
) -> Config:
    """Equal simulated replicas of one model `m`."""
    replicas = [
        {"name": name, "backend": "simulated", "models": ["m"], "gpu": {"type": gpu}, "capacity": capacity or {}}
        for name in names
    ]
    return Config.model_validate({"replicas": replicas, **sections})


def engine_of(backend: Backend) -> Engine:
    assert isinstance(backend, SimulatedBackend)
    return backend._api.runner.engine


@dataclass
class Fleet:
    """A gateway at work and the engines behind it."""

    running: Running

    @property
    def engines(self) -> dict[str, Engine]:
        return {name: engine_of(backend) for name, backend in self.running.gateway.backends.items()}

    @property
    def preemptions(self) -> int:
        return sum(engine.statistics().preemptions_total for engine in self.engines.values())

    @property
    def busy(self) -> int:
        """Sequences that any engine runs or holds in its queue."""
        figures = [engine.statistics() for engine in self.engines.values()]
        return sum(figure.running + figure.waiting for figure in figures)

    async def check_rest(self) -> None:
        """Nothing queued, leased, in flight or running, one step after the last event."""
        await asyncio.sleep(1)  # an engine forgets a finished sequence when its next step would begin
        assert at_rest(self.running), self.running.gateway.scheduler
        assert self.busy == 0
        assert all(engine.kv.available_blocks == engine.kv.total_blocks for engine in self.engines.values())


@asynccontextmanager
async def fleet(config: Config, engines: Mapping[str, Backend] | None = None) -> AsyncIterator[Fleet]:
    async with gateway_over(engines or {}, config) as running:
        yield Fleet(running)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One request of a mixed load. `hang_up_s` after `at_s`; None: it stays."""

    name: str
    at_s: float
    body: dict[str, Any]
    hang_up_s: float | None = None

    @property
    def text(self) -> str:
        """What its answer says if it is whole."""
        return expected_text(chat_text(self.body["messages"]), self.body["max_tokens"])


def mixed_load(count: int, *, seed: int, over_s: float, model: str = "m") -> list[Plan]:
    """Streams and documents, short and long, of all service tiers; some hang up somewhere between arrival and end."""
    draw = random.Random(seed)
    plans = []
    for number in range(count):
        words = draw.choice((5, 40, 400, 1500))
        body = chat(
            f"{number}: " + "lorem " * words,
            model=model,
            stream=draw.random() < 0.7,
            max_tokens=draw.choice((1, 8, 60, 200)),
            ignore_eos=True,
            service_tier=draw.choice(("priority", "default", "auto", "flex")),
        )
        hang_up_s = draw.expovariate(1.0) if draw.random() < 0.25 else None
        plans.append(Plan(name=f"r{number:03d}", at_s=draw.uniform(0, over_s), body=body, hang_up_s=hang_up_s))
    return plans


async def play(fleet: Fleet, plans: Sequence[Plan]) -> dict[str, Call]:
    """Sends each at its time, to its end; the calls by name."""
    calls = {
        plan.name: post(fleet.running.app, CHAT, plan.body, headers=[("x-request-id", plan.name)]) for plan in plans
    }
    began_s = asyncio.get_running_loop().time()

    async def one(plan: Plan) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(began_s + plan.at_s - loop.time())
        call = calls[plan.name]
        timer = None if plan.hang_up_s is None else loop.call_later(plan.hang_up_s, call.hang_up)
        await call.run()
        if timer is not None:
            timer.cancel()

    async with asyncio.TaskGroup() as tasks:
        for plan in plans:
            tasks.create_task(one(plan))
    return calls


def contents(call: Call) -> str:
    """What a stream said so far, or a document says."""
    if (call.header("content-type") or "").startswith("text/event-stream"):
        return call.text()
    text: str = json.loads(call.data)["choices"][0]["message"]["content"] if call.data else ""
    return text


def event_log(calls: Mapping[str, Call]) -> Iterator[str]:
    """Every write of every call with its virtual time; `created`, the one wall time, is left out."""
    for name, call in calls.items():
        yield f"{name} {call.status} {call.complete}"
        for at_s, data in call.chunks:
            kept = [part for part in data.decode().split(",") if not part.lstrip("{").startswith('"created"')]
            yield f"{name} {at_s!r} {','.join(kept)}"
