"""`GET /admin/live` and `/admin/fleet` over a whole gateway in virtual time: what they show, and who may see it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from batching.request import ServiceTier
from router.board.changes import applied
from router.board.document import VERSION, Live
from router.board.feed import MOST_VIEWERS
from router.decision_documents import Pseudonyms
from tests.support.asgi import Call, chat, post
from tests.support.fake_engine import FakeEngine, Script, chunk, whole_stream
from tests.support.gateways import Running, fake_config, gateway_over
from tests.support.scheduling import request
from tests.support.virtual_time import run_virtual

HOST = ("host", "127.0.0.1:8080")
CHAT = "/v1/chat/completions"
NAMES = Pseudonyms(b"shared by the workers")
KEY = "0123456789abcdef-of-the-admin"
SLOW = 40  # words of a stream, ten a second


def slow_stream() -> Script:
    return Script([chunk("", role="assistant"), *whole_stream(SLOW)[1:]], gap_s=0.1)


def with_gateway(main: Callable[[Running], Awaitable[None]], *engines: FakeEngine, **sections: Any) -> None:
    async def run() -> None:
        named = dict(zip("abc", engines or (FakeEngine(default=slow_stream),), strict=False))
        capacity, names = sections.pop("capacity", None), sections.pop("names", None)
        async with gateway_over(named, fake_config(named, capacity, **sections), names=names) as running:
            await main(running)

    run_virtual(run())


def call(running: Running, path: str, **options: Any) -> Call:
    return Call(running.app, f"/admin/{path}", method="GET", headers=options.pop("headers", (HOST,)), **options)


async def fleet(running: Running) -> Live:
    return msgspec.json.decode((await call(running, "fleet").run()).data, type=Live)


def events(watching: Call) -> list[Live]:
    return [msgspec.json.decode(data, type=Live) for data in watching.events()]


async def watch(running: Running, tasks: asyncio.TaskGroup, count: int) -> Call:
    """A viewer that has had so many events."""
    watching = call(running, "live")
    tasks.create_task(watching.run())
    await watching.until_chunks(count)
    return watching


def test_a_stream_shows_as_it_flows_and_where_it_went():
    """Tokens a second, running, blocks, latency of each second; the placement with its formula, and later its end."""

    async def main(running: Running) -> None:
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(post(running.app, CHAT, chat(stream=True)).run())
            watching = await watch(running, tasks, 4)
            known: Live | None = None
            for event in events(watching):
                known = applied(known, event)
            assert known is not None
            (card,) = known.replicas
            assert (card.name, card.running, card.backend, card.lifecycle) == ("a", 1, "openai", "ready")
            assert 5 <= card.output_tokens_per_s <= 12
            assert card.held_blocks > 0
            assert card.reserved_blocks >= card.held_blocks
            assert [pulse.output_tokens for pulse in known.pulses[1:]] == [pytest.approx(10, abs=8)] * 2
            assert known.pulses[-1].itl_p50_s == pytest.approx(0.1, abs=0.03)
            assert known.pulses[-1].kv_used_ratio
            (line,) = known.placements
            assert (line.replica, line.model, line.outcome) == ("a", "m", None)
            assert line.ttft_s is not None
            assert line.formula.startswith("a [on_demand] by ")
            assert [candidate.replica for candidate in line.candidates] == ["a"]
            assert (known.workers, known.penstock, known.version) == (1, "test", VERSION)
            await asking
            await watching.until_chunks(7)
            for event in events(watching)[4:]:
                known = applied(known, event)
            assert known.placements[0].outcome == "completed"
            assert known.replicas[0].running == 0
            assert sum(pulse.output_tokens for pulse in known.pulses) == SLOW
            assert sum(pulse.requests for pulse in known.pulses) == 1
            watching.hang_up()

    with_gateway(main)


def test_events_come_to_what_a_look_shows():
    """Whoever has read the stream knows what `/admin/fleet` says at the same time."""

    async def main(running: Running) -> None:
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(post(running.app, CHAT, chat(stream=True)).run()) for _ in range(3)]
            watching = await watch(running, tasks, 6)
            known: Live | None = None
            for event in events(watching):
                known = applied(known, event)
            assert known == await fleet(running)
            assert not any(event.whole for event in events(watching)[1:])
            await asyncio.gather(*asking)
            watching.hang_up()

    with_gateway(main)


def test_curves_are_there_at_once():
    """Seconds are kept though nobody has watched; two minutes of them."""

    async def main(running: Running) -> None:
        await post(running.app, CHAT, chat(stream=True)).run()
        await asyncio.sleep(20)
        known = await fleet(running)
        assert sum(pulse.output_tokens for pulse in known.pulses) == SLOW
        assert len(known.pulses) == int(asyncio.get_running_loop().time())
        await asyncio.sleep(200)
        assert len((await fleet(running)).pulses) == 120

    with_gateway(main)


def test_the_queue_is_shown_by_tenant_under_pseudonyms():
    """Who waits, for how long, and no name of a customer; gateways that share a secret have one name for each."""

    async def main(running: Running) -> None:
        async with asyncio.TaskGroup() as tasks:
            busy = tasks.create_task(post(running.app, CHAT, chat(stream=True)).run())
            await asyncio.sleep(0.1)
            now = asyncio.get_running_loop().time()
            for number, tenant in enumerate(("alice", "alice", "bob")):
                tier = ServiceTier.FLEX
                running.gateway.scheduler.submit(
                    request(str(number), tenant=tenant, service_tier=tier, arrived_s=now), now
                )
            await asyncio.sleep(1.0)
            known = await fleet(running)
            assert [(row.depth, row.tokens, row.service_tier) for row in known.queue] == [
                (2, 200, "flex"),
                (1, 100, "flex"),
            ]
            assert all(row.oldest_s == pytest.approx(1.0) for row in known.queue)
            assert known.pulses[-1].queue_depth == 3
            assert [row.tenant for row in known.queue] == [NAMES.tenant("alice"), NAMES.tenant("bob")]
            assert "alice" not in (await call(running, "fleet").run()).data.decode()
            await busy

    with_gateway(main, capacity={"max_num_seqs": 1}, names=NAMES)


def test_a_drained_replica_counts_down():
    """Its lifecycle, the reason, and a deadline on the document's own clock."""

    async def main(running: Running) -> None:
        await asyncio.sleep(5)
        drained = Call(running.app, "/admin/replicas/b/drain", json.dumps({"deadline_s": 60}).encode(), headers=(HOST,))
        assert (await drained.run()).status == 200
        known = await fleet(running)
        card = known.replicas[1]
        assert (card.name, card.lifecycle, card.reason) == ("b", "draining", "drain")
        assert card.deadline_unix_s is not None
        assert card.deadline_unix_s - known.unix_s == pytest.approx(60, abs=0.2)

    with_gateway(main, FakeEngine(), FakeEngine())


