"""The pool against a server that plays scripts, on asyncio's loop and on uvloop."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from backends.backend import ClosedEarly, ConnectFailed, FirstByteTimeout, StreamCut, UpstreamError
from backends.upstream.pool import Pool
from backends.upstream.response import Response
from config.schema import Upstream
from tests.support.patience import PATIENCE_S
from tests.support.scripted_server import (
    Peer,
    ScriptedServer,
    answer,
    answers,
    answers_once,
    chunked,
    closes,
    never_answers,
    resets,
)
from tests.support.wired import rest_of

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a scenario on one kind of loop."""

    def on_loop(scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(scenario)

    return on_loop


async def post(pool: Pool, body: bytes = b"{}") -> Response:
    return await pool.send("POST", "/v1/completions", headers={"x-request-id": "r1"}, body=body)


async def post_whole(pool: Pool) -> bytes:
    return await rest_of(await post(pool))


def test_a_request_goes_out_as_http(run: Run):
    """Request line, host, headers, length and body are exactly these."""

    async def scenario() -> None:
        async with ScriptedServer(answers(answer(b"ok"))) as server:
            pool = Pool(server.url, settings=Upstream())
            assert await post_whole(pool) == b"ok"
            head = f"POST /v1/completions HTTP/1.1\r\nhost: {server.address}\r\nx-request-id: r1\r\ncontent-length: 2\r\n\r\n"
            assert server.requests == [head.encode() + b"{}"]
            await pool.aclose()

    run(scenario())


def test_an_engine_on_a_unix_socket(run: Run, tmp_path: Path):
    """The same protocol over a file; the host is localhost."""

    async def scenario() -> None:
        async with ScriptedServer(answers(answer(b"ok")), path=tmp_path / "s") as server:
            pool = Pool(server.url, settings=Upstream())
            assert [await post_whole(pool) for _ in range(2)] == [b"ok", b"ok"]
            assert b"\r\nhost: localhost\r\n" in server.requests[0]
            assert server.connections == 1
            await pool.aclose()

    run(scenario())


def test_a_unix_socket_that_is_not_there(run: Run, tmp_path: Path):
    """Refused as any other address, and the path is not told."""

    async def scenario() -> None:
        pool = Pool(f"unix://{tmp_path}/none", settings=Upstream())
        with pytest.raises(ConnectFailed, match="no such file") as failed:
            await post(pool)
        assert str(tmp_path) not in str(failed.value)
        await pool.aclose()

    run(scenario())


def test_a_name_with_several_addresses(run: Run, monkeypatch: pytest.MonkeyPatch):
    """The first address that answers is taken: a dead one before it costs a fraction of the connect timeout."""

    async def scenario() -> None:
        async with ScriptedServer(answers(answer(b"ok"))) as server:
            port = int(server.address.rpartition(":")[2])
            kind = type(asyncio.get_running_loop())
            resolve = kind.getaddrinfo

            async def resolved(loop: Any, host: str, *rest: Any, **options: Any) -> list[Any]:
                if host != "engine":
                    return await resolve(loop, host, *rest, **options)
                tcp = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
                return [(*tcp, ("127.0.0.2", port)), (*tcp, ("127.0.0.1", port))]

            monkeypatch.setattr(kind, "getaddrinfo", resolved)
            pool = Pool(f"http://engine:{port}", settings=Upstream())
            assert await post_whole(pool) == b"ok"
            await pool.aclose()

    run(scenario())


def test_a_loop_that_was_held_up_does_not_blame_the_engine(run: Run):
    """The connection came about while nobody looked; its timeout is over when somebody does, and it is used."""

    async def scenario() -> None:
        async with ScriptedServer(answers(answer(b"ok"))) as server:
            pool = Pool(server.url, settings=Upstream(connect_timeout_s=0.02))
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(post_whole(pool))
                await asyncio.sleep(0)  # it has begun to connect
                time.sleep(0.1)
            assert sending.result() == b"ok"
            await pool.aclose()

    run(scenario())


def test_connections_are_kept_alive(run: Run):
    """Requests after one another share a connection, whatever the answer's framing."""

    async def scenario() -> None:
        async with ScriptedServer(answers(*chunked(b"a", b"b"))) as server:
            pool = Pool(server.url, settings=Upstream())
            for _ in range(5):
                assert await post_whole(pool) == b"ab"
            found = pool.statistics()
            assert (server.connections, found.open, found.idle, found.reused_total) == (1, 1, 1, 4)
            await pool.aclose()

    run(scenario())


def test_the_last_one_used_is_used_next(run: Run):
    """LIFO: the freshest connection is the least likely to be stale, and the surplus can expire."""

    async def scenario() -> None:
        def numbered(number: bytes) -> Callable[[Peer], Coroutine[Any, Any, None]]:
            async def play(peer: Peer) -> None:
                while await peer.request():
                    await peer.send(answer(number))

            return play

        async with ScriptedServer(numbered(b"0"), numbered(b"1")) as server:
            pool = Pool(server.url, settings=Upstream())
            first = await post(pool)
            second = await post(pool)
            assert await rest_of(second) == b"1"
            assert await rest_of(first) == b"0"
            assert [await post_whole(pool) for _ in range(3)] == [b"0", b"0", b"0"]
            await pool.aclose()

    run(scenario())


def test_concurrent_streams_get_their_own_bytes(run: Run):
    """64 readers over reused connections and tiny buffers each read their own answer, whole."""

    async def echo(peer: Peer) -> None:
        while True:
            body = (await peer.request()).partition(b"\r\n\r\n")[2]
            await peer.send(*chunked(*[body] * 50))

    async def scenario() -> None:
        async with ScriptedServer(echo) as server:
            pool = Pool(server.url, settings=Upstream(buffer_bytes=64))

            async def reader(number: int) -> None:
                for turn in range(4):
                    body = b"<%d:%d>" % (number, turn)
                    assert await rest_of(await post(pool, body)) == body * 50

            async with asyncio.TaskGroup() as tasks:
                for number in range(64):
                    tasks.create_task(reader(number))
            found = pool.statistics()
            assert (found.open, found.idle) == (server.connections, server.connections)
            await pool.aclose()

    run(scenario())


@pytest.mark.parametrize("ending", [closes, resets])
def test_compat_14_a_stale_connection_is_tried_again_once_on_a_new_one(
    run: Run, ending: Callable[[Peer], Coroutine[Any, Any, None]]
):
    """A kept connection that ends before a byte of answer met the engine's idle close: the request has been seen by nobody."""

    async def then_ends(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"1"))
        await ending(peer)

    async def scenario() -> None:
        async with ScriptedServer(then_ends, answers(answer(b"2"))) as server:
            pool = Pool(server.url, settings=Upstream())
            assert [await post_whole(pool), await post_whole(pool)] == [b"1", b"2"]
            assert (server.connections, pool.statistics().stale_retries_total) == (2, 1)
            await pool.aclose()

    run(scenario())


