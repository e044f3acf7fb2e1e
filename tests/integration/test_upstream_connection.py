"""One connection, byte by byte: what is an answer, what is a cut, and when it may serve again."""

import pytest

from backends.backend import ClosedEarly, StreamCut, UpstreamError
from backends.upstream.connection import encode_head
from tests.support.scripted_server import answer, chunked
from tests.support.wired import Wired, rest_of


@pytest.mark.parametrize(
    "raw",
    [
        answer(b'{"id": 1}', headers="Content-Type: application/json\r\nx: y\r\n"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            b'3;x=1\r\n{"i\r\n6\r\nd": 1}\r\n0\r\nserver-timing: x\r\n\r\n'
        ),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        + answer(b'{"id": 1}', headers="content-type: application/json\r\n"),
    ],
    ids=["length", "chunked", "informational"],
)
async def test_an_answer_reads_the_same_wherever_it_is_cut(raw: bytes):
    """Head and body may be split over reads at any byte, and 1xx answers in front of it are skipped."""
    for place in range(len(raw)):
        wired = Wired()
        response = wired.start()
        wired.receive(raw[:place], raw[place:])
        await response.wait_head()
        assert (response.status, response.headers["content-type"]) == (200, "application/json")
        assert (await rest_of(response), await response.read()) == (b'{"id": 1}', b"")
        assert wired.log == ["opened", "released"]


async def test_informational_heads_leave_no_headers():
    """What a 103 said is not part of the answer."""
    wired = Wired()
    response = wired.start()
    wired.receive(b"HTTP/1.1 103 Early Hints\r\nretry-after: 9\r\n\r\n", answer(b""))
    await response.wait_head()
    assert response.headers == {"content-length": "0"}


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_answers_without_a_body(status: str):
    """They end with their head, and the connection goes back at once."""
    wired = Wired()
    response = wired.start()
    wired.receive(f"HTTP/1.1 {status}\r\n\r\n".encode())
    assert (await response.read(), wired.log) == (b"", ["opened", "released"])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_body_without_a_length_ends_with_the_connection(version: str):
    """HTTP/1.0 style: the end of the stream is the end of the body, not a cut."""
    wired = Wired()
    response = wired.start()
    wired.receive(f"HTTP/{version} 200 OK\r\n\r\nab".encode(), b"c")
    wired.transport.lose()
    assert (await rest_of(response), wired.log) == (b"abc", ["opened", "lost"])


async def test_a_reset_in_a_body_without_a_length_is_a_cut():
    """Only an orderly close may end it."""
    wired = Wired()
    response = wired.start()
    wired.receive(b"HTTP/1.1 200 OK\r\n\r\nab")
    wired.transport.lose(ConnectionResetError())
    assert await response.read() == b"ab"
    with pytest.raises(StreamCut):
        await response.read()


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        answer(b"ok") + answer(b"surplus"),
        answer(b"ok") + b"garbage",
    ],
    ids=["close", "http/1.0", "second answer", "garbage behind it"],
)
async def test_a_whole_answer_on_a_connection_that_must_not_serve_again(raw: bytes):
    """The answer is good, the connection is closed."""
    wired = Wired()
    response = wired.start()
    wired.receive(raw)
    assert await rest_of(response) == b"ok"
    assert wired.transport.aborted
    assert not wired.connection.usable
    assert "released" not in wired.log


async def test_not_reused_while_the_request_is_still_being_sent():
    """An engine may refuse a large body early; its remains would be read as the next request."""
    wired = Wired()
    response = wired.start()
    wired.transport.unsent_bytes = 1
    wired.receive(answer(b"too large", status="413 Content Too Large"))
    assert await rest_of(response) == b"too large"
    assert wired.transport.aborted


@pytest.mark.parametrize(
    "parts", [[answer(b"abcdef")[:-3]], chunked(b"abc", end=False), [chunked(b"abc")[0], b"5\r\nabc"]]
)
async def test_a_premature_end_is_a_cut_after_all_that_came(parts: list[bytes]):
    """What arrived is read first, then StreamCut; a half body is never taken for a whole one."""
    wired = Wired()
    response = wired.start()
    wired.receive(*parts)
    wired.transport.lose()
    assert await response.read() == b"abc"
    with pytest.raises(StreamCut):
        await response.read()


@pytest.mark.parametrize(("received", "error"), [(b"", ClosedEarly), (b"HTTP/1.1 200 O", StreamCut)])
async def test_a_close_before_the_head(received: bytes, error: type[UpstreamError]):
    """Without a byte of answer it is ClosedEarly, which may be retried; after one it is StreamCut."""
    wired = Wired()
    response = wired.start()
    wired.receive(*([received] if received else []))
    wired.transport.lose(ConnectionResetError())
    with pytest.raises(error):
        await response.wait_head()


async def test_a_request_on_a_connection_just_lost_is_closed_early():
    """The race between taking a connection and its close has a defined end."""
    wired = Wired()
    wired.transport.lose()
    with pytest.raises(ClosedEarly):
        await wired.start().wait_head()
    assert wired.transport.sent == b""


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 70_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3_000,
    ],
    ids=["not http", "http/2", "upgrade", "two lengths", "length and chunked", "folded", "long head", "many 1xx"],
)
async def test_an_unreadable_head_is_a_cut(raw: bytes):
    """Ambiguous, foreign or endless heads are refused and the connection is closed."""
    wired = Wired()
    response = wired.start()
    wired.receive(raw)
    with pytest.raises(StreamCut):
        await response.wait_head()
    assert wired.transport.aborted


async def test_an_unreadable_chunk_is_a_cut():
    """A body that stops being HTTP ends in StreamCut after what was readable."""
    wired = Wired()
    response = wired.start()
    wired.receive(*chunked(b"abc", end=False), b"zz\r\n")
    assert await response.read() == b"abc"
    with pytest.raises(StreamCut):
        await response.read()
    assert wired.transport.aborted


async def test_bytes_nobody_asked_for_close_an_idle_connection():
    """Parting words of a server on an idle connection are not the next request's answer."""
    wired = Wired()
    response = wired.start()
    wired.receive(answer(b"1"))
    await response.read()
    wired.receive(answer(b"2"))
    assert not wired.connection.usable


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\x00b"])
def test_a_header_cannot_forge_a_line(value: str):
    """Refused before anything is sent, in a value as in a target."""
    with pytest.raises(ValueError, match="line break"):
        encode_head("POST", "/", "h", {"x-request-id": value}, 0)
    with pytest.raises(ValueError, match="line break"):
        encode_head("POST", f"/{value}", "h", {}, 0)