def test_without_a_ledger_there_are_no_placements():
    """decisions.ring 0: everything else is shown."""

    async def main(running: Running) -> None:
        await post(running.app, CHAT, chat(stream=True)).run()
        known = await fleet(running)
        assert known.placements == ()
        assert len(known.replicas) == 1

    with_gateway(main, decisions={"ring": 0})


def test_a_viewer_that_leaves_is_gone_at_once():
    """Nothing is looked at any more, and its place is free."""

    async def main(running: Running) -> None:
        async with asyncio.TaskGroup() as tasks:
            watching = await watch(running, tasks, 2)
            assert len(running.gateway.board.feed) == 1
            left_s = asyncio.get_running_loop().time()
            watching.hang_up()
        assert asyncio.get_running_loop().time() == left_s
        assert len(running.gateway.board.feed) == 0

    with_gateway(main)


def test_a_viewer_that_does_not_read_is_cut_off():
    """After server.write_stall_timeout_s, as a stream's client."""

    async def main(running: Running) -> None:
        async with asyncio.TaskGroup() as tasks:
            stuck = call(running, "live", slow_client=asyncio.Event())
            tasks.create_task(stuck.run())
            await asyncio.sleep(29)
            assert len(running.gateway.board.feed) == 1
        assert asyncio.get_running_loop().time() == pytest.approx(30, abs=0.1)
        assert len(running.gateway.board.feed) == 0

    with_gateway(main, server={"write_stall_timeout_s": 30.0})


