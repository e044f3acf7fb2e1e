"""Microseconds a scheduling decision costs, by replicas and by what already waits: `python -m benchmarks.decision`.

A decision is one arrival or one ending together with the `advance` that follows. Each run is a coordinate, printed in its name.
Says nothing of latency under asyncio, nor of whether the decisions are good.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter

from batching.replica import Lifecycle, ReplicaProfile
from batching.request import Outcome, ReplicaId, Request, RequestId
from batching.scheduler import Scheduler
from batching.ticket import LeaseId, Placed
from config.schema import ModelKind, Queue, Scheduling

ROUNDS = 60
SLOTS = 8  # sequences a replica: few, so that a thousand replicas fill within seconds
GPUS = ("H100-80G", "A100-80G", "A10-24G", "L4-24G")


def fleet(replicas: int) -> Scheduler:
    """Mixed GPUs, mixed prices, one model."""
    scheduler = Scheduler(Scheduling(), Queue(max_requests=20_000, max_wait_s=1e6))
    for number in range(replicas):
        profile = ReplicaProfile(
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
        scheduler.add_replica(profile, Lifecycle.READY, 0.0)
    return scheduler


def request(number: int, prompt_tokens: int = 1000) -> Request:
    """Of twenty tenants, with eight chunks of prefix in sixteen families."""
    prefix = tuple(hash((number % 16, depth)) for depth in range(8))
    return Request(
        id=RequestId(str(number)),
        model="m",
        arrived_s=0.0,
        prompt_tokens=prompt_tokens,
        max_output_tokens=256,
        tenant=f"t{number % 20}",
        prefix_hashes=prefix,
        prefix_chunk_tokens=64,
    )


def timed(step: Callable[[int], None]) -> float:
    """Median microseconds of a step."""
    samples = []
    for round_ in range(ROUNDS):
        begin = perf_counter()
        step(round_)
        samples.append(perf_counter() - begin)
    return median(samples) * 1e6


def idle(replicas: int) -> float:
    """Arrivals to a fleet with room everywhere: each decision scores every replica."""
    scheduler = fleet(replicas)

    def arrive(number: int) -> None:
        scheduler.submit(request(number), 0.001 * number)
        scheduler.advance(0.001 * number)

    return timed(arrive)


def full(replicas: int, queued: int) -> tuple[float, float]:
    """(an arrival, an ending) where every slot is taken and `queued` wait."""
    scheduler = fleet(replicas)
    leases: list[LeaseId] = []
    for number in range(SLOTS * replicas + queued):
        scheduler.submit(request(number), 0.0)
        if number % 5000 == 0:
            leases += [d.lease.id for d in scheduler.advance(0.0) if isinstance(d, Placed)]
    leases += [d.lease.id for d in scheduler.advance(0.0) if isinstance(d, Placed)]

    def arrive(number: int) -> None:
        scheduler.submit(request(number), 1.0)
        scheduler.advance(1.0)

    def end(number: int) -> None:
        scheduler.finish(leases[number], 1.0, outcome=Outcome.COMPLETED, output_tokens=100)
        leases.extend(d.lease.id for d in scheduler.advance(1.0) if isinstance(d, Placed))

    return timed(arrive), timed(end)


def main() -> None:
    for replicas in (8, 100, 1000):
        print(f"idle/replicas={replicas}: {idle(replicas):.0f} us an arrival")
        for queued in (0, 10_000):
            arrival, ending = full(replicas, queued)
            print(f"full/replicas={replicas}/queued={queued}: {arrival:.0f} us an arrival, {ending:.0f} us an ending")


if __name__ == "__main__":
    main()
