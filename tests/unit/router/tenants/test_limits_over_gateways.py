"""Limits over several gateways, in virtual time: one book, a task a process, calls that take a while, fail, or are heard and not answered."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from config.shared import SharedRedis
from config.tenants import Limits
from metrics.catalog import Metrics
from router.shared.limits import SharedLimits
from router.tenants.account import Bound, Hold, Refusal
from router.tenants.window import SPAN_S
from tests.support.fake_limits import FakeLimitLine, LimitStore
from tests.support.virtual_time import run_virtual

WALL = datetime(2026, 11, 30, tzinfo=UTC)
STATIC = 0.125
GONE_S = 3.0  # a lease and what comes after it: by then a silent process has no places


class Process:
    """One gateway's part."""

    def __init__(self, store: LimitStore, *, latency_s: float = 0.001) -> None:
        self.line = FakeLimitLine(store, latency_s=latency_s)
        config = SharedRedis(url="redis://book", static_share_ratio=STATIC)
        self.limits = SharedLimits(self.line, config, Metrics.create(CollectorRegistry()), workers=1)
        self.wall = WALL
        self.ends, self.ended = asyncio.Event(), asyncio.Event()

    async def enter(self, limits: Limits, tokens: int = 10, tenant: str = "t") -> Hold | Refusal:
        """As `Tenancy.enter`."""
        loop = asyncio.get_running_loop()
        account = self.limits.of(tenant, limits)
        outcome = account.enter(tokens, loop.time(), self.wall)
        if isinstance(outcome, Refusal) and await self.limits.more(tenant, account, tokens, outcome):
            outcome = account.enter(tokens, loop.time(), self.wall)
        return outcome

    async def enters(self, limits: Limits, tokens: int = 10, tenant: str = "t") -> Hold:
        hold = await self.enter(limits, tokens, tenant)
        assert isinstance(hold, Hold)
        return hold

    async def refused(self, limits: Limits, tokens: int = 10, tenant: str = "t") -> Refusal:
        refusal = await self.enter(limits, tokens, tenant)
        assert isinstance(refusal, Refusal)
        return refusal

    def settle(self, hold: Hold, tokens: int | None = 0, usd: float | None = None) -> None:
        hold.account.settle(hold, asyncio.get_running_loop().time(), self.wall, tokens=tokens, usd=usd)

    async def live(self) -> None:
        """Until it `ends`: killed, not left."""
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(self.limits.run())
            await self.ends.wait()
            work.cancel()
        self.ended.set()


@asynccontextmanager
async def processes(number: int, store: LimitStore | None = None, **options: float) -> AsyncIterator[list[Process]]:
    found = [Process(store or LimitStore(), **options) for _ in range(1)]
    found += [Process(found[0].line.store, **options) for _ in range(number - 1)]
    async with asyncio.TaskGroup() as tasks:
        for process in found:
            tasks.create_task(process.live())
        try:
            yield found
        finally:
            for process in found:
                process.ends.set()


def played(main: Coroutine[object, object, None]) -> None:
    run_virtual(main)


