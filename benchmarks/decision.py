"""Microseconds a scheduling decision costs, by replicas and by what already waits: `python -m benchmarks.decision`.

A decision is one arrival or one ending together with the `advance` that follows. Each figure is the least of the medians of some
rounds: what the code costs, without the machine's other work. Says nothing of latency under asyncio, nor of whether the decisions are good.
"""

import argparse
from collections.abc import Callable, Iterable
from statistics import median
from time import perf_counter
from typing import Final, NamedTuple

from batching.replica import Lifecycle, ReplicaProfile
from batching.request import Outcome, ReplicaId, Request, RequestId
from batching.scheduler import Scheduler
from batching.ticket import Lease, Placed
from config.schema import ModelKind, Queue, Scheduling

ROUNDS: Final = 5
STEPS: Final = 40  # a round
SLOTS: Final = 8  # sequences a replica: few, so that a thousand replicas fill within seconds
GPUS: Final = ("H100-80G", "A100-80G", "A10-24G", "L4-24G")
# Replicas whose streams cross a block between two arrivals: an answer of some hundred tokens, in steps of all its replica's streams.
MOVING: Final = 30


class Case(NamedTuple):
    """A fleet, what waits, and what a decision may cost."""

    replicas: int
    queued: int
    aim_us: float


CASES: Final = (Case(1, 0, 30), Case(8, 0, 30), Case(8, 10_000, 30), Case(100, 10_000, 100), Case(1000, 100_000, 1000))


