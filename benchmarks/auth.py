"""What keys cost: `python -m benchmarks.auth`. A store of a million is read, then callers are told apart by it, good ones and others.

With `--redis` the store is a redis-server of its own: how long reading it in pages takes by the clock and of this process's CPU, how long
this process's event loop was kept busy at a time, and how soon a revoked key is known.

Times are of this process's CPU, so that neighbours on the machine count little; memory is what the process grew by, at its highest.
"""

import argparse
import asyncio
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

import redis
from prometheus_client import CollectorRegistry

from config.shared import RedisServer
from config.tenants import Auth, Limits, Scope, Tenant
from metrics.catalog import Metrics
from router.openai.errors import ApiError
from router.tenants.account import Hold, own_account
from router.tenants.gate import Gate
from router.tenants.key_index import REVOKED
from router.tenants.key_store import KeyStore
from router.tenants.keys import digest_of
from router.tenants.keys_in_redis import Change, KeysInRedis
from tests.support.redis_server import RedisProcess

_CALLS: Final = 100_000
_ROUNDS: Final = 5
# As the SDK sends it, with what a browser or proxy adds.
_HEAD: Final = tuple((f"x-header-{number}".encode(), b"value") for number in range(12))


def key(number: int) -> bytes:
    return b"psk-%043d" % number


def line(number: int, **more: str) -> str:
    """As `penstock keys create` writes it, with a label and an end."""
    record = {
        "id": f"k{number:08d}",
        "tenant": f"tenant-{number % 5000}",
        "sha256": digest_of(key(number), None).hex(),
        "label": "an application",
        "scopes": ["inference"],
        "created": "2026-11-23T10:00:00Z",
        "expires": "2036-11-23T10:00:00Z",
        **more,
    }
    return json.dumps(record, separators=(",", ":"))


def write(path: Path, keys: int) -> None:
    with path.open("w") as file:
        file.writelines(line(number) + "\n" for number in range(keys))


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


async def from_redis(keys: int) -> str:
    """Two readings: the first, and one more beside the keys that are in force."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisProcess(Path(folder))
        server.start()
        try:
            return await _from_redis(server, keys)
        finally:
            server.kill()


async def _from_redis(server: RedisProcess, keys: int) -> str:
    loop = asyncio.get_running_loop()
    with redis.Redis(port=server.port) as client:
        for first in range(0, keys, 10_000):
            some = range(first, min(first + 10_000, keys))
            client.hset("{penstock:default}:keys", mapping={f"k{n:08d}": line(n) for n in some})
        used_mb = client.info("memory")["used_memory"] / 2**20
    config = RedisServer(url=server.url)
    book, waits, registry = KeysInRedis(config), list[float](), CollectorRegistry()
    await book.put([Change("k00000000", line(0).encode(), line(0).encode())])  # the first stamp
    store = KeyStore(Auth(keys_redis=config), Metrics.create(registry))
    said, before_mb = [f"{keys:,} keys in Redis: its memory {used_mb:.0f} MB\n"], grown_mb()
    async with asyncio.TaskGroup() as tasks:
        for name in ("first", "again"):
            longest = [0.0]
            pulse = tasks.create_task(_pulse(longest))
            began_s, cpu_s = loop.time(), time.process_time()
            if name == "first":
                await store.begin()
                following = tasks.create_task(store.watch())
            else:
                store.read_again()
                while (registry.get_sample_value("penstock_key_loads_total", {"result": "ok"}) or 0) < 4:  # noqa: ASYNC110 - others' work; two are of no file
                    await asyncio.sleep(0.01)
            took_s, cpu_s = loop.time() - began_s, time.process_time() - cpu_s
            pulse.cancel()
            said.append(
                f"read, {name}: {took_s:.2f} s, {cpu_s:.2f} s of CPU, process grown by {grown_mb() - before_mb:.0f} MB, "
                f"loop busy for {longest[0] * 1000:.0f} ms at most\n"
            )
        for number in range(0, keys, max(1, keys // 20)):
            (before,) = await book.get([f"k{number:08d}"])
            began_s = loop.time()
            await book.put([Change(f"k{number:08d}", before, line(number, revoked="2026-12-01T10:00:00Z").encode())])
            while (found := store.find(key(number))) is None or not found.mask & REVOKED:  # noqa: ASYNC110 - another's work
                await asyncio.sleep(0.0005)
            waits.append(loop.time() - began_s)
        said.append(
            f"revoked, until known: {sorted(waits)[len(waits) // 2] * 1000:.1f} ms, at most {max(waits) * 1000:.1f} ms\n"
        )
        following.cancel()
    await book.aclose()
    return "".join(said)


async def _pulse(longest: list[float]) -> None:
    """How long others kept the loop at a time."""
    loop = asyncio.get_running_loop()
    while True:
        began_s = loop.time()
        await asyncio.sleep(0.001)
        longest[0] = max(longest[0], loop.time() - began_s - 0.001)


def main() -> None:
    logging.getLogger("penstock.audit").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--redis", action="store_true", help="read them from a Redis instead")
    asked = parser.parse_args()
    keys = asked.keys
    if asked.redis:
        sys.stdout.write(asyncio.run(from_redis(keys)))
        return
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