async def abuse(
    all_: list[Process],
    limits: Limits,
    per_s: float,
    seconds: float,
    *,
    tokens: int = 10,
    seed: int = 1,
    tenant: str = "t",
) -> tuple[list[tuple[float, int]], int]:
    """Poisson arrivals at any of the gateways, each served for 50 ms; (when, tokens used) of those let in, and how many asked."""
    loop, random = asyncio.get_running_loop(), Random(seed)
    let_in: list[tuple[float, int]] = []
    asked = 0

    async def one(process: Process) -> None:
        outcome = await process.enter(limits, tokens, tenant)
        if isinstance(outcome, Hold):
            used = random.randint(tokens // 2, tokens)
            let_in.append((loop.time(), used))
            await asyncio.sleep(0.05)
            process.settle(outcome, used)

    end_s = loop.time() + seconds
    async with asyncio.TaskGroup() as tasks:
        while loop.time() < end_s:
            asked += 1
            tasks.create_task(one(random.choice(all_)))
            await asyncio.sleep(random.expovariate(per_s))
    return let_in, asked


def most_in_a_minute(let_in: list[tuple[float, int]], *, amount: bool = False) -> int:
    return max(sum(used if amount else 1 for at, used in let_in if s <= at < s + SPAN_S) for s, _ in let_in)


@pytest.mark.parametrize(("number", "latency_s"), [(1, 0.001), (2, 0.02), (8, 0.001), (8, 0.05)])
def test_requests_are_exact_over_gateways(number: int, latency_s: float):
    """Ten times the limit over three minutes: no minute has more than the limit, all have 99 % of it, however far away the book is."""

    async def main() -> None:
        async with processes(number, latency_s=latency_s) as all_:
            let_in, asked = await abuse(all_, Limits(requests_per_minute=120), per_s=20, seconds=180)
        assert asked > 3000
        assert most_in_a_minute(let_in) <= 120
        assert sum(1 for at, _ in let_in if at < SPAN_S) >= 0.99 * 120
        assert len(let_in) >= 0.99 * 3 * 120

    played(main())


def test_tokens_are_exact_over_gateways():
    """The same of tokens as they were used, not as they were reserved: what comes back is let in again, elsewhere too."""

    async def main() -> None:
        async with processes(8) as all_:
            limits = Limits(tokens_per_minute=20_000)
            let_in, _ = await abuse(all_, limits, per_s=100, seconds=60, tokens=40)
        used = sum(tokens for at, tokens in let_in if at < SPAN_S)
        assert 0.99 * 20_000 <= used <= 20_000
        assert most_in_a_minute(let_in, amount=True) <= 20_000

    played(main())


def test_an_innocent_tenant_notices_nothing():
    """Beside one that asks ten times its limit, one within its own is never refused."""

    async def main() -> None:
        limits = Limits(requests_per_minute=120, tokens_per_minute=10_000, concurrency=8)
        async with processes(8) as all_, asyncio.TaskGroup() as tasks:
            tasks.create_task(abuse(all_, limits, per_s=20, seconds=60, tenant="greedy"))
            let_in, asked = await abuse(all_, limits, per_s=1.5, seconds=60, seed=2, tenant="innocent")
        assert len(let_in) == asked

    played(main())


def test_abuse_costs_redis_little():
    """Refused a thousand times a second, a process asks some ten times a second; idle, it says three times a second that it lives."""

    async def main() -> None:
        async with processes(1) as (process,):
            await abuse([process], Limits(requests_per_minute=10), per_s=1000, seconds=10)
            assert process.line.calls <= 150
            await asyncio.sleep(70)
            calls = process.line.calls
            await asyncio.sleep(1000)
            assert process.line.calls <= calls + 3500

    played(main())


def test_places_are_never_given_twice():
    """Requests at once, over all gateways, never exceed the limit; a free place is soon anybody's. It is held for as long as it is used."""

    async def main() -> None:
        limits = Limits(concurrency=4)
        async with processes(3) as all_:
            holds = [await process.enter(limits) for process in all_ for _ in range(2)]
            inside = [hold for hold in holds if isinstance(hold, Hold)]
            assert len(inside) == 4
            assert {refusal.bound for refusal in holds if isinstance(refusal, Refusal)} == {Bound.CONCURRENCY}
            await asyncio.sleep(1000)
            await all_[2].refused(limits)
            all_[0].settle(inside[0], 1)
            await asyncio.sleep(0.5)
            await all_[2].enters(limits)
            await all_[1].refused(limits)

    played(main())


def test_a_killed_gateway_s_places_come_back():
    """After its lease and what comes after it; what it was lent of the minute stays used until the minute is over."""

    async def main() -> None:
        limits = Limits(concurrency=1, requests_per_minute=2)
        async with processes(2) as (gone, left):
            await gone.enters(limits)
            await asyncio.sleep(0.5)
            await left.refused(limits)
            gone.ends.set()
            await asyncio.sleep(GONE_S)
            left.settle(await left.enters(limits), 1)
            await asyncio.sleep(0.5)
            refusal = await left.refused(limits)
            assert refusal.bound is Bound.REQUESTS
            assert 50 < refusal.wait_s <= 61

    played(main())


def test_one_that_leaves_gives_its_places_back_at_once():
    """And what it spent stays known."""

    async def main() -> None:
        limits = Limits(concurrency=1, usd_per_month=1.0)
        async with processes(2) as (one, other):
            hold = await one.enters(limits)
            await asyncio.sleep(0.3)
            one.settle(hold, 1, usd=2.0)
            one.ends.set()
            await one.ended.wait()
            await one.limits.leave()
            assert (await other.refused(limits)).bound is Bound.USD

    played(main())


def test_without_redis_the_static_share_is_let_in():
    """Redis gone for minutes: each gateway lets in its static share and no more; nobody waits for an answer; on return all of it counts."""

    async def main() -> None:
        limits, loop = Limits(requests_per_minute=160), asyncio.get_running_loop()
        async with processes(4) as all_:
            for process in all_:
                await process.enters(limits)
                process.line.reachable = False
            await asyncio.sleep(70)
            for process in all_:
                await process.enter(limits)  # whoever is the first may wait for a call's time-out
            began_s = loop.time()
            each = [[await process.enter(limits) for _ in range(40)] for process in all_]
            assert loop.time() == began_s
            inside = [sum(isinstance(outcome, Hold) for outcome in outcomes) for outcomes in each]
            assert all(0 < number <= 160 * STATIC for number in inside)
            assert {process.limits.mode for process in all_} == {"static"}
            for process in all_:
                process.line.reachable = True
            await asyncio.sleep(2)
            assert {process.limits.mode for process in all_} == {"redis"}
            let_in = sum(inside) + 4
            more = [await all_[0].enter(limits) for _ in range(160)]
            assert sum(isinstance(outcome, Hold) for outcome in more) == 160 - let_in

    played(main())


def test_one_slow_answer_is_no_outage():
    """A call that is not answered in time is repeated: whoever waits for it gets its answer, and nobody lets in a share beside the limit."""

    async def main() -> None:
        async with processes(4) as all_:
            limits = Limits(requests_per_minute=80)
            first = [await process.enter(limits) for process in all_ for _ in range(5)]
            for process in all_:
                process.line.reachable = False
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(process.enter(limits)) for process in all_ for _ in range(30)]
                await asyncio.sleep(0.6)
                for process in all_:
                    process.line.reachable = True
            assert {process.limits.mode for process in all_} == {"redis"}
            outcomes = [*first, *(task.result() for task in asked)]
            outcomes += [await process.enter(limits) for process in all_ for _ in range(30)]
            assert sum(isinstance(outcome, Hold) for outcome in outcomes) == 80

    played(main())