@pytest.mark.parametrize("kept", [False, True], ids=["a first connection", "in place of a stale one"])
def test_what_may_not_go_any_more_once_connected_is_not_sent(run: Run, kept: bool):
    """It might go when it was asked for, and connecting took its time: nothing is written, the new connection is closed, and the next request goes."""

    class Stay(Exception):
        pass

    async def then_closes(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"1"))
        await closes(peer)

    async def scenario() -> None:
        scripts = [then_closes] if kept else []
        async with ScriptedServer(*scripts, answers(), answers(answer(b"2"))) as server:
            pool, asked = Pool(server.url, settings=Upstream()), []

            def may_go() -> None:
                asked.append(1)
                if len(asked) > 1:
                    raise Stay

            if kept:
                assert await post_whole(pool) == b"1"
            with pytest.raises(Stay):
                await pool.send("POST", "/", headers={}, may_go=may_go)
            assert len(server.requests) == (2 if kept else 0)  # what the stale one was sent nobody has seen
            async with asyncio.timeout(PATIENCE_S):
                while pool.statistics().open:
                    await asyncio.sleep(0.005)
            assert await post_whole(pool) == b"2"
            await pool.aclose()

    run(scenario())


def test_a_second_early_close_is_the_answer(run: Run):
    """One retry: an engine that closes on every request is not asked for ever."""

    async def then_closes(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"1"))
        await closes(peer)

    async def scenario() -> None:
        async with ScriptedServer(then_closes, closes) as server:
            pool = Pool(server.url, settings=Upstream())
            assert await post_whole(pool) == b"1"
            with pytest.raises(ClosedEarly):
                await post(pool)
            assert (server.connections, len(server.requests)) == (2, 3)
            await pool.aclose()

    run(scenario())


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (closes, ClosedEarly),
        (resets, ClosedEarly),
        (answers_once(b"HTTP/1.1 200 O"), StreamCut),
        (answers_once(b"\x16\x03\x01 not http"), StreamCut),
        (never_answers, FirstByteTimeout),
    ],
    ids=["closes", "resets", "half a head", "garbage", "never answers"],
)
def test_a_new_connection_is_not_tried_again(
    run: Run, script: Callable[[Peer], Coroutine[Any, Any, None]], error: type[UpstreamError]
):
    """What to do after a failure that is no keep-alive race is not the pool's to decide; the socket is closed."""

    async def scenario() -> None:
        async with ScriptedServer(script) as server:
            patience = {"first_byte_timeout_s": 0.05} if error is FirstByteTimeout else {}
            pool = Pool(server.url, settings=Upstream(**patience))
            with pytest.raises(error):
                await post(pool)
            assert server.connections == 1
            await pool.aclose()
            assert pool.statistics().open == 0

    run(scenario())