class Driven:
    """A scheduler and who runs on it."""

    def __init__(self, replicas: int) -> None:
        """Mixed GPUs, mixed prices, one model."""
        queue = Queue(max_requests=1_000_000, max_tokens=10**12, max_wait_s=1e6)
        self.scheduler = Scheduler(Scheduling(), queue)
        self.running: list[Lease] = []
        self.now = 0.0
        self._emitted = 0
        for number in range(replicas):
            self.scheduler.add_replica(profile(number), Lifecycle.READY, 0.0)

    def fill(self, requests: Iterable[Request]) -> None:
        """As many as come, all of them streaming when they are placed."""
        for one in requests:
            self.scheduler.submit(one, self.now)
        self.take()
        for lease in self.running:
            self.scheduler.on_first_token(lease.id, self.now)
        self.take()

    def take(self) -> None:
        """The decisions that are due."""
        self.running += [d.lease for d in self.scheduler.advance(self.now) if isinstance(d, Placed)]

    def arrive(self, asked: Request) -> float:
        """Seconds it took."""
        begin = perf_counter()
        self.scheduler.submit(asked, self.now)
        decided = self.scheduler.advance(self.now)
        took_s = perf_counter() - begin
        for decision in decided:
            if isinstance(decision, Placed):
                self.running.append(decision.lease)
                self.scheduler.on_first_token(decision.lease.id, self.now)
        return took_s

    def end(self, number: int) -> float:
        """Seconds that the end of one took, anyone by number."""
        lease = self.running.pop(number * 7919 % len(self.running))
        begin = perf_counter()
        self.scheduler.finish(lease.id, self.now, outcome=Outcome.COMPLETED, output_tokens=100)
        decided = self.scheduler.advance(self.now)
        took_s = perf_counter() - begin
        self.running += [d.lease for d in decided if isinstance(d, Placed)]
        return took_s

    def stream(self, number: int) -> None:
        """Some get tokens, so that what their replicas offer has changed."""
        self._emitted += 16
        for lease in self.running[number % 97 :: max(1, len(self.running) // MOVING)]:
            self.scheduler.on_tokens(lease.id, self._emitted, self.now)
        self.take()


def profile(number: int) -> ReplicaProfile:
    """One of four GPU types and prices."""
    return ReplicaProfile(
        id=ReplicaId(f"r{number:04}"),
        models={"m": ModelKind.CHAT},
        gpu=GPUS[number % 4],
        usd_per_hour=1 + number % 4,
        max_num_seqs=SLOTS,
        max_num_batched_tokens=1_000_000,
        kv_blocks=100_000,
        block_size=16,
        max_model_len=32_768,
    )


def request(number: int, arrived_s: float = 0.0) -> Request:
    """Of twenty tenants, with eight chunks of prefix in sixteen families."""
    return Request(
        id=RequestId(str(number)),
        model="m",
        arrived_s=arrived_s,
        prompt_tokens=1000,
        max_output_tokens=256,
        tenant=f"t{number % 20}",
        prefix_hashes=tuple(hash((number % 16, depth)) for depth in range(8)),
        prefix_chunk_tokens=64,
    )


def least(step: Callable[[int], tuple[float, ...]], before: Callable[[], None] | None = None) -> list[float]:
    """Microseconds, the least of each round's medians, of each thing that a step times."""
    rounds: list[list[float]] = []
    for round_ in range(ROUNDS):
        if before is not None:
            before()
        samples = [step(round_ * STEPS + number) for number in range(STEPS)]
        rounds.append([median(times_s) * 1e6 for times_s in zip(*samples, strict=True)])
    return [min(medians) for medians in zip(*rounds, strict=True)]


def idle(replicas: int) -> list[float]:
    """Arrivals to a fleet with room everywhere."""
    fleets: list[Driven] = []

    def anew() -> None:
        fleets.append(Driven(replicas))
        fleets[-1].arrive(request(10**6))

    def step(number: int) -> tuple[float]:
        fleets[-1].now += 0.001
        return (fleets[-1].arrive(request(number, fleets[-1].now)),)

    return least(step, anew)


def half(replicas: int) -> list[float]:
    """(an arrival, an ending) where half of the slots are taken by streams, which get tokens in between."""
    driven = Driven(replicas)
    driven.fill(map(request, range(SLOTS * replicas // 2)))
    driven.now = 0.5

    def step(number: int) -> tuple[float, float]:
        driven.now += 0.001
        driven.stream(number)
        arrival_s = driven.arrive(request(number, driven.now))
        return arrival_s, driven.end(number)

    return least(step)


def full(replicas: int, queued: int) -> list[float]:
    """(an arrival, an ending and who then gets its place) where every slot is taken and `queued` wait."""
    driven = Driven(replicas)
    driven.fill(map(request, range(SLOTS * replicas + queued)))
    driven.now = 1.0

    def step(number: int) -> tuple[float, float]:
        driven.now += 0.001
        return driven.arrive(request(number, driven.now)), driven.end(number)

    return least(step)


def life(replicas: int) -> list[float]:
    """All that is done for one request on a half-full fleet where nobody waits: it is placed, begins, gets 256 tokens, told of by blocks, and ends."""
    driven = Driven(replicas)
    driven.fill(map(request, range(SLOTS * replicas // 2)))
    driven.now = 0.5
    scheduler = driven.scheduler

    def step(number: int) -> tuple[float]:
        driven.now += 0.001
        driven.stream(number)
        asked, now = request(number, driven.now), driven.now
        begin = perf_counter()
        scheduler.submit(asked, now)
        [placed] = scheduler.advance(now)
        assert isinstance(placed, Placed)
        scheduler.on_first_token(placed.lease.id, now)
        scheduler.advance(now)
        for emitted in range(16, 257, 16):
            scheduler.on_tokens(placed.lease.id, emitted, now)
        scheduler.finish(placed.lease.id, now, outcome=Outcome.COMPLETED, output_tokens=256)
        scheduler.advance(now)
        return (perf_counter() - begin,)

    return least(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for case in CASES:
        aim = f"(aim {case.aim_us:.0f} us a decision)"
        if case.queued:
            arrival, ending = full(case.replicas, case.queued)
            name = f"full/replicas={case.replicas}/queued={case.queued}"
            print(f"{name}: {arrival:.0f} us an arrival, {ending:.0f} us an ending and the next one's placement {aim}")
        if not case.queued or case.replicas > 8:
            if case.replicas * SLOTS > STEPS:  # else most would find it full
                print(
                    f"idle/replicas={case.replicas}: {idle(case.replicas)[0]:.0f} us an arrival and its placement {aim}"
                )
            arrival, ending = half(case.replicas)
            name = f"half/replicas={case.replicas}"
            print(f"{name}: {arrival:.0f} us an arrival and its placement, {ending:.0f} us an ending {aim}", flush=True)
            print(
                f"life/replicas={case.replicas}: {life(case.replicas)[0]:.0f} us one request's life, 16 blocks of tokens"
            )


if __name__ == "__main__":
    main()