def test_a_limit_that_was_used_up_stays_so_without_redis():
    """The book said that nothing is left, and when something comes free: until then nobody has a share of it; after a minute all have theirs."""

    async def main() -> None:
        limits = Limits(requests_per_minute=32)
        async with processes(2) as all_:
            one, other = all_
            for _ in range(32):
                await one.enters(limits)
            await other.refused(limits)
            for process in all_:
                process.line.reachable = False
            await asyncio.sleep(5)
            assert {process.limits.mode for process in all_} == {"static"}
            for process in all_:
                refusal = await process.refused(limits)
                assert refusal.wait_s > 50
            await asyncio.sleep(120)
            inside = [isinstance(await process.enter(limits), Hold) for process in all_ for _ in range(8)]
            assert sum(inside) == 2 * 32 * STATIC

    played(main())


def test_a_static_share_below_one_request_is_not_nothing():
    """Of small limits, and for a request larger than the share: what is alone fits."""

    async def main() -> None:
        limits = Limits(requests_per_minute=3, tokens_per_minute=1000, concurrency=2)
        async with processes(1) as (process,):
            process.line.reachable = False
            hold = await process.enters(limits, tokens=900)
            assert (await process.refused(limits)).wait_s <= 60.2
            process.settle(hold, 900)
            await asyncio.sleep(61)
            await process.enters(limits, tokens=900)

    played(main())


