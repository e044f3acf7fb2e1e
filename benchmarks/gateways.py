"""Several gateways over one Redis: is any engine ever given too much, how soon is a dead gateway's share back, what does a minute without Redis cost?

    python -m benchmarks.gateways --gateways 2 --gateways 4 --gateways 8      # over-admission under far too much load
    python -m benchmarks.gateways --gateways 4 --kill                         # kill -9 of one
    python -m benchmarks.gateways --gateways 4 --stop-redis 60                # Redis stands still

Real gateway processes, a real redis-server, simulated engines that count what they are given, clients in a closed loop. Everything shares
this machine's cores, so rates say nothing; counts and what is never exceeded do.
"""

import argparse
import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.gateway_process import GatewayProcess
from tests.support.raw_http import ask, get
from tests.support.redis_server import RedisProcess
from tests.support.scrape import from_page
from tests.support.shared_fleet import (
    SEQUENCES,
    Load,
    WatchedEngine,
    gateways,
    load,
    share_of,
    until_mode,
    watched_engine,
)

STATIC = 0.125
EARLY_S = "1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command line."""

    engines: int
    seconds: float
    clients: int
    tokens: int
    kill: bool
    stop_redis_s: float
    static: float


async def measure(number: int, asked: Asked) -> bool:
    """One line; whether nothing was ever exceeded."""
    with tempfile.TemporaryDirectory() as name:
        redis = RedisProcess(folder := Path(name))
        redis.start()
        sections = [{"url": redis.url, "name": f"g{i}", "static_share_ratio": asked.static} for i in range(number)]
        try:
            async with AsyncExitStack() as stack:
                fleet = [await stack.enter_async_context(watched_engine()) for _ in range(asked.engines)]
                all_ = await stack.enter_async_context(gateways(folder, fleet, sections))
                per_gateway = {gateway.url: max(1, asked.clients // number) for gateway in all_}
                async with load(per_gateway, asked.tokens) as clients:
                    await asyncio.sleep(asked.seconds)
                    extra = await _trouble(asked, redis, all_, clients)
                return _say(number, fleet, clients, extra)
        finally:
            redis.thaw()
            redis.kill()


async def _trouble(asked: Asked, redis: RedisProcess, all_: list[GatewayProcess], clients: Load) -> str:
    loop = asyncio.get_running_loop()
    if asked.kill:
        survivors = all_[1:]
        all_[0].kill()
        took_s = await _until_whole(survivors, 1 - asked.static - 1e-3)
        await asyncio.sleep(2)
        return f"; killed one: its share is back after {took_s:.2f} s"
    if asked.stop_redis_s:
        before, failed = sum(clients.served.values()), len(clients.failures)
        early, told = await _first_tokens(all_)
        redis.freeze()
        await asyncio.sleep(asked.stop_redis_s)
        during = sum(clients.served.values()) - before
        early_all, told_all = await _first_tokens(all_)
        failed = len(clients.failures) - failed
        redis.thaw()
        began_s = loop.time()
        for gateway in all_:
            await until_mode(gateway, "redis", gateways=len(all_))
        await _until_whole(all_, 0.99)
        took_s = loop.time() - began_s
        rate, without = before / asked.seconds, during / asked.stop_redis_s
        return (
            f"; Redis stood still for {asked.stop_redis_s:g} s: {failed} failed, {without:.1f} served/s against {rate:.1f} before, "
            f"first tokens within {EARLY_S} s {(early_all - early) / max(1, told_all - told):.1%} against {early / max(1, told):.1%}, "
            f"exact again after {took_s:.2f} s"
        )
    return ""


async def _first_tokens(all_: list[GatewayProcess]) -> tuple[float, float]:
    """(those that came within the objective, all), of all gateways so far."""
    early = told = 0.0
    for gateway in all_:
        text = (await ask(gateway.url, get("/metrics"))).body.decode()
        early += from_page(text, "penstock_time_to_first_token_seconds_bucket", le=EARLY_S)
        told += from_page(text, "penstock_time_to_first_token_seconds_count")
    return early, told


async def _until_whole(all_: list[GatewayProcess], least: float) -> float:
    """Until they have so much of the first engine together; seconds."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while sum([await share_of(gateway) for gateway in all_]) < least:  # noqa: ASYNC110 - other processes' state
        await asyncio.sleep(0.02)
    return loop.time() - began_s


def _say(number: int, fleet: list[WatchedEngine], clients: Load, extra: str) -> bool:
    most = max(engine.most for engine in fleet)
    print(
        f"{number} gateways, {len(fleet)} engines of {SEQUENCES} sequences: {sum(clients.served.values())} served, "
        f"{len(clients.failures)} failed, least served by one gateway {min(clients.served.values())}; at most {most} sequences on an engine, "
        f"{max(0, most - SEQUENCES)} too many{extra}",
        flush=True,
    )
    return most <= SEQUENCES


def main() -> int:
    """Exit code 1 where an engine was ever given too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", type=int, action="append", help="may be repeated")
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=96, help="of all gateways together")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--stop-redis", type=float, default=0.0, metavar="S")
    parser.add_argument("--static", type=float, default=STATIC, help="redis.static_share_ratio")
    found = parser.parse_args()
    asked = Asked(
        engines=found.engines,
        seconds=found.seconds,
        clients=found.clients,
        tokens=found.tokens,
        kill=found.kill,
        stop_redis_s=found.stop_redis,
        static=found.static,
    )
    fine = [asyncio.run(measure(number, asked)) for number in found.gateways or [2]]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
