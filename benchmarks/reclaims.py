"""What spot reclaims cost a fleet that is half spot: `python -m benchmarks.reclaims --spot FILE`.

The whole gateway over simulated engines, in virtual time: the busiest stretch of a capacity trace, compressed, takes spot machines
away with a notice and gives them back. Three runs of the same requests: nothing is taken (`calm`); the notices are told and streams move
(`moved`); nobody is told, streams do not move, and clients send again whatever broke (`again`).
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from backends.backend import ConnectFailed, EngineCall, EngineReply, ProbeResult
from backends.simulated.backend import SimulatedBackend
from batching.request import ReplicaId
from config.schema import Config, ModelKind
from router.engines import engine_options
from router.gateway import Gateway
from router.simulation.spot import SpotTrace, read_spot
from router.standing import Kind, Standing
from tests.support.asgi import Call, chat, post
from tests.support.gateways import gateway_over
from tests.support.virtual_time import run_virtual

NOTICE_S: Final = 30.0
TTFT_S, TPOT_S = 2.0, 0.1  # what is in time
_AGAIN: Final = 5  # a client sends so often


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """One spot machine, away for a while. Seconds."""

    place: int
    at_s: float
    back_s: float


@dataclass(slots=True)
class Seen:
    """What clients and engines saw."""

    requests: int = 0
    broken: int = 0  # that had begun
    refused: int = 0
    in_time: int = 0
    recomputed_tokens: int = 0
    moves: int = 0
    gaps_s: list[float] = field(default_factory=list)


class Machine:
    """A simulated engine whose machine goes and comes."""

    def __init__(self, config: Config, name: str) -> None:
        self._options = engine_options(next(r for r in config.replicas if r.name == name))
        self._engine: SimulatedBackend | None = SimulatedBackend(self._options, {"m": ModelKind.CHAT})

    async def go(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.aclose()

    def come(self) -> None:
        self._engine = SimulatedBackend(self._options, {"m": ModelKind.CHAT})

    async def send(self, call: EngineCall) -> EngineReply:
        return await self._there().send(call)

    async def probe(self) -> ProbeResult:
        return await self._there().probe()

    async def aclose(self) -> None:
        await self.go()

    def _there(self) -> SimulatedBackend:
        if self._engine is None:
            raise ConnectFailed("the machine is gone")
        return self._engine


def busiest(trace: SpotTrace, ticks: int) -> SpotTrace:
    """The stretch in which most is taken away."""
    lost = [max(0, before - now) for before, now in pairwise(trace.held)]
    at = max(range(max(1, len(trace.held) - ticks)), key=lambda start: sum(lost[start : start + ticks]))
    return SpotTrace(gap_s=trace.gap_s, held=trace.held[at : at + ticks])


def takes(trace: SpotTrace, replicas: int) -> list[Take]:
    """The first of them stay; what is away at first is taken for there until it has been once."""
    found = []
    for place in range(replicas):
        for (_, end_s), (back_s, _) in pairwise([*trace.there(place, replicas), (float("inf"), 0.0)]):
            found.append(Take(place=place, at_s=end_s, back_s=back_s))
    return sorted((take for take in found if take.at_s < float("inf")), key=lambda take: take.at_s)


def config(replicas: int, gpu: str, *, moves: bool) -> Config:
    fleet = [
        {
            "name": f"{'spot' if number < replicas // 2 else 'kept'}{number}",
            "backend": "simulated",
            "models": ["m"],
            "gpu": {"type": gpu},
            "cost": {"tier": "spot", "usd_per_hour": 1.2}
            if number < replicas // 2
            else {"tier": "on_demand", "usd_per_hour": 2.5},
        }
        for number in range(replicas)
    ]
    objectives = {"ttft_s": TTFT_S, "tpot_s": TPOT_S}
    mode = "exact" if moves else "off"
    return Config.model_validate(
        {"replicas": fleet, "migration": {"mode": mode}, "scheduling": {"objectives": objectives}}
    )


async def client(app: Any, body: dict[str, Any], seen: Seen) -> None:
    """Sends, and sends again what broke; what was read and said before is then recomputed."""
    loop = asyncio.get_running_loop()
    seen.requests += 1
    began_s, prompt = loop.time(), len(body["messages"][0]["content"]) // 5
    for attempt in range(_AGAIN):
        call = await post(app, "/v1/chat/completions", body).run()
        if call.status == 200 and call.events()[-1] == "[DONE]":
            seen.in_time += attempt == 0 and _in_time(call, began_s, seen)
            return
        if call.status != 200:  # nothing was done for it
            seen.refused += 1
        else:
            seen.broken += 1
            seen.recomputed_tokens += prompt + len(call.events())
        await asyncio.sleep(0.1)


def _in_time(call: Call, began_s: float, seen: Seen) -> bool:
    times = [time_s for time_s, _ in call.chunks]
    seen.gaps_s.append(max((after - before for before, after in pairwise(times)), default=0.0))
    tokens = len(call.events()) - 2
    return times[0] - began_s <= TTFT_S and (times[-1] - times[0]) / max(1, tokens) <= TPOT_S


async def reclaim(gateway: Gateway, machine: Machine, name: str, take: Take, *, told: bool) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, take.at_s - NOTICE_S - loop.time()))
    if told:
        word = Standing(kind=Kind.RECLAIM, provider="aws", ids=(f"{name}-{take.at_s}",), deadline_s=take.at_s)
        gateway.farewells.join(ReplicaId(name), word)
    await asyncio.sleep(take.at_s - loop.time())
    await machine.go()
    if take.back_s < float("inf"):
        await asyncio.sleep(take.back_s - loop.time())
        machine.come()


def play(said: argparse.Namespace, taken: Sequence[Take], *, told: bool) -> Seen:
    settings = config(said.replicas, said.gpu, moves=told)
    machines = {replica.name: Machine(settings, replica.name) for replica in settings.replicas}
    names = list(machines)
    seen = Seen()

    async def main() -> None:
        draw = random.Random(said.seed)
        async with gateway_over(machines, settings) as running, asyncio.TaskGroup() as tasks:
            for take in taken:
                name = names[take.place]
                tasks.create_task(reclaim(running.gateway, machines[name], name, take, told=told))
            loop = asyncio.get_running_loop()
            number = 0
            while loop.time() < said.ticks * said.tick_s:
                words = "word " * int(draw.lognormvariate(5.3, 0.8))
                tokens = min(1500, int(draw.lognormvariate(5.3, 0.7)) + 1)
                body = chat(f"{number} {words}", stream=True, max_tokens=tokens, ignore_eos=True)
                tasks.create_task(client(running.app, body, seen))
                number += 1
                await asyncio.sleep(draw.expovariate(said.rate))
        registry = running.gateway.registry
        seen.recomputed_tokens += int(
            registry.get_sample_value("penstock_recomputed_tokens_total", {"model": "m"}) or 0
        )
        moved = {"model": "m", "action": "resumed", "mode": "exact"}
        seen.moves = int(registry.get_sample_value("penstock_stream_interruptions_total", moved) or 0)

    run_virtual(main())
    return seen


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reclaims", description=__doc__.split("\n")[0])
    parser.add_argument("--spot", type=Path, required=True, help="a capacity trace: JSON with `data` and `gap_seconds`")
    parser.add_argument("--ticks", type=int, default=30, help="of the trace, the busiest so many in a row")
    parser.add_argument("--tick-s", type=float, default=10.0, help="how long a tick is made to take")
    parser.add_argument("--replicas", type=int, default=4, help="half of them spot")
    parser.add_argument("--gpu", default="A100-80G")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    said = parser.parse_args(arguments)
    trace = read_spot(said.spot)
    taken = takes(SpotTrace(gap_s=said.tick_s, held=busiest(trace, said.ticks).held), said.replicas // 2)
    runs = {
        "calm": play(said, (), told=True),
        "moved": play(said, taken, told=True),
        "again": play(said, taken, told=False),
    }
    figures = {name: _figures(seen) for name, seen in runs.items()}
    again = figures["again"]["recomputed_tokens"]
    verdict = {
        "machines_taken": len(taken),
        "recomputed_of_again": round(figures["moved"]["recomputed_tokens"] / again, 3) if again else None,
        "attainment_loss_points": round(100 * (figures["calm"]["attainment"] - figures["moved"]["attainment"]), 2),
    }
    rows = list(figures["calm"])
    print("| | " + " | ".join(figures) + " |\n|---|" + "---:|" * len(figures))
    for row in rows:
        print(f"| {row} | " + " | ".join(str(run[row]) for run in figures.values()) + " |")
    print(verdict)
    if said.json:
        said.json.write_text(json.dumps({"runs": figures, **verdict}, indent=1) + "\n")
    return 0


def _figures(seen: Seen) -> dict[str, float]:
    gaps = sorted(seen.gaps_s)
    return {
        "requests": seen.requests,
        "broken": seen.broken,
        "refused": seen.refused,
        "attainment": round(seen.in_time / seen.requests, 4),
        "moves": seen.moves,
        "recomputed_tokens": seen.recomputed_tokens,
        "longest_gap_p99_s": round(gaps[int(0.99 * (len(gaps) - 1))], 3) if gaps else 0.0,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
