"""A plain delta in a chunk of its own goes to the client in the engine's own framing: the same answer, however it was framed and cut."""

import asyncio
import json
from functools import cache
from itertools import accumulate
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from backends.alarms import Alarms
from metrics.catalog import Metrics
from metrics.histogram import Series
from metrics.overhead import Overhead
from metrics.timeline import Timeline
from router.body_budget import BodyBudget
from router.hot_cycle import HotCycle, HotPlane
from router.openai.chunks import ChunkFilter
from router.openai.journal import Journal
from router.relay import KeepAlive, Relay
from tests.support.wired import Wired

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
IDENTITY = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"


def event(delta: dict[str, str], finish: str | None = None, **extra: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, **extra}
    told = json.dumps({**IDENTITY, "choices": [choice]}, separators=(",", ":"), ensure_ascii=False)
    return b"data: " + told.encode() + b"\n\n"


def said(text: str, **extra: Any) -> bytes:
    return event({"content": text}, **extra)


ROLE = event({"role": "assistant", "content": ""})
END = event({}, "stop")


def framed(data: bytes, *, form: str = "%x") -> bytes:
    return (form % len(data)).encode() + b"\r\n" + data + b"\r\n"


@cache
def overhead() -> Overhead:
    return Overhead(Metrics.create(CollectorRegistry()))


class Socket(asyncio.Transport):
    """The client's side: what is written to it, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))


class Side:
    """uvicorn's protocol, as far as a cycle needs it."""

    def __init__(self) -> None:
        self.transport = Socket()
        self.loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Task[None]] = set()
        self.default_headers: list[tuple[bytes, bytes]] = []

    def on_response_complete(self) -> None:
        pass


class Nobody:
    """Serves nothing: the test does."""

    async def __call__(self, inbound: Any, client: Any) -> None:
        raise AssertionError

    def refused(self, path: str, error: Any, request_id: str) -> None:
        raise AssertionError


class Heard:
    """What the ledger is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def first(self, now: float) -> None:
        self.steps.append(0)

    def step(self, total: int) -> None:
        self.steps.append(total)


class Body:
    """A client's reader: httptools', so that the framing is judged by another than the one who wrote it."""

    def __init__(self, data: bytes) -> None:
        self.data = b""
        self.whole = False
        httptools.HttpResponseParser(self).feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.data += data

    def on_message_complete(self) -> None:
        self.whole = True


class Stream:
    """One stream from an engine's bytes to its client's socket, through everything that is between."""

    def __init__(self, *, chunked_client: bool = True, hide_ids: bool = False) -> None:
        self.side = Side()
        plane = HotPlane(
            handler=Nobody(), bodies=BodyBudget(1), max_body_bytes=1, body_timeout_s=1, buffer_bytes=1 << 20
        )
        client = HotCycle(self.side, plane, "/v1/chat/completions", (), keep_alive=True)
        self.journal = Journal(room_bytes=1 << 20, exact=hide_ids)
        self.chunks = ChunkFilter(strip_usage=False, expected_choices=1, chat=True, journal=self.journal)
        self.chunks.hide_ids = hide_ids
        self.timeline = Timeline(0.0)
        self.heard = Heard()
        headers: list[tuple[bytes, bytes]] = [] if chunked_client else [(b"content-length", b"100000")]
        self.relay = Relay(
            client,
            self.chunks,
            self.timeline,
            gaps=Series((1.0,)),
            overhead=overhead(),
            begins=lambda: None,
            heard=self.heard,
            silence=KeepAlive(client, 1000, lambda: headers, Alarms()),
        )
        self.client = client
        self.wired = Wired(buffer_bytes=1 << 20)

    async def pour(self, *reads: bytes) -> "Stream":
        """The engine's bytes, a read after the other, to the stream's end."""
        response = self.wired.start()
        self.wired.receive(HEAD)
        pouring = asyncio.get_running_loop().create_task(response.pour(self.relay))
        await asyncio.sleep(0)
        self.wired.receive(*reads)
        await asyncio.wait_for(pouring, 5)
        self.client.end(self.chunks.end().tail)
        return self

    @property
    def written(self) -> list[bytes]:
        return self.side.transport.written

    @property
    def body(self) -> bytes:
        read = Body(b"".join(self.written))
        assert read.whole, "the client waits for more"
        return read.data


async def test_a_chunk_with_a_plain_delta_goes_on_as_it_came() -> None:
    """One write for a read, of the very same bytes, also where several came at once."""
    several = framed(said("c")) + framed(said(" d")) + framed(said("e"))
    stream = await Stream().pour(
        framed(ROLE), framed(said("a")), framed(said(" b")), several, framed(END), framed(DONE) + LAST
    )
    assert framed(said(" b")) in stream.written
    assert several in stream.written
    assert stream.body == ROLE + b"".join(map(said, ("a", " b", "c", " d", "e"))) + END + DONE
    assert (stream.chunks.tokens, stream.timeline.output_tokens, bytes(stream.journal.text)) == (5, 5, b"a bc de")
    assert stream.wired.log == ["opened", "released"]


async def test_the_ledger_is_told_as_ever() -> None:
    """Of the first token, then each eight."""
    stream = await Stream().pour(framed(ROLE), *[framed(said("x"))] * 20, framed(END), framed(DONE) + LAST)
    assert stream.heard.steps == [0, 1, 9, 17]


@pytest.mark.parametrize("form", ["%X", "%06x", "%x;name=value"])
async def test_other_ways_to_write_a_size(form: str) -> None:
    """Capitals and zeros are HTTP/1.1's, too; an extension is for the engine's hop and is not passed on."""
    body = [framed(said("x" * 60), form=form)] * 3
    stream = await Stream().pour(framed(ROLE), *body, framed(END), framed(DONE) + LAST)
    assert stream.body == ROLE + said("x" * 60) * 3 + END + DONE
    assert not any(b"name=value" in written for written in stream.written)


async def test_ids_that_the_client_did_not_ask_for_are_cut_out() -> None:
    """Such a chunk is written anew."""
    told = [framed(said(word, token_ids=[7])) for word in ("a", "b", "c")]
    stream = await Stream(hide_ids=True).pour(framed(ROLE), *told, framed(END), framed(DONE) + LAST)
    assert stream.body == ROLE + said("a") + said("b") + said("c") + END + DONE
    assert bytes(stream.journal.ids) == b",7,7,7"


async def test_a_client_without_chunks_gets_the_bodies_only() -> None:
    """Its answer has a length: framing would be part of it."""
    stream = await Stream(chunked_client=False).pour(
        framed(ROLE), *[framed(said("x"))] * 3, framed(END), framed(DONE) + LAST
    )
    assert b"".join(stream.written).partition(b"\r\n\r\n")[2] == ROLE + said("x") * 3 + END + DONE


RIGHT = framed(said("c"))
WRONG = {
    "a size too small": b"%x" % (len(said("c")) - 1) + RIGHT[2:],
    "a size too large": b"%x" % (len(said("c")) + 1) + RIGHT[2:],
    "no size": RIGHT[2:],
    "a size without an end": RIGHT[:2],
    "no line feed after the size": RIGHT.replace(b"\r\n", b"\r\r", 1),
    "no line feed after the chunk": RIGHT[:-1] + b"\r",
    "not whole": RIGHT[:-1],
    "a size with many zeros": b"0" * 20 + RIGHT,
    "the last one": LAST,
    "nothing": b"",
}


def learned() -> ChunkFilter:
    chunks = ChunkFilter(strip_usage=False, expected_choices=1, chat=True)
    chunks.read(ROLE + said("a") + said("b"))
    return chunks


@pytest.mark.parametrize("data", WRONG.values(), ids=list(WRONG))
def test_only_whole_and_right_chunks_pass(data: bytes) -> None:
    """What is before them does; the rest is the parser's."""
    chunks = learned()
    assert chunks.read_frames(data) == 0
    assert chunks.read_frames(RIGHT + data) == len(RIGHT)
    assert chunks.tokens == 3


