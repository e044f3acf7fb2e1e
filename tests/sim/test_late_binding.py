"""Load far above capacity: the queue is the gateway's, the engines hold what they can run, and preempt nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest

from tests.support.simulated_calls import call, read
from tests.support.simulated_fleet import CHAT, Fleet, Plan, fleet, fleet_config, mixed_load, play
from tests.support.virtual_time import run_virtual

# KV for some 6,400 tokens an engine: two long prompts and a few short ones; sequence slots in plenty.
TIGHT = {"max_num_seqs": 64, "kv_blocks": 400, "max_num_batched_tokens": 2048, "max_model_len": 4096}
SAMPLE_S = 0.01
# `scheduling.prefill_chunks` x `max_num_batched_tokens`: what may be admitted and not yet prefilled, so two engine steps.
PREFILL_BUDGET_TOKENS = 2 * TIGHT["max_num_batched_tokens"]
PREFILL_S = 0.25  # for so much on an A100 at 16 GFLOP a token of an 8B model, half-way to a peak nobody reaches


@dataclass
class Pressure:
    """The most that was ever seen in any engine."""

    waiting: int = 0
    waiting_tokens: int = 0
    waited_s: float = 0.0
    preemptions: int = 0
    gateway_depth: int = 0
    empty_ratio: float = 0.0
    _samples: list[int] = field(default_factory=list)

    def sample(self, subject: Fleet) -> None:
        now = asyncio.get_running_loop().time()
        for engine in subject.engines.values():
            waiting = [sequence for _, sequence in engine._waiting]
            self._samples.append(len(waiting))
            self.waiting = max(self.waiting, len(waiting))
            self.waiting_tokens = max(self.waiting_tokens, sum(sequence.prompt_tokens for sequence in waiting))
            self.waited_s = max([self.waited_s, *(now - s.arrived_s for s in waiting if not s.preemptions)])
        depth = sum(row.depth for row in subject.running.gateway.scheduler.queue_statistics(now))
        self.gateway_depth = max(self.gateway_depth, depth)
        self.preemptions = subject.preemptions
        self.empty_ratio = self._samples.count(0) / len(self._samples)


def load() -> list[Plan]:
    """500 streams within 4 seconds; the fleet serves some tens a second."""
    plans = mixed_load(500, seed=3, over_s=4.0)
    return [replace(plan, body={**plan.body, "stream": True}, hang_up_s=None) for plan in plans]


def pressure_of(send: Callable[[Fleet], Awaitable[object]]) -> Pressure:
    async def main() -> Pressure:
        pressure = Pressure()
        async with fleet(fleet_config("a", "b", capacity=TIGHT, queue={"max_wait_s": 600.0})) as subject:

            async def watch() -> None:
                while True:
                    pressure.sample(subject)
                    await asyncio.sleep(SAMPLE_S)

            async with asyncio.TaskGroup() as tasks:
                watcher = tasks.create_task(watch())
                await send(subject)
                watcher.cancel()
            await subject.check_rest()
        return pressure

    return run_virtual(main())


async def straight_to_the_engines(subject: Fleet) -> None:
    """Round-robin without a look, as a plain load balancer would."""
    backends = list(subject.running.gateway.backends.values())

    async def one(number: int, plan: Plan) -> None:
        await asyncio.sleep(plan.at_s)
        reply = await backends[number % len(backends)].send(call(CHAT, plan.body, plan.name))
        await read(reply)
        await reply.aclose()

    async with asyncio.TaskGroup() as tasks:
        for number, plan in enumerate(load()):
            tasks.create_task(one(number, plan))


@pytest.fixture(scope="module")
def ours() -> Pressure:
    return pressure_of(lambda subject: play(subject, load()))


@pytest.fixture(scope="module")
def naive() -> Pressure:
    return pressure_of(straight_to_the_engines)


def test_the_gateway_holds_the_queue(ours: Pressure, naive: Pressure) -> None:
    """A sequence waits in an engine for the step under way and its share of two chunks of prefill, nothing else.

    So what waits there is never more than the prefill budget in tokens, never longer than it takes to compute that, and nothing
    at nearly all times, while hundreds wait in the gateway; straight dispatch has the same hundreds wait in the engines.
    """
    assert ours.waiting_tokens <= PREFILL_BUDGET_TOKENS
    assert ours.waited_s <= PREFILL_S
    assert ours.empty_ratio > 0.9
    assert ours.gateway_depth > 200
    assert naive.waiting_tokens > 10 * PREFILL_BUDGET_TOKENS
    assert naive.waited_s > 10 * PREFILL_S


def test_nothing_is_preempted(ours: Pressure, naive: Pressure) -> None:
    """KV blocks are reserved before a request is sent, so no work is thrown away; straight dispatch throws much away."""
    assert ours.preemptions == 0
    assert naive.preemptions > 20
