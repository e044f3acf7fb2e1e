"""Microseconds that a record of the decision ledger costs, by candidates: `python -m benchmarks.ledger`.

Measured alone, on the offers of a real decision, and as what a whole decision takes with and without a ledger.
The least of many samples: what the code costs, without the machine's other work.
"""

from collections.abc import Callable
from time import perf_counter

from batching.decisions import Decisions
from batching.fleet import Fleet
from batching.ledger import LeaseRecord
from batching.placement import Need, place
from batching.replica import Lifecycle, ReplicaProfile
from batching.request import Outcome, ReplicaId, Request, RequestId
from batching.scheduler import Scheduler
from batching.ticket import Lease, LeaseId, Placed
from config.schema import ModelKind, Queue, Scheduling

ROUNDS, INNER = 200, 100


def profile(number: int) -> ReplicaProfile:
    """One of four GPU types and prices."""
    return ReplicaProfile(
        id=ReplicaId(f"r{number:04}"),
        models={"m": ModelKind.CHAT},
        gpu=("H100-80G", "A100-80G", "A10-24G", "L4-24G")[number % 4],
        usd_per_hour=1 + number % 4,
        max_num_seqs=100_000,
        max_num_batched_tokens=1_000_000,
        kv_blocks=10_000_000,
        block_size=16,
        max_model_len=32_768,
    )


def request(number: int) -> Request:
    return Request(
        id=RequestId(str(number)),
        model="m",
        arrived_s=0.0,
        prompt_tokens=1000,
        max_output_tokens=256,
        prefix_hashes=tuple(range(16)),
        prefix_chunk_tokens=64,
    )


def least(step: Callable[[], None], inner: int = INNER) -> float:
    """Least microseconds of one call."""
    samples = []
    for _ in range(ROUNDS):
        begin = perf_counter()
        for _ in range(inner):
            step()
        samples.append((perf_counter() - begin) / inner)
    return min(samples) * 1e6


def alone(replicas: int) -> tuple[float, float]:
    """(a placement noted, a placement noted and its end)."""
    fleet = Fleet(Scheduling(), stale_after_s=10.0)
    for number in range(replicas):
        fleet.add(profile(number), Lifecycle.READY)
    offers = fleet.offers("m")
    asked = request(1)
    need = Need(
        request=asked, ticket=1, forecast_tokens=256, expected_tokens=200, ttft_objective_s=1.0, tpot_objective_s=0.1
    )
    placement = place(need, offers)
    assert placement is not None
    lease = LeaseRecord(
        lease=Lease(id=LeaseId(1), replica=placement.replica, request=asked), placed_s=0.0, rank=1, block_size=16,
        prefill_tokens=1000, believed_cached_tokens=0, forecast_tokens=256, ttft_s=0.1, tpot_s=0.01,
        first_token_s=0.1, last_token_s=2.0, emitted_tokens=200,
    )  # fmt: skip
    decisions = Decisions()

    def note() -> None:
        decisions.placed(lease, need, offers, placement, 0.0, hold=True)

    def whole() -> None:
        note()
        decisions.finished(lease, 2.0, Outcome.COMPLETED, prompt_tokens=1000, cached_tokens=0, output_tokens=200)

    return least(note), least(whole)


def decision(replicas: int, decisions: Decisions | None) -> float:
    """An arrival and its end, everything included."""
    scheduler = Scheduler(Scheduling(), Queue(), decisions=decisions)
    for number in range(replicas):
        scheduler.add_replica(profile(number), Lifecycle.READY, 0.0)
    asked = request(1)

    def step() -> None:
        scheduler.submit(asked, 0.0)
        for decided in scheduler.advance(0.0):
            assert isinstance(decided, Placed)
            scheduler.finish(decided.lease.id, 0.0, outcome=Outcome.COMPLETED, output_tokens=100)
        scheduler.advance(0.0)

    return least(step, inner=10)


def main() -> None:
    for replicas in (1, 8, 32, 100):
        noted, whole = alone(replicas)
        without, with_ledger = decision(replicas, None), decision(replicas, Decisions())
        print(
            f"ledger/replicas={replicas}: {noted:.1f} us a placement, {whole:.1f} us with its end; "
            f"a decision and its end {without:.0f} us without, {with_ledger:.0f} us with"
        )


if __name__ == "__main__":
    main()
