"""The board on real sockets: two workers as one gateway, whichever of them is asked; a stream's end at the gateway's."""

import asyncio
import os
import re
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from router.board.changes import applied
from router.board.document import Live
from tests.support.asgi import chat
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.raw_http import RawClient, connected, head, post
from tests.support.two_workers import PATIENCE_S, engine, one_each, two_workers, write

CHAT = "/v1/chat/completions"
WATCH = head("GET", "/admin/live")
LOOK = head("GET", "/admin/fleet")


def story(tokens: int, **fields: object) -> bytes:
    return post(CHAT, chat("Hello", stream=True, max_tokens=tokens, ignore_eos=True, **fields))


async def fleet(client: RawClient) -> Live:
    answer = await client.ask(LOOK)
    assert answer.status == 200, answer.body
    return msgspec.json.decode(answer.body, type=Live)


async def next_event(client: RawClient) -> Live:
    """Of a stream under way: a chunk is an event."""
    data = next(line for line in (await client.chunk()).split(b"\n") if line.startswith(b"data: "))
    return msgspec.json.decode(data[6:], type=Live)


async def until(client: RawClient, holds: Callable[[Live], bool]) -> Live:
    async with asyncio.timeout(PATIENCE_S):
        while not holds(known := await fleet(client)):
            await asyncio.sleep(0.1)
    return known


def running(known: Live) -> int:
    return known.replicas[0].running


def tokens(known: Live) -> int:
    return sum(pulse.output_tokens for pulse in known.pulses)


async def test_whoever_is_asked_shows_all_workers(tmp_path: Path) -> None:
    """One stream in each: both are running, both placements are there, every token of both is in the pulses of either."""
    async with two_workers(tmp_path) as gateway, AsyncExitStack() as stack:
        looking = await one_each(stack, gateway.url)
        talking = await one_each(stack, gateway.url)
        for client in talking.values():
            await client.send(story(500))
            await client.head()
        for client in looking.values():
            known = await until(client, lambda known: running(known) == 2)
            assert known.workers == 2
            assert known.replicas[0].held_blocks > 0
            assert len(known.placements) == 2
            assert {line.replica for line in known.placements} == {"sim"}
        for client in talking.values():
            await client.rest_of_chunks()
        for client in looking.values():
            known = await until(client, lambda known: running(known) == 0 and tokens(known) == 1000)
            assert sum(pulse.requests for pulse in known.pulses) == 2
            assert {line.outcome for line in known.placements} == {"completed"}
            assert any(pulse.itl_p50_s is not None for pulse in known.pulses)


async def test_what_waits_in_two_workers_is_one_row(tmp_path: Path) -> None:
    """Of a model, tier and tenant, whichever worker is asked."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(engine(speed=0.2))
        path = write(tmp_path, url, max_num_seqs=2)
        gateway = await stack.enter_async_context(serving(path, "--workers", "2"))
        looking = await one_each(stack, gateway.url)
        for _ in range(2):
            for client in (await one_each(stack, gateway.url)).values():
                await client.send(story(2000, service_tier="flex"))
        known = await until(looking[1], lambda known: [row.depth for row in known.queue] == [2])
        (row,) = known.queue
        assert (row.model, row.service_tier, row.tenant) == ("m", "flex", "anonymous")
        await until(looking[2], lambda known: [row.depth for row in known.queue] == [2])


async def test_a_viewer_outlives_another_worker(tmp_path: Path) -> None:
    """Its stream goes on, says that one is missing, then that there are two again."""
    async with two_workers(tmp_path) as gateway, AsyncExitStack() as stack:
        clients = await one_each(stack, gateway.url)
        await clients[1].send(WATCH)
        await clients[1].head()
        known = await next_event(clients[1])
        assert (known.whole, known.workers) == (True, 2)
        killed: set[int] = set()
        async with asyncio.timeout(PATIENCE_S):
            while known.workers == 2:  # between two events one may have come back already; each time it takes longer to
                kill_second(gateway, killed)
                known = applied(known, await next_event(clients[1]))
            assert known.workers == 1
            while known.workers != 2:
                known = applied(known, await next_event(clients[1]))


def kill_second(gateway: GatewayProcess, killed: set[int]) -> None:
    """The second worker that serves by now, unless it was killed before."""
    victim = int(re.findall(r"worker 2 serves \(pid (\d+)\)", gateway.log)[-1])
    if victim not in killed:
        killed.add(victim)
        os.kill(victim, signal.SIGKILL)


async def test_viewers_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """They see the drain while something runs; then the stream ends as it should, and the gateway is gone."""
    async with engine() as url, serving(write(tmp_path, url, drain_timeout_s=60)) as gateway:
        async with connected(gateway.url) as watching, connected(gateway.url) as talking:
            await talking.send(story(500))
            await talking.head()
            await watching.send(WATCH)
            await watching.head()
            known = await next_event(watching)
            gateway.signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                while not known.draining:
                    known = applied(known, await next_event(watching))
            assert (await talking.rest_of_chunks()).endswith(b"data: [DONE]\n\n")
            await watching.rest_of_chunks()  # raises where the last chunk is missing
            assert await gateway.exit_code() == 0
        assert "Traceback" not in gateway.log
        assert "ERROR" not in gateway.log