def test_one_too_many_is_told_so():
    """429 before the stream begins; the document has no such limit."""

    async def main(running: Running) -> None:
        viewers = [running.gateway.board.feed.join() for _ in range(MOST_VIEWERS)]
        refused = await call(running, "live").run()
        assert (refused.status, refused.json()["error"]["code"]) == (429, "too_many_viewers")
        assert refused.header("retry-after") is not None
        assert (await call(running, "fleet").run()).status == 200
        running.gateway.board.feed.leave(viewers[0])

    with_gateway(main)


def test_a_drain_is_watched_and_the_end_ends_the_stream():
    """The document says that it drains; the last byte is a clean end."""

    async def main(running: Running) -> None:
        async with asyncio.TaskGroup() as tasks:
            watching = await watch(running, tasks, 1)
            running.gateway.begin_drain()
            await watching.until_chunks(2)
            assert events(watching)[-1].draining is True
            running.gateway.board.feed.end()
        assert watching.complete
        assert (await call(running, "live").run()).status == 503

    with_gateway(main)


def test_a_silent_stream_gets_comments():
    """Where no event can be made for a while, no proxy takes the connection for dead."""

    async def main(running: Running) -> None:
        async def hangs(_: Live | None) -> Live:
            await asyncio.sleep(50)
            raise AssertionError("nobody waits so long")

        async with asyncio.TaskGroup() as tasks:
            watching = await watch(running, tasks, 1)
            running.gateway.board.feed._look = hangs
            await watching.until_chunks(3)
            assert watching.data.endswith(b": keep-alive\n\n: keep-alive\n\n")
            watching.hang_up()

    with_gateway(main, server={"keepalive_comment_s": 5.0})


@pytest.mark.parametrize("path", ["live", "fleet"])
def test_only_the_admin_may_look(path: str):
    """As all of /admin: by key where there is one, else from this machine alone."""

    async def with_key(running: Running) -> None:
        assert (await call(running, path).run()).status == 401
        allowed = call(running, path, headers=(HOST, ("authorization", f"Bearer {KEY}")))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(allowed.run())
            await allowed.until_chunks(1)
            allowed.hang_up()
        assert allowed.status == 200

    async def without(running: Running) -> None:
        stranger = await call(running, path, headers=(("host", "penstock.example.com"),)).run()
        assert stranger.status == 404
        assert len(running.gateway.board.feed) == 0

    with_gateway(with_key, server={"admin_key": KEY})
    with_gateway(without)


def test_the_stream_says_what_it_is():
    """No cache, no proxy's buffer; documented in OpenAPI."""

    async def main(running: Running) -> None:
        async with asyncio.TaskGroup() as tasks:
            watching = await watch(running, tasks, 1)
            assert (watching.header("content-type") or "").startswith("text/event-stream")
            assert watching.header("cache-control") == "no-store"
            assert watching.header("x-accel-buffering") == "no"
            assert watching.header("content-length") is None
            watching.hang_up()
        paths = (await Call(running.app, "/openapi.json", method="GET").run()).json()["paths"]
        assert "text/event-stream" in paths["/admin/live"]["get"]["responses"]["200"]["content"]
        assert "application/json" in paths["/admin/fleet"]["get"]["responses"]["200"]["content"]

    with_gateway(main)
