"""Tenants' limits in a real Redis: the script does what the pure book does, claim for claim."""

import random
from itertools import count

import pytest

from config.shared import SharedRedis
from router.shared.limits_in_redis import LimitsInRedis
from router.tenants.shared_limit_book import SLOT_MS, Call, Claim, SharedLimitBook, Status, Terms
from tests.real.conftest import RedisServer

pytestmark = pytest.mark.real

TERMS = Terms(1500, 1000)
NAMES = ("g1", "g2", "g3", "g4")
NUMBERS = count()


def book_at(redis_server: RedisServer) -> LimitsInRedis:
    """One that nobody has written in."""
    return LimitsInRedis(SharedRedis(url=redis_server.url, prefix=f"limits:{next(NUMBERS)}", lease_s=60, timeout_s=60))


def some_claim(random_: random.Random, now_ms: int) -> Claim:
    """Anything that a process could say."""

    def used() -> list[int]:
        found: list[int] = []
        for _ in range(random_.randint(0, 4)):
            found += (
                now_ms // SLOT_MS - random_.choice((0, 1, 5, 300, 598, 601, 700)),
                random_.choice((1, 3, 40, -2, -40)),
            )
        return found

    least = random_.choice((1, 1, 20))
    return Claim(
        limits=(random_.choice((0, 20, 200)), random_.choice((0, 400)), random_.choice((0, 5))),
        batch=random_.randint(1, 8),
        used=(used(), used()),
        wanted=(random_.randint(0, 6), random_.randint(0, 80), random_.randint(0, 4)),
        least_tokens=least,
        held=random_.randint(0, 3),
        usd=random_.choice((-1, 0, 12, 5_000_000_000_000)),
    )


def some_call(random_: random.Random, number: int, epoch: str, now_ms: int) -> Call:
    tenants = random_.sample(("a", "b", "c"), random_.randint(0, 3))
    claims = [(tenant, random_.choice(("", "2026-11", "2026-12")), some_claim(random_, now_ms)) for tenant in tenants]
    return Call(random_.choice(NAMES), number, epoch, TERMS, claims)


@pytest.mark.parametrize("seed", range(12))
async def test_the_script_is_the_book(redis_server: RedisServer, seed: int):
    """A thousand calls of four processes, with clocks that jump and servers that change: every answer is the same."""
    random_ = random.Random(seed)
    pure, real = SharedLimitBook(), book_at(redis_server)
    now_ms, server, epoch, number = 1_764_000_000_000, "s1", "", 0
    seen: dict[Status, int] = {}
    for _ in range(1000):
        now_ms += random_.choice((0, 5, 50, 300, 900, 1100, 2600, -700, -1400, 25_000))
        server = random_.choice((server,) * 60 + ("s1", "s2"))
        number += random_.choice((1, 1, 1, 1, 0))
        call = some_call(random_, number, random_.choice((epoch,) * 20 + ("", "another")), now_ms)
        if random_.random() < 0.05:
            held = [("a", "2026-11"), ("b", "")]
            pure.leave(call.instance, held)
            await real.leave(call.instance, held)
        expected = pure.call(now_ms, server, call)
        assert await real.call(call, now_ms=now_ms, server=server) == expected
        epoch = expected.epoch or epoch
        seen[expected.status] = seen.get(expected.status, 0) + 1
    assert min(seen[Status.OK], 10 * seen[Status.NEW], 10 * seen[Status.STALE]) > 300
    await real.aclose()
