"""Whatever an engine sends: the event splitter, the chunk filter and the HTTP parser neither crash nor hang nor lie about an end."""

import asyncio
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from backends.backend import UpstreamError
from backends.upstream.sse import EventTooLarge, SseSplitter, event_data
from router.openai.chunks import ChunkFilter, check_document
from router.openai.errors import ApiError
from tests.support.fake_engine import chunk, usage_chunk, whole_stream
from tests.support.fake_engine import document as fake_document
from tests.support.fuzzing import fuzz, holds_for
from tests.support.scripted_server import answer, chunked
from tests.support.simulated_calls import CHAT, COMPLETIONS, HELLO, ask
from tests.support.wired import Wired, rest_of

DONE = b"data: [DONE]\n\n"
SEED = 5
ROOT = Path(__file__).resolve().parents[2]
_OPTIONS = {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}


def transcripts() -> list[bytes]:
    """Real streams: what our simulated engine says in vLLM's shapes, with token ids, with two choices, and a fake's."""
    chats = [
        {"messages": HELLO, "max_tokens": 6, **_OPTIONS, **more} for more in ({}, {"return_token_ids": True}, {"n": 2})
    ]
    plain = {"prompt": "Fuzz", "max_tokens": 6, **_OPTIONS}
    streams = [ask(CHAT, body)[1] for body in chats] + [ask(COMPLETIONS, plain)[1]]
    odd = [chunk("é\\u00e9 \U0001f30a"), chunk(None, finish="stop"), usage_chunk(3, 2), DONE]
    return [*streams, b"".join(whole_stream()), b"".join(odd)]


TRANSCRIPTS = transcripts()
TOKENS = [
    b"data: ", b"data:", b"\n\n", b"\r\n\r\n", b"\r", b"\n", b": c\n\n", b"event: error\n", DONE, b"[DONE]", b"null", b"{}", b"[]", b'"', b"\\",
    b"\\u", b"\\ud83d", b"\xc3", b"\xf0\x9f", b"\x00", b'"choices":[', b'"choices":null', b'"index":1', b'"index":-1', b'"delta":{}', b'"text":""',
    b'"content":null', b'"finish_reason":"stop"', b'"finish_reason":"abort"', b'"finish_reason":7', b'"usage":{}', b'"usage":null', b'"role":"assistant"',
    b'"error":{"message":"x"}', b'"error":null', b"1e999", b"-0", b"[" * 200, b"{" * 200,
]  # fmt: skip

Edit = tuple[str, int, int, bytes]
EDIT = st.tuples(
    st.sampled_from(["insert", "delete", "replace", "repeat", "flip"]),
    st.integers(0, 6000),
    st.integers(0, 80),
    st.sampled_from(TOKENS) | st.binary(max_size=8),
)
CUTS = st.lists(st.integers(0, 6000), max_size=12)


def edited(stream: bytes, edits: Sequence[Edit]) -> bytes:
    for kind, place, length, new in edits:
        at = place % (len(stream) + 1)
        after = at if kind == "insert" else at + (1 if kind == "flip" else length)
        piece = stream[at:after]
        flipped = bytes(byte ^ (1 << length % 8) for byte in piece)
        said = {"insert": new, "delete": b"", "replace": new, "repeat": piece * 2, "flip": flipped}[kind]
        stream = stream[:at] + said + stream[after:]
    return stream


def pieces_of(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = sorted({cut % (len(stream) + 1) for cut in cuts} | {0, len(stream)})
    return [stream[a:b] for a, b in pairwise(edges)]


_IN_A_TEXT = re.compile(rb'"(?:content|text)": ?"')


def spoiled_text(stream: bytes, which: int, new: bytes) -> bytes:
    """One text of a stream, made longer by bytes at its beginning; all else is as it was."""
    places = [match.end() for match in _IN_A_TEXT.finditer(stream)]
    at = places[which % len(places)]
    return stream[:at] + new + stream[at:]


IN_A_TEXT = st.builds(
    spoiled_text,
    st.sampled_from(TRANSCRIPTS),
    st.integers(0, 20),
    st.binary(min_size=1, max_size=4)
    | st.sampled_from(TOKENS)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=3).map(str.encode),
)
MUTATED = IN_A_TEXT | st.builds(edited, st.sampled_from(TRANSCRIPTS), st.lists(EDIT, max_size=5))
STREAM = MUTATED | st.lists(st.sampled_from(TOKENS) | st.binary(max_size=6), max_size=40).map(b"".join)


def reference_events(stream: bytes) -> list[bytes]:
    """The same grammar in three lines."""
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return [part.lstrip(b"\n") + b"\n\n" for part in re.split(rb"\n\n", lines)[:-1] if part.lstrip(b"\n")]


