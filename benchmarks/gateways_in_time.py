"""One fleet behind 1, 2, 4 and 8 gateways, in virtual time: what sharing costs in goodput, in the first token's time and in prefix hits.

    python -m benchmarks.gateways_in_time [--rate 50] [--seconds 20]
    python -m benchmarks.gateways_in_time --conversations 5 --replicas 16 [--without-digests]

Whole gateways in one loop, over the same simulated engines and a book some milliseconds away. Requests arrive at random (Poisson) and go to any
gateway: prompts of their own, or with --conversations turns of conversations, of which each goes to any gateway anew. Goodput: output tokens
a second of requests whose first token came within the objective. Prefix hits: of the prompts' tokens, those that the engines had in their caches.
"""

import argparse
import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from backends.simulated.backend import SimulatedBackend
from backends.simulated.options import EngineOptions
from benchmarks.conversations import Conversation, conversations
from tests.support.asgi import Call, chat, post
from tests.support.fake_book import FakeBook, Store
from tests.support.gateways import Running, gateway_over
from tests.support.simulated_fleet import CHAT, engine_of, fleet_config
from tests.support.virtual_time import run_virtual

TOKENS = 40
OBJECTIVE_S = 1.0
SETTLE_S = 4.0  # before the first request: a new book gives nothing for a lease
LOOK_S = 0.05  # between two looks at the engines


