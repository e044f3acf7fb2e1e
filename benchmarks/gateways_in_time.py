"""One fleet behind 1, 2, 4 and 8 gateways, in virtual time: what sharing costs in goodput and in the first token's time.

    python -m benchmarks.gateways_in_time [--rate 50] [--seconds 20]

Whole gateways in one loop, over the same simulated engines and a book some milliseconds away; requests arrive at random (Poisson) and go to any
gateway. Goodput: output tokens a second of requests whose first token came within the objective.
"""

import argparse
import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from backends.simulated.backend import SimulatedBackend
from backends.simulated.options import EngineOptions
from tests.support.asgi import Call, chat, post
from tests.support.fake_book import FakeBook, Store
from tests.support.gateways import Running, gateway_over
from tests.support.simulated_fleet import CHAT, engine_of, fleet_config
from tests.support.virtual_time import run_virtual

SEQUENCES = 16
TOKENS = 40
OBJECTIVE_S = 1.0
SETTLE_S = 4.0  # before the first request: a new book gives nothing for a lease


@dataclass
class Found:
    """Of one run."""

    first_s: list[float] = field(default_factory=list)
    failed: int = 0
    most: int = 0
    preemptions: int = 0
    reports: int = 0


async def one(number: int, replicas: int, rate: float, seconds: float, words_of_longest: int) -> Found:
    """`number` gateways; as many requests whatever the number."""
    store, found = Store(), Found()
    options = EngineOptions(model="m", gpu="A100-80G", max_num_seqs=SEQUENCES, speed=0.25)
    engines = {f"e{i}": SimulatedBackend(options) for i in range(replicas)}
    async with AsyncExitStack() as stack:
        all_ = []
        for i in range(number):
            config = fleet_config(
                *engines,
                capacity={"max_num_seqs": SEQUENCES},
                redis={"url": "redis://book", "name": f"g{i}"} if number > 1 else {},
            )
            book = FakeBook(store, latency_s=0.001)
            all_.append(await stack.enter_async_context(gateway_over(engines, config, book=book)))
        await asyncio.sleep(SETTLE_S)
        random_ = random.Random(1)
        async with asyncio.TaskGroup() as tasks:
            left_s = seconds
            while left_s > 0:
                tasks.create_task(_ask(random_.choice(all_), found, random_.randint(20, words_of_longest)))
                wait_s = random_.expovariate(rate)
                left_s -= wait_s
                await asyncio.sleep(wait_s)
                figures = [engine_of(engine).statistics() for engine in engines.values()]
                found.most = max(found.most, *(figure.running + figure.waiting for figure in figures))
        found.preemptions = sum(engine_of(engine).statistics().preemptions_total for engine in engines.values())
        found.reports = store.reports
    return found


async def _ask(running: Running, found: Found, words: int) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    prompt = " ".join(str(words + i) for i in range(words))
    call: Call = await post(running.app, CHAT, chat(prompt, stream=True, max_tokens=TOKENS, ignore_eos=True)).run()
    if call.status != 200 or not call.complete:
        found.failed += 1
        return
    found.first_s.append(
        next(at for at, data in call.chunks if b'"content":"' in data and b'"content":""' not in data) - began_s
    )


def main() -> None:
    """A line for each number of gateways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second, of all")
    parser.add_argument("--words", type=int, default=600, help="of the longest prompt")
    parser.add_argument("--gateways", type=int, action="append")
    asked = parser.parse_args()
    for number in asked.gateways or [1, 2, 4, 8]:
        found = run_virtual(one(number, asked.replicas, asked.rate, asked.seconds, asked.words))
        times = sorted(found.first_s)
        good = sum(time_s <= OBJECTIVE_S for time_s in times)
        print(
            f"{number} gateways: {len(times)} served, {found.failed} failed, goodput {good * TOKENS / asked.seconds:.0f} tok/s "
            f"({good / max(1, len(times)):.3f} in time), first token p50 {times[len(times) // 2]:.3f} s, "
            f"p99 {times[int(0.99 * len(times))]:.3f} s; at most {found.most} of {SEQUENCES} sequences on an engine, "
            f"{found.preemptions} preemptions, {found.reports / (asked.seconds + SETTLE_S):.0f} reports/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
