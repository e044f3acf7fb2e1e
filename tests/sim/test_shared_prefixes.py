"""Several whole gateways over one store, in virtual time: what one has placed where all know within a second, and without the store each goes by its own."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from batching.prefix_journal import packed
from batching.request import ReplicaId
from benchmarks.gateways_in_time import Load, one
from router.openai.prompt import text_chunks
from tests.support.asgi import Call, chat
from tests.support.fake_book import FakeBook, Store
from tests.support.fake_engine import FakeEngine, Script, whole_stream
from tests.support.gateways import Running, gateway_over
from tests.support.tenants import asking, bearer, inline, key_for
from tests.support.virtual_time import run_virtual

NEW_BOOK_S = 3.0
STORY = "Once upon a time there was a gateway that knew where everything was. " * 40
SOON_S = 1.0


@asynccontextmanager
async def gateway(
    store: Store, name: str, engines: dict[str, FakeEngine], *, auth: Any = None, tenants: Any = (), **redis: Any
) -> AsyncIterator[tuple[Running, FakeBook]]:
    """One of several, in front of two replicas; the tenant `acme` has a key."""
    book = FakeBook(store)
    config = asking(
        engines, inline("acme"), auth=auth or {}, tenants=tenants, redis={"url": "redis://book", "name": name, **redis}
    )
    async with gateway_over(engines, config, book=book) as running:
        yield running, book


def engines() -> dict[str, FakeEngine]:
    return {name: FakeEngine(default=lambda: Script(whole_stream())) for name in ("a", "b")}


async def tell(running: Running, text: str = STORY) -> Call:
    body = chat(text, stream=True)
    return await Call(
        running.app, "/v1/chat/completions", json.dumps(body).encode(), headers=[bearer(key_for("acme"))]
    ).run()


def believed(running: Running, text: str = STORY) -> dict[ReplicaId, int]:
    chunks = text_chunks("m", ["\nuser\n", text])
    return dict(running.gateway.scheduler.prefixes.matched(chunks))


def test_what_one_has_placed_all_know_soon():
    """A prompt goes through one gateway; within a second the other believes the same of the same replica, a later one from its start."""

    async def main() -> list[dict[ReplicaId, int]]:
        store, fleet = Store(), engines()
        async with gateway(store, "g1", fleet) as (first, _), gateway(store, "g2", fleet) as (second, _):
            await asyncio.sleep(NEW_BOOK_S)
            assert (await tell(first)).status == 200
            await asyncio.sleep(SOON_S)
            async with gateway(store, "g3", fleet) as (third, _):
                await asyncio.sleep(0.1)
                return [believed(running) for running in (first, second, third)]

    first, second, third = run_virtual(main())
    assert first == second == third
    ((_, chunks),) = first.items()
    assert chunks == len(text_chunks("m", ["\nuser\n", STORY])) > 8


def test_what_an_engine_evicted_is_told():
    """One gateway hears of evictions of what another has placed; both stop believing."""

    async def main() -> tuple[dict[ReplicaId, int], dict[ReplicaId, int]]:
        store, fleet = Store(), engines()
        async with gateway(store, "g1", fleet) as (first, _), gateway(store, "g2", fleet) as (second, _):
            await asyncio.sleep(NEW_BOOK_S)
            await tell(first)
            await asyncio.sleep(SOON_S)
            (replica,) = believed(second)
            chunks = text_chunks("m", ["\nuser\n", STORY])
            second.gateway.scheduler.prefixes.correct(replica, lost=chunks[3:])
            await asyncio.sleep(SOON_S)
            return believed(first), believed(second)

    first, second = run_virtual(main())
    assert first == second
    assert list(first.values()) == [3]


def test_without_redis_each_goes_by_its_own_and_nothing_waits():
    """While it is away prompts are served as ever; when it is back, all learn what was placed meanwhile."""

    async def main() -> list[Any]:
        store, fleet, seen = Store(), engines(), list[Any]()
        loop = asyncio.get_running_loop()
        async with gateway(store, "g1", fleet) as (first, one_), gateway(store, "g2", fleet) as (second, two):
            await asyncio.sleep(NEW_BOOK_S)
            one_.reachable = two.reachable = False
            await asyncio.sleep(1)
            began_s = loop.time()
            seen.append((await tell(first)).status)
            seen.append(loop.time() - began_s < 0.1)
            await asyncio.sleep(20)
            seen.append((len(believed(first)), len(believed(second))))
            one_.reachable = two.reachable = True
            await asyncio.sleep(3 * SOON_S)
            seen.append((len(believed(first)), len(believed(second))))
        return seen

    assert run_virtual(main()) == [200, True, (1, 0), (1, 1)]


def test_a_redis_that_lost_everything_is_told_anew_what_is_new():
    """An empty log is no reason to stop: what is placed after it is known to all."""

    async def main() -> tuple[int, int]:
        store, fleet = Store(), engines()
        async with gateway(store, "g1", fleet) as (first, _), gateway(store, "g2", fleet) as (second, _):
            await asyncio.sleep(NEW_BOOK_S)
            await tell(first)
            await asyncio.sleep(SOON_S)
            store.lose_everything()
            await tell(first, "Another " + STORY)
            await asyncio.sleep(SOON_S)
            return len(believed(second)), len(believed(second, "Another " + STORY))

    assert run_virtual(main()) == (1, 1)


PEPPER = "a secret of the whole fleet, long enough"


@pytest.mark.parametrize(("isolated", "pepper"), [(False, PEPPER), (True, PEPPER), (False, None)])
def test_what_lies_in_redis_says_nothing_to_who_guesses_prompts(isolated: bool, pepper: str | None):
    """With a pepper no hash of a prompt's beginning is there in clear, and isolated tenants' are no hashes of the prompt; without, they are."""

    async def main() -> tuple[bytes, set[int], list[int]]:
        store, fleet = Store(), engines()
        tenants = [{"name": "acme", "isolate_cache": isolated}]
        keys = {"auth": {} if pepper is None else {"pepper": pepper}, "tenants": tenants}
        async with AsyncExitStack() as stack:
            both = [(await stack.enter_async_context(gateway(store, name, fleet, **keys)))[0] for name in ("g1", "g2")]
            await asyncio.sleep(NEW_BOOK_S)
            await tell(both[0])
            await asyncio.sleep(SOON_S)
            held = [set(running.gateway.scheduler._fleet.prefixes._holders) for running in both]
            assert held[0] == held[1] != set()
            said = b"".join(entry.digest for entry in store.prefixes._entries)
            return said, held[0], list(text_chunks("m", ["\nuser\n", STORY]))

    said, held, plain = run_virtual(main())
    assert said
    assert any(packed([chunk]) in said for chunk in plain) is (pepper is None)
    assert held.isdisjoint(plain) is isolated


def test_gateways_of_different_secrets_do_not_hear_each_other(caplog: pytest.LogCaptureFixture):
    """What cannot be read is not believed, and is said once, with what to do."""

    async def main() -> int:
        store, fleet = Store(), engines()
        async with (
            gateway(store, "g1", fleet, auth={"pepper": PEPPER}) as (first, _),
            gateway(store, "g2", fleet, auth={"pepper": PEPPER + "!"}) as (second, _),
        ):
            await asyncio.sleep(NEW_BOOK_S)
            for number in range(3):
                await tell(first, f"{number} {STORY}")
                await asyncio.sleep(SOON_S)
            return len(believed(second, f"0 {STORY}"))

    with caplog.at_level(logging.WARNING, "penstock.shared"):
        assert run_virtual(main()) == 0
    assert [record.getMessage() for record in caplog.records] == [
        "another gateway's digest of prefix caches cannot be read; all need the same auth.pepper, and one release"
    ]


def test_it_can_be_turned_off():
    """With `share_prefixes: false` nothing is said and nothing is heard."""

    async def main() -> tuple[int, int]:
        store, fleet = Store(), engines()
        async with (
            gateway(store, "g1", fleet, share_prefixes=False) as (first, _),
            gateway(store, "g2", fleet, share_prefixes=False) as (second, _),
        ):
            await asyncio.sleep(NEW_BOOK_S)
            await tell(first)
            await asyncio.sleep(SOON_S)
            return len(believed(second)), len(store.prefixes)

    assert run_virtual(main()) == (0, 0)


def load(**changes: Any) -> Load:
    """Conversations that leave room, some twelve requests a second."""
    values: dict[str, Any] = {
        "sequences": 16, "replicas": 8, "seconds": 8.0, "rate": 0.0, "words": 0, "conversations": 3.0, "systems": 8, "system_words": 300,
        "pause_s": 1.0, "kv_blocks": None, "digests": True, **changes,
    }  # fmt: skip
    return Load(**values)


def hit_ratio(gateways: int, **changes: Any) -> float:
    return run_virtual(one(gateways, load(**changes))).hit_ratio


def test_hits_of_several_gateways_are_those_of_one():
    """Turns of conversations go to any of three gateways: what the engines find in their caches is 0.95 of what it is behind one, without digests far less."""
    alone, three = hit_ratio(1), hit_ratio(3)
    assert three >= 0.95 * alone
    assert hit_ratio(3, digests=False) < 0.85 * alone