def test_a_stream_that_breaks_off_is_cut(run: Run):
    """The bytes that came are read, then StreamCut, on a reused connection too: no retry after the first byte."""

    async def breaks(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"1"))
        await peer.request()
        await peer.send(*chunked(b"abc", end=False))

    async def scenario() -> None:
        async with ScriptedServer(breaks) as server:
            pool = Pool(server.url, settings=Upstream())
            await post_whole(pool)
            response = await post(pool)
            assert await response.read() == b"abc"
            with pytest.raises(StreamCut):
                await response.read()
            assert server.connections == 1
            await pool.aclose()

    run(scenario())


def test_a_dribbled_answer_is_read_whole(run: Run):
    """Head and chunks byte by byte."""

    async def dribbles(peer: Peer) -> None:
        await peer.request()
        await peer.dribble(b"".join(chunked(b"abc", b"def")))

    async def scenario() -> None:
        async with ScriptedServer(dribbles) as server:
            pool = Pool(server.url, settings=Upstream())
            assert await post_whole(pool) == b"abcdef"
            await pool.aclose()

    run(scenario())


def test_a_large_answer_passes_a_small_buffer(run: Run):
    """Pausing and resuming loses nothing."""
    body = bytes(range(256)) * 8192

    async def scenario() -> None:
        async with ScriptedServer(answers(answer(body))) as server:
            pool = Pool(server.url, settings=Upstream(buffer_bytes=1000))
            assert await post_whole(pool) == body
            await pool.aclose()

    run(scenario())


def test_closing_a_stream_early_reaches_the_engine(run: Run):
    """Closing the answer closes its socket, which is how vLLM learns to abort; the connection is not kept."""
    left = asyncio.Event()

    async def streams(peer: Peer) -> None:
        await peer.request()
        await peer.send(*chunked(b"abc", end=False))
        await peer.gone()
        left.set()

    async def scenario() -> None:
        async with ScriptedServer(streams) as server:
            pool = Pool(server.url, settings=Upstream())
            response = await post(pool)
            await response.read()
            response.close()
            await left.wait()
            assert pool.statistics().idle == 0
            await pool.aclose()

    run(scenario())


def test_cancelling_while_the_head_is_awaited_reaches_the_engine(run: Run):
    """A client that leaves before the first byte must not leave its request running."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()
        left.set()

    async def scenario() -> None:
        async with ScriptedServer(silent) as server:
            pool = Pool(server.url, settings=Upstream())
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(post(pool))
                await asked.wait()
                sending.cancel()
            await left.wait()
            await pool.aclose()
            assert pool.statistics().open == 0

    run(scenario())


def test_idle_connections_are_bounded(run: Run):
    """Beyond the bound the oldest idle one is closed."""

    async def scenario() -> None:
        async with ScriptedServer(answers(answer(b"ok"))) as server:
            pool = Pool(server.url, settings=Upstream(max_idle_connections=2))
            responses = [await post(pool) for _ in range(5)]
            for response in responses:
                assert await rest_of(response) == b"ok"
            assert (server.connections, pool.statistics().idle) == (5, 2)
            await pool.aclose()

    run(scenario())


def test_idle_connections_expire(run: Run):
    """An idle connection is closed before the engine would close it under a request."""
    left = asyncio.Event()

    async def serves(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"ok"))
        await peer.gone()
        left.set()

    async def scenario() -> None:
        async with ScriptedServer(serves) as server:
            pool = Pool(server.url, settings=Upstream(), idle_s=0.01)
            assert await post_whole(pool) == b"ok"
            await left.wait()
            assert pool.statistics().idle == 0
            await pool.aclose()

    run(scenario())


def test_a_refused_connection(run: Run):
    """ConnectFailed says why, in words, and names no address."""

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        pool = Pool(f"http://127.0.0.1:{port}", settings=Upstream())
        with pytest.raises(ConnectFailed) as caught:
            await post(pool)
        assert str(caught.value) == "connection refused"
        await pool.aclose()

    run(scenario())


def test_closing_the_pool_ends_what_runs(run: Run):
    """A reader gets StreamCut, every socket is closed on return, and no new request is taken."""

    async def scenario() -> None:
        async with ScriptedServer(answers(*chunked(b"abc", end=False))) as server:
            pool = Pool(server.url, settings=Upstream())
            response = await post(pool)
            assert await response.read() == b"abc"
            await pool.aclose()
            await pool.aclose()
            assert pool.statistics().open == 0
            with pytest.raises(StreamCut):
                await response.read()
            with pytest.raises(ConnectFailed):
                await post(pool)

    run(scenario())


def test_the_loop_sends_small_writes_at_once(run: Run):
    """Which the pool relies on, by address or by a socket that it was given: a request must not wait for an acknowledgement."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with ScriptedServer(never_answers) as server:
            port = int(server.address.rpartition(":")[2])
            wire = socket.create_connection(("127.0.0.1", port))
            wire.setblocking(False)
            given, _ = await loop.create_connection(asyncio.Protocol, sock=wire)
            opened, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
            for transport in (given, opened):
                assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
                transport.abort()

    run(scenario())