def test_no_chunk_passes_in_the_middle_of_an_event() -> None:
    """It belongs to the event."""
    chunks = learned()
    chunks.read(b"data: {")
    assert chunks.read_frames(RIGHT) == 0


async def agree(body: bytes, reads: list[bytes]) -> None:
    """The client's body is what a filter makes of the engine's in one piece; tokens, journal and connection are as they should be."""
    journal = Journal(room_bytes=1 << 20, exact=False)
    whole = ChunkFilter(strip_usage=False, expected_choices=1, chat=True, journal=journal)
    expected = whole.read(body) + whole.end().tail
    stream = await Stream().pour(*reads)
    assert stream.body == expected
    assert stream.chunks.tokens == whole.tokens
    assert stream.journal.text == journal.text
    assert stream.wired.log == ["opened", "released"] or whole.error is not None  # what follows an error is not read


INNER = framed(said("inner"))
LOOKS_LIKE_A_CHUNK = {
    "the body of one, after a read that ended with its size": [b"%x\r\n" % len(INNER), INNER, b"\r\n"],
    "in the middle of one, after an event": [
        b"%x\r\n" % len(said("b") + b"\r\n" + INNER) + said("b") + b"\r\n",
        INNER,
        b"\r\n",
    ],
    "after half an event": [framed(said("half")[:-10]), framed(said("c")), framed(said("half")[-10:])],
    "after half an event that is the next one's": [framed(b"data: {"), framed(said("c"))],
}


@pytest.mark.parametrize("reads", LOOKS_LIKE_A_CHUNK.values(), ids=list(LOOKS_LIKE_A_CHUNK))
async def test_what_only_looks_like_a_chunk_with_an_event(reads: list[bytes]) -> None:
    """Where a chunk begins is what the parser says, and where an event begins the splitter."""
    before, after = [framed(ROLE), framed(said("a")), framed(said("a"))], [framed(END), framed(DONE) + LAST]
    reads = [*before, *reads, *after]
    await agree(Body(HEAD + b"".join(reads)).data, reads)


NOT_PLAIN = st.sampled_from([said('say "a"\n'), said("x", token_ids=[1, 2]), said("\u2028"), b": ping\n\n", said("é")])
EVENTS = st.lists(st.text("abc é", min_size=1, max_size=5).map(said) | NOT_PLAIN, max_size=12)
FORMS = st.sampled_from(["%x", "%x", "%x", "%X", "%03x"])


@given(EVENTS, st.data())
def test_however_it_was_framed_and_cut(events: list[bytes], data: st.DataObject) -> None:
    """Mostly a chunk an event, and a read a chunk; some hold several, some a part."""
    body = ROLE + said("first") + b"".join(events) + END + DONE
    borders = set(accumulate(map(len, (ROLE, said("first"), *events, END))))
    borders ^= set(data.draw(st.lists(st.integers(1, len(body) - 1), max_size=4)))
    borders -= set(data.draw(st.lists(st.sampled_from(sorted(borders)), max_size=3)))
    wire = [framed(one, form=data.draw(FORMS)) for one in pieces(body, borders)]
    sent = b"".join(wire) + LAST
    cuts = {*accumulate(map(len, wire))} ^ set(data.draw(st.lists(st.integers(1, len(sent) - 1), max_size=6)))
    asyncio.run(agree(body, pieces(sent, cuts)))


def pieces(whole: bytes, cuts: set[int]) -> list[bytes]:
    ends = [*sorted(cuts), len(whole)]
    return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]