@dataclass
class Found:
    """Of one run."""

    first_s: list[float] = field(default_factory=list)
    failed: int = 0
    most: int = 0
    preemptions: int = 0
    reports: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def hit_ratio(self) -> float:
        return self.cached_tokens / max(1, self.prompt_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked for, whatever the number of gateways."""

    replicas: int
    sequences: int  # of each at once
    seconds: float
    rate: float  # requests a second, of all
    words: int  # of the longest prompt
    conversations: float  # a second, instead of prompts that have nothing in common
    systems: int
    system_words: int
    pause_s: float
    kv_blocks: int | None
    digests: bool


async def one(number: int, load: Load) -> Found:
    """`number` gateways; as many requests whatever the number."""
    store, found = Store(), Found()
    options = EngineOptions(
        model="m", gpu="A100-80G", max_num_seqs=load.sequences, speed=0.25, kv_blocks=load.kv_blocks
    )
    engines = {f"e{i}": SimulatedBackend(options) for i in range(load.replicas)}
    async with AsyncExitStack() as stack:
        all_ = []
        for i in range(number):
            redis = {"url": "redis://book", "name": f"g{i}", "share_prefixes": load.digests}
            config = fleet_config(
                *engines, capacity={"max_num_seqs": load.sequences}, redis=redis if number > 1 else {},
            )  # fmt: skip
            book = FakeBook(store, latency_s=0.001)
            all_.append(await stack.enter_async_context(gateway_over(engines, config, book=book)))
        await asyncio.sleep(SETTLE_S)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_watch(engines, found))
            async with asyncio.TaskGroup() as asking:
                if load.conversations:
                    _converse(all_, found, load, asking)
                else:
                    await _each_alone(all_, found, load, asking)
            watching.cancel()
        for engine in engines.values():
            figures = engine_of(engine).statistics()
            found.preemptions += figures.preemptions_total
            found.prompt_tokens += figures.prefix_queries_total
            found.cached_tokens += figures.prefix_hits_total
        found.reports = store.reports
    return found


async def _watch(engines: Mapping[str, SimulatedBackend], found: Found) -> None:
    while True:
        figures = [engine_of(engine).statistics() for engine in engines.values()]
        found.most = max(found.most, *(figure.running + figure.waiting for figure in figures))
        await asyncio.sleep(LOOK_S)


async def _each_alone(all_: list[Running], found: Found, load: Load, asking: asyncio.TaskGroup) -> None:
    random_, left_s = random.Random(1), load.seconds
    while left_s > 0:
        gateway, words = random_.choice(all_), random_.randint(20, load.words)
        prompt = " ".join(str(words + i) for i in range(words))
        asking.create_task(_ask(gateway, found, chat(prompt)))
        wait_s = random_.expovariate(load.rate)
        left_s -= wait_s
        await asyncio.sleep(wait_s)


def _converse(all_: list[Running], found: Found, load: Load, asking: asyncio.TaskGroup) -> None:
    drawn = conversations(
        load.conversations, load.seconds,
        systems=load.systems, system_words=load.system_words, pause_s=load.pause_s,
    )  # fmt: skip
    for number, conversation in enumerate(drawn):
        asking.create_task(_talk(all_, found, conversation, random.Random(number)))


async def _talk(all_: list[Running], found: Found, conversation: Conversation, random_: random.Random) -> None:
    """One client: any gateway at each turn, as a load balancer has it."""
    await asyncio.sleep(conversation.at_s)
    messages = [{"role": "system", "content": conversation.system}]
    for turn in conversation.turns:
        await asyncio.sleep(turn.after_s)
        messages.append({"role": "user", "content": turn.text})
        call = await _ask(random_.choice(all_), found, {"model": "m", "messages": list(messages)})
        if call is None:
            return
        messages.append({"role": "assistant", "content": call.text()})


async def _ask(running: Running, found: Found, body: dict[str, Any]) -> Call | None:
    """None: it was not served."""
    began_s = asyncio.get_running_loop().time()
    whole = {**body, "stream": True, "max_tokens": TOKENS, "ignore_eos": True}
    call: Call = await post(running.app, CHAT, whole).run()
    if call.status != 200 or not call.complete:
        found.failed += 1
        return None
    found.first_s.append(
        next(at for at, data in call.chunks if b'"content":"' in data and b'"content":""' not in data) - began_s
    )
    return call


def asked_for(words: Sequence[str] | None = None) -> tuple[Load, list[int]]:
    """(the load, numbers of gateways) that a command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=16, help="that each replica runs at once")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second, of all")
    parser.add_argument("--words", type=int, default=600, help="of the longest prompt")
    parser.add_argument("--conversations", type=float, default=0.0, help="that begin a second, instead")
    parser.add_argument("--systems", type=int, default=8, help="different system prompts")
    parser.add_argument("--system-words", type=int, default=300)
    parser.add_argument("--pause-s", type=float, default=4.0, help="between an answer and the next turn")
    parser.add_argument("--kv-blocks", type=int, help="of each engine  [default: what fits an A100 of 80 GB]")
    parser.add_argument("--without-digests", action="store_true", help="each gateway believes its own placements only")
    parser.add_argument("--gateways", type=int, action="append")
    asked = parser.parse_args(words)
    load = Load(
        replicas=asked.replicas, sequences=asked.sequences, seconds=asked.seconds, rate=asked.rate, words=asked.words,
        conversations=asked.conversations, systems=asked.systems, system_words=asked.system_words,
        pause_s=asked.pause_s, kv_blocks=asked.kv_blocks, digests=not asked.without_digests,
    )  # fmt: skip
    return load, asked.gateways or [1, 2, 4, 8]


def main() -> None:
    """A line for each number of gateways."""
    load, numbers = asked_for()
    for number in numbers:
        _show(number, load, run_virtual(one(number, load)))


def _show(number: int, load: Load, found: Found) -> None:
    times = sorted(found.first_s)
    good = sum(time_s <= OBJECTIVE_S for time_s in times)
    print(
        f"{number} gateways: {len(times)} served, {found.failed} failed, goodput {good * TOKENS / load.seconds:.0f} tok/s "
        f"({good / max(1, len(times)):.3f} in time), first token p50 {times[len(times) // 2]:.3f} s, "
        f"p99 {times[int(0.99 * len(times))]:.3f} s; prefix hits {found.hit_ratio:.3f}; at most {found.most} of {load.sequences} "
        f"sequences on an engine, {found.preemptions} preemptions, {found.reports / (load.seconds + SETTLE_S):.0f} reports/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
