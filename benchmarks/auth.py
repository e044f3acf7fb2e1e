"""What keys cost: `python -m benchmarks.auth`. A store of a million is read, then callers are told apart by it, good ones and others.

Times are of this process's CPU, so that neighbours on the machine count little; memory is what the process grew by, at its highest.
"""

import argparse
import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Final

from prometheus_client import CollectorRegistry

from config.tenants import Auth, Limits, Scope, Tenant
from metrics.catalog import Metrics
from router.openai.errors import ApiError
from router.tenants.account import Hold, own_account
from router.tenants.gate import Gate
from router.tenants.key_store import KeyStore
from router.tenants.keys import digest_of

_CALLS: Final = 100_000
_ROUNDS: Final = 5
# As the SDK sends it, with what a browser or proxy adds.
_HEAD: Final = tuple((f"x-header-{number}".encode(), b"value") for number in range(12))


def key(number: int) -> bytes:
    return b"psk-%043d" % number


def write(path: Path, keys: int) -> None:
    """As `penstock keys create` does, with a label and an end."""
    with path.open("w") as file:
        for number in range(keys):
            record = {
                "id": f"k{number:08d}",
                "tenant": f"tenant-{number % 5000}",
                "sha256": digest_of(key(number), None).hex(),
                "label": "an application",
                "scopes": ["inference"],
                "created": "2026-11-23T10:00:00Z",
                "expires": "2036-11-23T10:00:00Z",
            }
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


def grown_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cost_us(call: Callable[[int], object]) -> float:
    """Of one call, in the best of some rounds."""
    best = float("inf")
    for _ in range(_ROUNDS):
        began_s = time.process_time()
        for number in range(_CALLS):
            call(number)
        best = min(best, time.process_time() - began_s)
    return best / _CALLS * 1e6


def refused(gate: Gate, headers: Sequence[tuple[bytes, bytes]]) -> None:
    with suppress(ApiError):
        gate.admit(headers, Scope.INFERENCE)


def main() -> None:
    logging.getLogger("penstock.audit").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    keys = parser.parse_args().keys
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.jsonl"
        write(path, keys)
        metrics = Metrics.create(CollectorRegistry())
        store = KeyStore(Auth(keys_file=str(path)), metrics)
        before_mb, began_s = grown_mb(), time.process_time()
        store.load()
        load_s, load_mb = time.process_time() - began_s, grown_mb() - before_mb
    gate = Gate(
        store,
        [Tenant(name="*")],
        metrics,
        wall_s=time.time,  # noqa: TID251 - as the gateway
        asks_for_metrics=False,
    )
    random = Random(1)
    good = [(*_HEAD, (b"authorization", b"Bearer " + key(random.randrange(keys)))) for _ in range(_CALLS)]
    bad = [(*_HEAD, (b"authorization", b"Bearer " + key(keys + number))) for number in range(_CALLS)]
    account = own_account(Limits(requests_per_minute=10**9, tokens_per_minute=10**9, concurrency=10))
    wall = datetime.now(UTC)

    def limits(number: int) -> None:
        now = number * 1e-4
        hold = account.enter(100, now, wall)
        assert isinstance(hold, Hold)
        account.settle(hold, now + 0.01, wall, tokens=50, usd=None)

    figures = {
        f"{keys:,} keys: read": f"{load_s:.2f} s",
        f"{keys:,} keys: memory": f"{load_mb:.0f} MB",
        "caller told apart": f"{cost_us(lambda number: gate.admit(good[number], Scope.INFERENCE)):.2f} us",
        "caller refused": f"{cost_us(lambda number: refused(gate, bad[number])):.2f} us",
        "limits, enter and settle": f"{cost_us(limits):.2f} us",
    }
    sys.stdout.write("".join(f"{name:<28} {value:>10}\n" for name, value in figures.items()))


if __name__ == "__main__":
    main()
