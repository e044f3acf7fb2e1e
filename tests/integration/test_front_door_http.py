"""HTTP/1.1 as strangers speak it, over a real socket: slow, malformed, smuggled, pipelined, old - and the door stays open."""

from collections.abc import AsyncIterator

import pytest

from config.schema import Config, DataPlane
from tests.support.asgi import chat
from tests.support.conditions import until, until_at_rest
from tests.support.fake_engine import FakeEngine, Script, chunk, document
from tests.support.gateways import Running, fake_config, listening
from tests.support.raw_http import Answer, RawClient, ask, connected, get, head, post

CHAT = "/v1/chat/completions"
STREAM = post(CHAT, chat(stream=True))
DOCUMENT = post(CHAT, chat())


def config_for(engine: FakeEngine, **server: object) -> Config:
    return fake_config({"a": engine}, server=server)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(params=list(DataPlane))
async def gateway(engine: FakeEngine, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    async with listening(config_for(engine, data_plane=request.param), {"a": engine}) as running:
        yield running


@pytest.fixture(params=list(DataPlane))
async def hasty(engine: FakeEngine, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """One that does not wait for heads."""
    config = config_for(engine, data_plane=request.param, header_timeout_s=0.3)
    async with listening(config, {"a": engine}) as running:
        yield running


async def last_answer(client: RawClient) -> Answer:
    """An answer after which the connection is closed."""
    answer = await client.answer()
    assert answer.headers["connection"] == "close"
    assert await client.until_closed() == b""
    return answer


async def test_slow_headers(hasty: Running) -> None:
    """A head that is dribbled gets 408 and its connection back (slowloris); others are served meanwhile."""
    async with connected(hasty.url) as client:
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost:")
        assert (await ask(hasty.url, get("/livez"))).status == 200
        answer = await last_answer(client)
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")


async def test_connection_that_sends_nothing(hasty: Running) -> None:
    """A connection without a byte is closed like one with half a head."""
    async with connected(hasty.url) as client:
        assert (await last_answer(client)).status == 408


async def test_empty_lines_keep_no_connection(hasty: Running) -> None:
    """An empty line after an answer, allowed as it is, does not turn the idle timeout off."""
    async with connected(hasty.url) as client:
        assert (await client.ask(get("/livez"))).status == 200
        await client.send(b"\r\n")
        assert (await last_answer(client)).status == 408


@pytest.mark.parametrize(
    "lines",
    [b"x-filler: " + b"y" * 1000 + b"\r\n", b"a: b\r\n", b"z" * 1000],
    ids=["many long lines", "many lines", "one line without an end"],
)
async def test_header_section_too_large(gateway: Running, lines: bytes) -> None:
    """A head beyond its bounds gets 431 at the bound, however it is cut into lines."""
    async with connected(gateway.url) as client:
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nx: ")
        await client.send_until_refused(lines, 600)
        answer = await last_answer(client)
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")


async def test_request_line_too_large(gateway: Running) -> None:
    """The request line counts as the head does."""
    async with connected(gateway.url) as client:
        await client.send(b"GET /" + b"p" * 100_000)
        assert (await last_answer(client)).status == 431


async def test_malformed_request_line(gateway: Running) -> None:
    """Bytes that are no HTTP get a 400 with an OpenAI error object."""
    for garbage in (
        b"BOGUS\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
    ):
        async with connected(gateway.url) as client:
            await client.send(garbage)
            answer = await last_answer(client)
            assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


async def test_ambiguous_lengths(gateway: Running, engine: FakeEngine) -> None:
    """A body whose end could be read in two ways is how requests are smuggled: refused, nothing after it is read."""
    smuggled = get("/smuggled")
    for lines in (
        ("content-length: 0", f"content-length: {len(smuggled)}"),
        ("content-length: 0", "content-length: 0"),
        ("content-length: 5", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: 5"),
        ("transfer-encoding: chunked, identity",),
        ("content-length: -1",),
        ("content-length: 1 2",),
        ("content-length: 99999999999999999999999",),
        ("content-length : 5",),
    ):
        async with connected(gateway.url) as client:
            await client.send(head("POST", CHAT, *lines) + b"0\r\n\r\n" + smuggled)
            answer = await client.answer()
            assert (answer.status, answer.error["type"]) == (400, "invalid_request_error"), lines
            assert await client.until_closed() == b"", lines
    assert engine.calls == []


async def test_compat_14_keep_alive(gateway: Running, engine: FakeEngine) -> None:
    """One connection serves streams, documents, refusals and GETs in turn."""
    engine.scripts += [Script([chunk("hi", finish="stop")]), Script([document()], content_type="application/json")]
    async with connected(gateway.url) as client:
        assert (await client.ask(STREAM)).events()[-1] == "[DONE]"
        assert (await client.ask(DOCUMENT)).json()["choices"][0]["message"]["content"] == "hello"
        assert (await client.ask(post(CHAT, b"{"))).status == 400
        assert (await client.ask(get("/v1/models"))).status == 200
        assert (await client.ask(STREAM)).events()[-1] == "[DONE]"


async def test_pipelined_requests(gateway: Running, engine: FakeEngine) -> None:
    """Requests sent without waiting are answered in their order, one at a time."""
    engine.scripts += [Script([chunk("one", finish="stop")], gap_s=0.05), Script([chunk("two", finish="stop")])]
    async with connected(gateway.url) as client:
        await client.send(STREAM + STREAM + get("/livez") + post(CHAT, b"{"))
        said = [(await client.answer()).events()[0]["choices"][0]["delta"]["content"] for _ in range(2)]
        assert said == ["one", "two"]
        assert (await client.answer()).json() == {"status": "alive"}
        assert (await client.answer()).status == 400
    assert engine.max_running == 1


async def test_pipelined_client_that_hangs_up(gateway: Running, engine: FakeEngine) -> None:
    """A client that leaves with requests pipelined behind a stream ends the stream, and none of the others begins."""
    engine.default = lambda: Script([chunk("x")] * 10**6, gap_s=0.001)
    async with connected(gateway.url) as client:
        await client.send(STREAM + STREAM + STREAM)
        await client.head()
        await client.chunk()
        client.reset()
    await until(lambda: engine.running == 0)
    await until_at_rest(gateway)
    assert len(engine.calls) == 1


async def test_garbage_behind_a_stream(hasty: Running, engine: FakeEngine) -> None:
    """What is malformed behind a running stream, or late, does not write into it; the stream ends whole, then the connection."""
    for behind in (b"BOGUS\r\n\r\n", b"POST /v1/ch"):
        engine.scripts.append(Script([chunk("x"), chunk("y"), chunk("z", finish="stop")], gap_s=0.25))
        async with connected(hasty.url) as client:
            await client.send(STREAM + behind)
            answer = await client.answer()
            assert answer.events()[-1] == "[DONE]"
            assert b"HTTP/1.1 4" not in answer.body
            await client.until_closed()


async def test_half_close(gateway: Running, engine: FakeEngine) -> None:
    """A client that closes its sending side counts as gone, as behind most proxies: the engine is stopped."""
    engine.default = lambda: Script([chunk("x")], hang=True)
    async with connected(gateway.url) as client:
        await client.send(STREAM)
        await client.head()
        client.end_writing()
        await until(lambda: engine.running == 0)
        await until_at_rest(gateway)
    assert gateway.metric("penstock_client_disconnects_total") == 1


async def test_head_requests(gateway: Running) -> None:
    """HEAD is answered as GET without the body; the connection stays in step."""
    async with connected(gateway.url) as client:
        for path, status in (("/livez", 200), ("/metrics", 200), ("/v1/models", 200), ("/nothing", 404)):
            assert (await client.ask(head("HEAD", path))).status == status
        assert (await client.ask(get("/livez"))).json() == {"status": "alive"}
        assert (await client.ask(head("HEAD", CHAT))).status == 405


async def test_http_1_0(gateway: Running, engine: FakeEngine) -> None:
    """An HTTP/1.0 client gets its answers unchunked and ended by the close, streams included."""
    async with connected(gateway.url) as client:
        answer = await client.ask(post(CHAT, chat(stream=True), version="1.0"))
        assert "transfer-encoding" not in answer.headers
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert answer.body.startswith(b"data: {")
    engine.scripts.append(Script([document()], content_type="application/json"))
    async with connected(gateway.url) as client:
        answer = await client.ask(post(CHAT, chat(), version="1.0"))
        assert answer.json()["choices"][0]["message"]["content"] == "hello"
        assert await client.until_closed() == b""


async def test_offered_upgrade(gateway: Running) -> None:
    """Java's client offers h2c with each request: it is declined silently, and the connection goes on."""
    offer = (
        "connection: Upgrade, HTTP2-Settings",
        "upgrade: h2c",
        "http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    )
    async with connected(gateway.url) as client:
        for _ in range(2):
            assert (await client.ask(post(CHAT, chat(stream=True), *offer))).events()[-1] == "[DONE]"


async def test_connect(gateway: Running) -> None:
    """The gateway is no proxy for tunnels."""
    async with connected(gateway.url) as client:
        await client.send(b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n")
        assert (await last_answer(client)).status == 400


async def test_expect_continue(gateway: Running) -> None:
    """A client such as curl asks before it sends a large body: 100 Continue, then the answer."""
    body = post(CHAT, chat(stream=True)).split(b"\r\n\r\n", 1)[1]
    async with connected(gateway.url) as client:
        await client.send(head("POST", CHAT, f"content-length: {len(body)}", "expect: 100-continue"))
        assert await client.head() == (100, {})
        await client.send(body)
        assert (await client.answer()).events()[-1] == "[DONE]"