def test_what_was_heard_and_not_answered_counts_once():
    """Answers are lost: what such a call told is not counted again, what it lent is not lost for a minute."""

    async def main() -> None:
        limits = Limits(requests_per_minute=20)
        async with processes(2) as (deaf, other):
            for _ in range(5):
                await deaf.enters(limits)
                await asyncio.sleep(0.05)
            deaf.line.answers = False
            await asyncio.sleep(3)
            deaf.line.answers = True
            await asyncio.sleep(3)
            inside = [isinstance(await other.enter(limits), Hold) for _ in range(20)]
            assert sum(inside) == 15

    played(main())


def test_a_book_that_has_forgotten_is_told_the_last_minute():
    """Redis comes back empty: what all gateways have let in within the minute, what runs and what was spent is there again."""

    async def main() -> None:
        store = LimitStore()
        limits = Limits(requests_per_minute=20, concurrency=8, usd_per_month=10.0)
        async with processes(2, store) as (one, other):
            running = [await process.enters(limits) for process in (one, other) for _ in range(3)]
            one.settle(running[0], 1, usd=9.0)
            other.settle(running[3], 1, usd=0.5)
            await asyncio.sleep(1)
            store.lose_everything()
            await asyncio.sleep(5)
            holds = [await other.enter(limits) for _ in range(10)]
            assert sum(isinstance(hold, Hold) for hold in holds) == 4  # places
            for hold in [*running, *holds]:
                if isinstance(hold, Hold):
                    (one if hold in running[:3] else other).settle(hold, 1, usd=0.0)
            other.settle(running[4], 1)
            await asyncio.sleep(1)
            inside = [await one.enter(limits) for _ in range(8)]
            assert sum(isinstance(hold, Hold) for hold in inside) == 8
            for hold in inside:
                assert isinstance(hold, Hold)
                one.settle(hold, 1, usd=0.1)
            await asyncio.sleep(1)
            assert (await other.refused(limits)).bound is Bound.USD

    played(main())


def test_a_gateway_that_was_idle_asks_what_others_have_spent():
    """Before it lets anybody in by a sum of long ago; who comes right after is let in by the same answer."""

    async def main() -> None:
        limits = Limits(usd_per_month=1.0)
        async with processes(2) as (idle, other):
            idle.settle(await idle.enters(limits), 5, usd=0.1)
            await asyncio.sleep(600)
            other.settle(await other.enters(limits), 5, usd=0.8)
            hold = await idle.enters(limits)
            calls = idle.line.calls
            idle.settle(await idle.enters(limits), 5)
            assert idle.line.calls == calls
            idle.settle(hold, 5, usd=0.2)
            await asyncio.sleep(600)
            assert (await other.refused(limits)).bound is Bound.USD
            assert (await idle.refused(limits)).bound is Bound.USD

    played(main())


def test_the_month_s_dollars_outlive_all_gateways():
    """All are started again: what the tenant has spent is known before its first request is let in. A new month begins with nothing."""

    async def main() -> None:
        store, limits = LimitStore(), Limits(usd_per_month=1.0)
        async with processes(2, store) as before:
            for process in before:
                process.settle(await process.enters(limits), 5, usd=0.6)
            await asyncio.sleep(1)
        async with processes(1, store) as (after,):
            assert (await after.refused(limits)).bound is Bound.USD
            after.wall = datetime(2026, 12, 1, tzinfo=UTC)
            await after.enters(limits)

    played(main())


def test_other_limits_keep_what_is_used():
    """A reload raises and lowers them: what was let in stays let in, what runs comes back, dollars stay spent."""

    async def main() -> None:
        async with processes(2) as (one, other):
            few, more = Limits(requests_per_minute=4, concurrency=2), Limits(requests_per_minute=6, concurrency=3)
            holds = [await one.enters(few) for _ in range(2)]
            await one.refused(few)
            await asyncio.sleep(0.5)
            holds.append(await one.enters(more))
            assert (await other.refused(more)).bound is Bound.CONCURRENCY
            for hold in holds:
                one.settle(hold, 1)
            await asyncio.sleep(0.5)
            inside = []
            for _ in range(4):
                outcome = await other.enter(more)
                inside.append(isinstance(outcome, Hold))
                if isinstance(outcome, Hold):
                    other.settle(outcome, 1)
            assert inside == [True, True, True, False]

    played(main())
