"""Microseconds that knowing who pays costs: `python -m benchmarks.money`.

Of one request's life at its replica's meter (placed, prefilled, a KV block more, ended), of its entry in the book of usage, and of a look
into the till before a scrape. The least of many samples: what the code costs, without the machine's other work.
"""

from batching.bill import Account, Bill
from batching.ledger import LeaseRecord
from batching.meter import Meter, Till
from batching.replica import Lifecycle, ReplicaProfile
from batching.request import ReplicaId, Request, RequestId
from batching.ticket import Lease, LeaseId
from benchmarks.ledger import least
from config.gpus import step_model
from config.schema import ModelKind
from config.usage import Usage
from router.usage_book import Entry, Group, Pending, UsageBook, Used

_ACCOUNTS = tuple(Account("m", tier, "anonymous") for tier in ("priority", "default", "flex", "batch"))
_MOMENT_S = 1e-5


def meter(number: int = 0) -> Meter:
    """Of a replica that is there."""
    profile = ReplicaProfile(id=ReplicaId(f"r{number}"), models={"m": ModelKind.CHAT}, usd_per_hour=3.0)
    made = Meter(profile)
    made.weigh_by(step_model("H100-80G"), batch=32, chunk_tokens=2048)
    made.begin(profile, Lifecycle.READY, (), 0.0)
    return made


def record(number: int) -> LeaseRecord:
    """A thousand tokens of prompt, nothing said yet."""
    call = Request(
        id=RequestId(str(number)), model="m", arrived_s=0.0, prompt_tokens=1000, bill=Bill(_ACCOUNTS[number % 4])
    )
    return LeaseRecord(
        lease=Lease(id=LeaseId(number), replica=ReplicaId("r0"), request=call), placed_s=0.0, rank=1, block_size=16,
        prefill_tokens=1000, believed_cached_tokens=0, forecast_tokens=256, ttft_s=0.1, tpot_s=0.01,
    )  # fmt: skip


def life(running: int) -> tuple[float, float]:
    """(placed, prefilled and ended; a block more) beside so many others."""
    one = meter()
    for number in range(running):
        one.open(record(number), 0.0)
    mine, grows, clock = record(running), record(running + 1), [0.0]
    one.open(grows, 0.0)

    def whole() -> None:
        now = clock[0]
        mine.prefill_tokens = 1000
        one.open(mine, now)
        mine.prefill_tokens = 0
        one.weigh(mine, now + _MOMENT_S)
        one.close(mine, now + 2 * _MOMENT_S)
        clock[0] = now + 3 * _MOMENT_S

    def block() -> None:
        grows.emitted_tokens += 16
        clock[0] += _MOMENT_S
        one.weigh(grows, clock[0])

    return least(whole), least(block)


def scrape(replicas: int) -> float:
    """The till of a fleet, four accounts running on each."""
    till, clock = Till(), [0.0]
    for number in range(replicas):
        one = meter(number)
        for other in range(8):
            one.open(record(other), 0.0)
        till.add(one)

    def take() -> None:
        clock[0] += 1.0
        till.take(clock[0])

    return least(take, inner=5)


def usage() -> tuple[float, float]:
    """(noted at a request's end; a group taken into the book)."""
    group = Group("alice", "m", "default", "spot", "r0")
    entry = Entry(0, group, Used(requests=1, completed=1, input_tokens=1000, output_tokens=100, usd=0.001))
    pending, book = Pending(2000), UsageBook(Usage(), 0)
    return least(lambda: pending.add(entry)), least(lambda: book.add(entry))


def main() -> None:
    for running in (1, 32, 256):
        whole, block = life(running)
        print(f"money/running={running}: {whole:.2f} us a request, {block:.2f} us a KV block more")
    for replicas in (3, 100, 1000):
        print(f"money/replicas={replicas}: {scrape(replicas):.0f} us a look into the till")
    noted, taken = usage()
    print(f"money/usage: {noted:.2f} us a request, {taken:.2f} us a group taken into the book")


if __name__ == "__main__":
    main()
