"""Drains and notices told to one gateway of several: all act on them, those that start later know, and Redis may lose them."""

import asyncio
from typing import Any

from tests.sim.test_shared_budgets import engine, gateway, get
from tests.support.asgi import chat, post
from tests.support.fake_book import Store
from tests.support.fake_engine import Script, document
from tests.support.gateways import Running
from tests.support.virtual_time import run_virtual


async def say(running: Running, what: str, **fields: Any) -> int | None:
    """Of the replica `b`, by somebody on this machine."""
    call = post(running.app, f"/admin/replicas/b/{what}", fields)
    return (await call.run()).status


async def standing(running: Running) -> tuple[str, str | None, bool]:
    document = (await get(running, "/admin/replicas/b")).json()
    return document["lifecycle"], document["reason"], document["released"]


def test_a_drain_is_everybody_s():
    """Told to one, done by all, ended by any."""

    async def main() -> list[list[tuple[str, str | None, bool]]]:
        store, engines, seen = Store(), {"a": engine(), "b": engine()}, []
        async with gateway(store, "g1", engines) as (one, _), gateway(store, "g2", engines) as (two, _):
            await asyncio.sleep(3)
            assert await say(one, "drain") == 200
            await asyncio.sleep(2)
            async with gateway(store, "late", engines) as (late, _):
                await asyncio.sleep(2)
                seen.append([await standing(running) for running in (one, two, late)])
                assert await say(late, "restore") == 200
                await asyncio.sleep(2)
                seen.append([await standing(running) for running in (one, two, late)])
        return seen

    drained, restored = run_virtual(main())
    assert drained == [("draining", "drain", True)] * 3
    assert restored == [("ready", None, False)] * 3


def test_two_words_are_joined():
    """Two gateways are told different things at the same moment: all hold the stricter kind and the sooner deadline."""

    async def main() -> list[tuple[str, float]]:
        store, engines = Store(), {"a": engine(), "b": engine()}
        async with gateway(store, "g1", engines) as (one, _), gateway(store, "g2", engines) as (two, _):
            await asyncio.sleep(3)
            await asyncio.gather(say(one, "drain", deadline_s=300), say(two, "drain", deadline_s=100))
            await asyncio.sleep(3)
            now = asyncio.get_running_loop().time()
            found = []
            for running in (one, two):
                held = running.gateway.farewells.standing("b")  # type: ignore[arg-type]
                assert held is not None
                assert held.deadline_s is not None
                found.append((held.kind.value, round(held.deadline_s - now)))
            return found

    assert run_virtual(main()) == [("drain", 97), ("drain", 97)]


def test_what_redis_has_lost_is_said_again():
    """It comes back empty: nobody takes that for a restore, and who starts afterwards is told."""

    async def main() -> list[tuple[str, str | None, bool]]:
        store, engines = Store(), {"a": engine(), "b": engine()}
        async with gateway(store, "g1", engines) as (one, _), gateway(store, "g2", engines) as (two, _):
            await asyncio.sleep(3)
            await say(one, "drain")
            await asyncio.sleep(2)
            store.lose_everything()
            await asyncio.sleep(4)
            async with gateway(store, "late", engines) as (late, _):
                await asyncio.sleep(2)
                return [await standing(running) for running in (one, two, late)]

    assert run_virtual(main()) == [("draining", "drain", True)] * 3


def test_told_while_redis_is_away_reaches_the_others_later():
    """It has effect at the gateway that was told at once, and at the others when there is a way again; until then nothing is released."""

    async def main() -> tuple[tuple[str, str | None, bool], ...]:
        store, engines = Store(), {"a": engine(), "b": engine()}
        async with gateway(store, "g1", engines) as (one, book), gateway(store, "g2", engines) as (two, _):
            await asyncio.sleep(3)
            book.reachable = False
            await asyncio.sleep(1)
            await say(one, "drain")
            await asyncio.sleep(1)
            before = await standing(one), await standing(two)
            book.reachable = True
            await asyncio.sleep(3)
            return *before, await standing(one), await standing(two)

    assert run_virtual(main()) == (
        ("draining", "drain", False),
        ("ready", None, False),
        ("draining", "drain", True),
        ("draining", "drain", True),
    )


def test_released_means_by_all():
    """One gateway still has a stream there: the other, which has none, does not call the machine free."""

    async def main() -> tuple[bool, int, bool]:
        store, engines = Store(), {"b": engine()}
        async with gateway(store, "g1", engines) as (one, _), gateway(store, "g2", engines) as (two, _):
            await asyncio.sleep(3)
            stream = asyncio.get_running_loop().create_task(post(two.app, "/v1/chat/completions", chat()).run())
            engines["b"].scripts.append(Script([document()], content_type="application/json", head_s=6.0))
            await asyncio.sleep(1)
            await say(one, "drain")
            await asyncio.sleep(2)
            told = (await get(one, "/admin/replicas/b")).json()
            await stream
            await asyncio.sleep(2)
            return told["released"], told["requests"], (await standing(one))[2]

    assert run_virtual(main()) == (False, 1, True)
