"""Limits over several workers, in virtual time: one book, a client a worker, messages that take a while or never come."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from random import Random

import pytest

from config.tenants import Limits
from router.tenants.account import Bound, Hold, Refusal
from router.tenants.limit_book import Claim, LimitBook
from router.tenants.limit_client import LimitClient
from router.tenants.window import SPAN_S
from tests.support.virtual_time import run_virtual

WALL = datetime(2026, 11, 30, tzinfo=UTC)


class Desk:
    """The supervisor's side of one worker's line."""

    def __init__(self, book: LimitBook, name: str, *, delay_s: float = 0.001, deaf: bool = False) -> None:
        self.book, self.name, self.delay_s, self.deaf = book, name, delay_s, deaf
        self.claims = 0
        self.client = LimitClient(self)

    def claim(self, number: int, claims: Mapping[str, Claim]) -> None:
        self.claims += 1
        if not self.deaf:
            asyncio.get_running_loop().call_later(self.delay_s, self._decide, number, claims)

    def _decide(self, number: int, claims: Mapping[str, Claim]) -> None:
        loop = asyncio.get_running_loop()
        grants = {tenant: self.book.claim(self.name, tenant, claim, loop.time()) for tenant, claim in claims.items()}
        loop.call_later(self.delay_s, self.client.take, number, grants)

    async def enter(self, tenant: str, limits: Limits, tokens: int = 10) -> Hold | Refusal:
        """As `Tenancy.enter`."""
        loop = asyncio.get_running_loop()
        account = self.client.of(tenant, limits)
        outcome = account.enter(tokens, loop.time(), WALL)
        if isinstance(outcome, Refusal) and await self.client.more(tenant, account, tokens, outcome):
            outcome = account.enter(tokens, loop.time(), WALL)
        return outcome

    def settle(self, hold: Hold, tokens: int | None, usd: float | None = None) -> None:
        hold.account.settle(hold, asyncio.get_running_loop().time(), WALL, tokens=tokens, usd=usd)


async def abuse(
    desks: list[Desk], tenant: str, limits: Limits, per_s: float, seconds: float, *, tokens: int = 10, seed: int = 1
) -> tuple[list[tuple[float, int]], int]:
    """Poisson arrivals at any of the workers, each served for 50 ms; (when, tokens used) of those let in, and how many asked."""
    loop, random = asyncio.get_running_loop(), Random(seed)
    let_in: list[tuple[float, int]] = []
    asked = 0

    async def one(desk: Desk) -> None:
        outcome = await desk.enter(tenant, limits, tokens)
        if isinstance(outcome, Hold):
            used = random.randint(tokens // 2, tokens)
            let_in.append((loop.time(), used))
            await asyncio.sleep(0.05)
            desk.settle(outcome, used)

    end_s = loop.time() + seconds
    async with asyncio.TaskGroup() as tasks:
        while loop.time() < end_s:
            asked += 1
            tasks.create_task(one(random.choice(desks)))
            await asyncio.sleep(random.expovariate(per_s))
    return let_in, asked


def most_in_a_minute(let_in: list[tuple[float, int]], amount: bool) -> int:
    return max(sum(used if amount else 1 for at, used in let_in if s <= at < s + SPAN_S) for s, _ in let_in)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_requests_are_exact_over_workers(workers: int):
    """Ten times the limit over 3 minutes and any number of workers: no minute has more than the limit, all have 99 % of it."""

    async def main() -> None:
        book = LimitBook()
        desks = [Desk(book, f"w{number}") for number in range(workers)]
        limits = Limits(requests_per_minute=120)
        let_in, asked = await abuse(desks, "t", limits, per_s=20, seconds=180)
        assert asked > 3000
        assert most_in_a_minute(let_in, amount=False) <= 120
        # The bar: of a minute's limit, from the first request on; and of three, in which what is let in at once comes back at once.
        assert sum(1 for at, _ in let_in if at < SPAN_S) >= 0.99 * 120
        assert len(let_in) >= 0.99 * 3 * 120

    run_virtual(main())


def test_tokens_are_exact_over_workers():
    """The same of tokens as they were used, not as they were reserved: what comes back is let in again."""

    async def main() -> None:
        book = LimitBook()
        desks = [Desk(book, f"w{number}") for number in range(4)]
        let_in, _ = await abuse(desks, "t", Limits(tokens_per_minute=20_000), per_s=100, seconds=60, tokens=40)
        used = sum(tokens for at, tokens in let_in if at < SPAN_S)
        assert 0.99 * 20_000 <= used <= 20_000
        assert most_in_a_minute(let_in, amount=True) <= 20_000

    run_virtual(main())


def test_an_innocent_tenant_notices_nothing():
    """Beside one that asks ten times its limit, one within its own is never refused."""

    async def main() -> None:
        book = LimitBook()
        desks = [Desk(book, f"w{number}") for number in range(4)]
        limits = Limits(requests_per_minute=120, tokens_per_minute=10_000, concurrency=8)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(abuse(desks, "greedy", limits, per_s=20, seconds=60))
            innocent = tasks.create_task(abuse(desks, "innocent", limits, per_s=1.5, seconds=60, seed=2))
        let_in, asked = innocent.result()
        assert len(let_in) == asked

    run_virtual(main())


def test_places_are_never_given_twice():
    """Requests at once, over all workers, never exceed the limit; a free place comes to whoever wants it within half a second."""

    async def main() -> None:
        book = LimitBook()
        desks = [Desk(book, f"w{number}") for number in range(3)]
        limits = Limits(concurrency=4)
        holds = [await desk.enter("t", limits) for desk in desks for _ in range(2)]
        inside = [hold for hold in holds if isinstance(hold, Hold)]
        assert len(inside) == 4
        assert {refusal.bound for refusal in holds if isinstance(refusal, Refusal)} == {Bound.CONCURRENCY}
        desks[0].settle(inside[0], 1)
        await asyncio.sleep(0.5)
        assert isinstance(await desks[2].enter("t", limits), Hold)
        assert isinstance(await desks[1].enter("t", limits), Refusal)

    run_virtual(main())


def test_a_worker_that_is_gone_leaves_its_places():
    """Its requests have ended with it; what it had of the minute stays used until the minute is over."""

    async def main() -> None:
        book = LimitBook()
        gone, left = Desk(book, "gone"), Desk(book, "left")
        limits = Limits(concurrency=1, requests_per_minute=2)
        assert isinstance(await gone.enter("t", limits), Hold)
        assert isinstance(await left.enter("t", limits), Refusal)
        book.leave("gone")
        await asyncio.sleep(0.3)
        hold = await left.enter("t", limits)
        assert isinstance(hold, Hold)
        left.settle(hold, 1)
        await asyncio.sleep(0.5)
        refusal = await left.enter("t", limits)
        assert isinstance(refusal, Refusal)
        assert refusal.bound is Bound.REQUESTS
        assert 50 < refusal.wait_s <= 61

    run_virtual(main())


def test_a_desk_that_does_not_answer_lets_nothing_more_through():
    """Whoever asks a dead book is refused within its patience, and told when to come back."""

    async def main() -> None:
        desk = Desk(LimitBook(), "w", deaf=True)
        outcome = await desk.enter("t", Limits(requests_per_minute=10))
        assert isinstance(outcome, Refusal)
        assert outcome.wait_s > 0
        assert asyncio.get_running_loop().time() <= 1.5

    run_virtual(main())


def test_abuse_costs_the_book_little():
    """Refused a thousand times a second, a worker asks the book some fifteen times a second."""

    async def main() -> None:
        desk = Desk(LimitBook(), "w")
        await abuse([desk], "t", Limits(requests_per_minute=10), per_s=1000, seconds=10)
        assert desk.claims <= 200

    run_virtual(main())


def test_dollars_are_told_to_all():
    """What one worker's requests cost ends the month for the others, too."""

    async def main() -> None:
        book = LimitBook()
        one, other = Desk(book, "one"), Desk(book, "other")
        limits = Limits(usd_per_month=1.0, requests_per_minute=100)
        hold = await one.enter("t", limits)
        assert isinstance(hold, Hold)
        one.settle(hold, 5, usd=2.0)
        await asyncio.sleep(1)
        first = await other.enter("t", limits)
        if isinstance(first, Hold):
            other.settle(first, 5)
        refusal = await other.enter("t", limits)
        assert isinstance(refusal, Refusal)
        assert refusal.bound is Bound.USD

    run_virtual(main())
