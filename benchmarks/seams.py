"""How long clients wait when a replica dies under them: `python -m benchmarks.seams`. Virtual time, whole gateway, simulated engines.

One of four replicas dies with its share of the streams. Beside the gaps stands what its crowd costs to read again at best: the same
prompts and answers so far, spread over the other three while these are idle.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from backends.backend import ConnectFailed, EngineCall, EngineReply, ProbeResult
from backends.simulated.backend import SimulatedBackend
from batching.request import ReplicaId
from config.schema import Config, ModelKind
from router.engines import engine_options
from tests.support.asgi import Call, chat, post
from tests.support.gateways import gateway_over
from tests.support.simulated_fleet import CHAT, fleet_config
from tests.support.virtual_time import run_virtual

_WARM_S: Final = 18.0
_AFTER_S: Final = 10.0
_NAMES: Final = ("a", "b", "c", "d")


class _Mortal:
    def __init__(self, config: Config, name: str) -> None:
        options = engine_options(next(r for r in config.replicas if r.name == name))
        self.engine = SimulatedBackend(options, {"m": ModelKind.CHAT})
        self._dead = False

    async def die(self) -> None:
        self._dead = True
        await self.engine.aclose()

    async def send(self, call: EngineCall) -> EngineReply:
        self._alive()
        return await self.engine.send(call)

    async def probe(self) -> ProbeResult:
        self._alive()
        return await self.engine.probe()

    async def aclose(self) -> None:
        await self.engine.aclose()

    def _alive(self) -> None:
        if self._dead:
            raise ConnectFailed("the machine is gone")


def body(name: str, words: int, tokens: int) -> dict[str, Any]:
    return chat(f"{name} " + "penstock " * words, stream=True, max_tokens=tokens, ignore_eos=True)


async def at_best(config: Config, sizes: Sequence[int]) -> float:
    """Seconds until the last of so many prompts, sent at once to three idle replicas in turn, has its first token."""
    engines = [_Mortal(config, name) for name in _NAMES[1:]]
    loop = asyncio.get_running_loop()

    async def first(number: int, size: int) -> float:
        fields = {"model": "m", "prompt": [number * 100_000 + n for n in range(size)], "stream": True, "max_tokens": 2}
        call = EngineCall(
            request_id=f"r{number}", path="/v1/completions", body=json.dumps(fields).encode(), stream=True
        )
        reply = await engines[number % len(engines)].send(call)
        async for _ in reply.body():
            break
        at_s = loop.time()
        await reply.aclose()
        return at_s

    began_s = loop.time()
    times = await asyncio.gather(*(first(number, size) for number, size in enumerate(sizes)))
    for engine in engines:
        await engine.aclose()
    return max(times) - began_s


def measured(said: argparse.Namespace) -> tuple[list[float], float, int]:
    """The gaps of those that were under way where it died, the best that could be, and how many errors there were."""
    config = fleet_config(*_NAMES, gpu=said.gpu, scheduling={"objectives": {"tpot_s": 0.5, "ttft_s": 3}})
    engines = {name: _Mortal(config, name) for name in _NAMES}
    calls: list[Call] = []

    async def main() -> tuple[list[float], float, int]:
        loop = asyncio.get_running_loop()
        over = False

        async def client(number: int, app: Any) -> None:
            turn = 0
            while not over:
                calls.append(post(app, CHAT, body(f"client {number}, turn {turn}", said.words, said.tokens)))
                await calls[-1].run()
                turn += 1

        async with gateway_over(engines, config) as running, asyncio.TaskGroup() as tasks:
            for number in range(said.streams):
                tasks.create_task(client(number, running.app))
            await asyncio.sleep(_WARM_S)
            here = running.gateway.dispatcher.moves.on(ReplicaId("a"))
            sizes = [exchange.timeline.output_tokens + said.words * 2 + 20 for exchange in here]
            died_s = loop.time()
            await engines["a"].die()
            await asyncio.sleep(_AFTER_S)
            over = True
        gaps = sorted(
            (
                after - before
                for call in calls
                for before, after in pairwise([at for at, _ in call.chunks])
                if before <= died_s < after
            ),
            reverse=True,
        )[: len(sizes)]
        errors = sum(call.status != 200 or call.events()[-1] != "[DONE]" for call in calls)
        return gaps, await at_best(config, sizes), errors

    return run_virtual(main())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seams", description=__doc__.split("\n")[0])
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--gpu", default="L4-24G")
    parser.add_argument("--words", type=int, default=60, help="of a prompt")
    parser.add_argument("--tokens", type=int, default=200, help="of an answer")
    gaps, best_s, errors = measured(parser.parse_args(arguments))
    p50, p99 = gaps[len(gaps) // 2], gaps[len(gaps) // 100]
    print(
        f"streams moved {len(gaps)}, errors {errors}; gap p50 {p50:.3f} s, p99 {p99:.3f} s; read again at best {best_s:.3f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