@holds_for(stream=STREAM, cuts=CUTS)
def the_splitter(stream: bytes, cuts: list[int]) -> None:
    """However cut, the events are those of the grammar."""
    splitter = SseSplitter()
    events = [event for piece in pieces_of(stream, cuts) for event in splitter.feed(piece)]
    assert events == reference_events(stream)
    for event in events:
        data = event_data(event)
        assert data is None or b"\r" not in data


@holds_for(stream=STREAM, cuts=CUTS, bound=st.integers(8, 200))
def the_splitter_s_bound(stream: bytes, cuts: list[int], bound: int) -> None:
    """What it holds is never more than it may hold."""
    splitter = SseSplitter(max_event_bytes=bound)
    try:
        for piece in pieces_of(stream, cuts):
            assert all(len(event) <= bound for event in splitter.feed(piece))
            assert len(splitter.rest) <= bound
    except EventTooLarge:
        assert max(map(len, [*reference_events(stream), stream])) > bound - 2


def filtered(stream: bytes, cuts: Sequence[int], **options: Any) -> tuple[bytes, ChunkFilter]:
    chunks, out = ChunkFilter(**options), b""
    for piece in pieces_of(stream, cuts):
        out += chunks.read(piece)
        if chunks.done or chunks.error is not None:
            break
    return out, chunks


@holds_for(stream=STREAM, cuts=CUTS, others=CUTS, chat=st.booleans(), strip=st.booleans(), choices=st.integers(1, 2))
def the_chunk_filter(stream: bytes, cuts: list[int], others: list[int], chat: bool, strip: bool, choices: int) -> None:
    """Cut in two ways it says the same; what it forwards is well formed; [DONE] follows every choice's finish reason or never comes."""
    options: dict[str, Any] = {"strip_usage": strip, "expected_choices": choices, "chat": chat}
    out, chunks = filtered(stream, cuts, **options)
    again, other = filtered(stream, others, **options)
    end, other_end = chunks.end(), other.end()
    assert (out, chunks.tokens, chunks.usage, end.tail) == (again, other.tokens, other.usage, other_end.tail)
    assert out == b"" or out.endswith(b"\n\n")
    finished: set[int] = set()
    for part in out.split(b"\n\n")[:-1]:
        assert part.startswith(b"data: "), part
        document = json.loads(part[6:].decode("utf-8"))
        assert not document.get("error")
        for choice in document["choices"]:
            assert 0 <= choice["index"] < choices
            if choice.get("finish_reason"):
                finished.add(choice["index"])
    assert end.complete == end.tail.endswith(DONE)
    assert not end.complete or len(finished) == choices
    assert (end.error is None) == end.complete
    assert end.error is None or isinstance(end.error, ApiError)


DOCUMENTS = [
    *(ask(CHAT, {"messages": HELLO, "max_tokens": 3, **more})[1] for more in ({}, {"n": 2}, {"return_token_ids": True})),
    ask(COMPLETIONS, {"prompt": "Fuzz", "max_tokens": 3})[1], fake_document("é"), b'{"object":"error","message":"x"}',
]  # fmt: skip
DOCUMENT = st.builds(edited, st.sampled_from(DOCUMENTS), st.lists(EDIT, max_size=4)) | st.builds(
    spoiled_text, st.sampled_from(DOCUMENTS[:5]), st.integers(0, 3), st.binary(max_size=4)
)


@holds_for(raw=DOCUMENT, chat=st.booleans())
def the_document_check(raw: bytes, chat: bool) -> None:
    """A document passes as JSON that a client can read, or is one of our errors."""
    try:
        document = check_document(raw, chat=chat)
    except ApiError:
        return
    body = json.loads(document.body.decode("utf-8"))
    assert isinstance(body, dict)
    assert not body.get("error")
    if document.finished and chat:
        assert all(choice["finish_reason"] not in {None, "abort", "error"} for choice in body["choices"])


HEADS = [
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 500\r\n\r\n", b"HTTP/2 200\r\n\r\n",
    b"transfer-encoding: gzip, chunked\r\n", b"transfer-encoding: chunked, identity\r\n", b"content-length: 5\r\n", b"content-length: -1\r\n",
    b"content-length: 18446744073709551616\r\n", b"connection: close\r\n", b"connection: keep-alive\r\n", b"x: " + b"y" * 300 + b"\r\n", b"\r\n",
    b"0\r\n\r\n", b"0\r\ntrailer: x\r\n\r\n", b"ffffffffffffffff\r\n", b"5;ext=1\r\nhello\r\n", b"5 \r\nhello\r\n", b"-1\r\n", b" folded\r\n",
]  # fmt: skip
RESPONSES = [
    answer(b"hello"), answer(b"{}", headers="connection: close\r\n"), answer(b"", status="204 No Content"),
    b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the end", b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"then"),
    *(b"".join(chunked(*[part + b"\n\n" for part in stream.split(b"\n\n")[:-1]])) for stream in TRANSCRIPTS[:2]),
]  # fmt: skip
HTTP_EDIT = st.tuples(
    st.sampled_from(["insert", "delete", "replace", "repeat", "flip"]),
    st.integers(0, 400) | st.integers(0, 6000),
    st.integers(0, 80),
    st.sampled_from(HEADS) | st.binary(max_size=8),
)
HTTP = st.builds(edited, st.sampled_from(RESPONSES), st.lists(HTTP_EDIT, max_size=5)) | st.lists(
    st.sampled_from(HEADS) | st.binary(max_size=10), max_size=12
).map(b"".join)


async def received(pieces: Sequence[bytes], *, lost: bool) -> tuple[str, int, bytes]:
    """How an answer of these bytes ends for its reader: `whole` or the error's kind, its status, the body."""
    wired = Wired(buffer_bytes=2**20)
    response = wired.start()
    for piece in pieces:
        if wired.transport.aborted:
            break
        wired.receive(piece)
    if lost and not wired.transport.aborted:
        wired.transport.lose()
    try:
        async with asyncio.timeout(0.2 if not lost else 20):
            await response.wait_head()
            body = await rest_of(response)
    except UpstreamError as error:
        assert "released" not in wired.log, "a connection that broke is used again"
        return type(error).__name__, 0, b""
    except TimeoutError:
        assert not lost, "nothing more can come, and nobody was told"
        response.close()
        return "open", 0, b""
    finally:
        response.close()
    assert wired.log.count("released") <= 1
    return "whole", response.status, body


@holds_for(raw=HTTP, cuts=CUTS, others=CUTS)
def the_http_parser(raw: bytes, cuts: list[int], others: list[int]) -> None:
    """However cut, an answer ends whole or in one of our errors once its connection is gone, and ends alike."""

    async def main() -> None:
        one = await received(pieces_of(raw, cuts), lost=True)
        two = await received(pieces_of(raw, others), lost=True)
        assert (one[0] == "whole") == (two[0] == "whole"), (one, two)
        assert one[1:] == two[1:] or one[0] != "whole"
        if one[0] == "whole":
            assert 200 <= one[1] <= 999

    asyncio.run(main())


@holds_for(raw=HTTP)
def the_http_parser_reads_no_body_twice(raw: bytes) -> None:
    """A connection that goes back to the pool has nothing of the old answer left: the next answer is the next one."""

    async def main() -> None:
        wired = Wired(buffer_bytes=2**20)
        first = wired.start()
        wired.receive(raw)
        if "released" not in wired.log and not wired.transport.aborted:
            first.close()
        if "released" not in wired.log or wired.transport.aborted:
            assert wired.transport.aborted or wired.log == ["opened", "released"]
            return
        second = wired.start()
        wired.receive(answer(b"the second"))
        await second.wait_head()
        assert (second.status, await rest_of(second)) == (200, b"the second")

    asyncio.run(main())


PROPERTIES = [
    the_splitter, the_splitter_s_bound, the_chunk_filter, the_document_check, the_http_parser, the_http_parser_reads_no_body_twice
]  # fmt: skip


def test_fuzz_upstream() -> None:
    """Some seconds of mutated transcripts, arbitrary bytes and arbitrary cuts, the same ones each time."""
    assert fuzz(PROPERTIES, turns=3, seed=SEED) == 3 * len(PROPERTIES)


@pytest.mark.bars
@pytest.mark.timeout(1800)
def test_fuzz_upstream_for_long(tmp_path: Path) -> None:
    """Ten minutes, other ones each time; half of them guided by coverage, where atheris can be had."""
    seed = secrets.randbelow(2**31)
    guided = find_spec("atheris") is not None
    assert fuzz(PROPERTIES, seconds=300 if guided else 600, seed=seed) >= len(PROPERTIES)
    if guided:
        guide_by_coverage(tmp_path, seconds=300, seed=seed)


def guide_by_coverage(folder: Path, *, seconds: int, seed: int) -> None:
    """In a process of its own: it ends the one it runs in."""
    command = [sys.executable, "-m", "tests.fuzz.coverage_guided", f"-max_total_time={seconds}", f"-seed={seed}"]
    place = [f"-artifact_prefix={folder}/", str(folder)]
    run = subprocess.run([*command, *place], capture_output=True, text=True, check=False, cwd=ROOT)
    print(run.stderr[-200:])
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
