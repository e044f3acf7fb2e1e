"""The fake engine and the load generator, against each other and against servers that break their streams. No times."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from benchmarks.overhead.processes import Running, started, stop
from benchmarks.overhead.programs import Load, Programs, Seen
from benchmarks.overhead.targets import engine
from tests.support.ports import free_port

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
EVENTS = 4


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs.compiled(tmp_path_factory.mktemp("programs"))


def event(number: int, *, last: bool = False, **extra: object) -> bytes:
    choice = {"index": 0, "delta": {"content": f" #{number:06} words"}, "finish_reason": "length" if last else None}
    return b"data: " + json.dumps({"choices": [choice], **extra}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def stream(*events: bytes) -> bytes:
    return HEAD + b"".join(chunk(one) for one in events) + END


CONTENT = [event(1), event(2), event(3), event(4, last=True)]
NOT_WHOLE = {
    "an event is missing": stream(event(1), event(2), event(4, last=True), DONE),
    "an event comes twice": stream(event(1), event(2), event(2), event(3), event(4, last=True), DONE),
    "two events change places": stream(event(1), event(3), event(2), event(4, last=True), DONE),
    "the last event is missing": stream(event(1), event(2), event(3, last=True), DONE),
    "no [DONE]": stream(*CONTENT),
    "[DONE] twice": stream(*CONTENT, DONE, DONE),
    "an event after [DONE]": stream(*CONTENT, DONE, event(5)),
    "no finish reason": stream(event(1), event(2), event(3), event(4), DONE),
    "one event too many": stream(event(1), event(2), event(3), event(4), event(5, last=True), DONE),
}
ERRORS = {
    "the body does not end": stream(*CONTENT, DONE).removesuffix(END),
    "cut off in an event": stream(*CONTENT, DONE)[:-60],
    "another status": b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy",
    "no answer": b"",
}
WHOLE = {
    "as the engine sends it": [stream(*CONTENT, DONE)],
    "byte by byte": [bytes([byte]) for byte in stream(*CONTENT, DONE)],
    "several events in a chunk": [HEAD + chunk(b"".join([*CONTENT, DONE])) + END],
    "an event over two chunks": [HEAD, chunk(CONTENT[0][:40]), chunk(CONTENT[0][40:]), *map(chunk, [*CONTENT[1:], DONE]), END],
    "other events and fields": [
        stream(b": a comment\n\n", event(1, usage={"total_tokens": 3}), *CONTENT[1:], b'data: {"choices":[],"usage":{}}\n\n', DONE)
    ],
    "counted": [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(b"".join([*CONTENT, DONE])), *CONTENT, DONE],
}  # fmt: skip


async def loaded(programs: Programs, load: Load) -> Seen:
    process = await asyncio.create_subprocess_exec(
        programs.load, *load.arguments(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return Seen.parse(out.decode())


async def answered(programs: Programs, pieces: Sequence[bytes]) -> Seen:
    """What the load generator sees of a server that answers each connection's first request with these and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await loaded(programs, Load(port=port, connections=1, seconds=0.02, events=EVENTS, grace_s=5))


@pytest.mark.parametrize("pieces", WHOLE.values(), ids=list(WHOLE))
async def test_a_whole_stream_is_whole_however_it_comes(programs: Programs, pieces: list[bytes]):
    """Chunks, reads, and what gateways add do not matter; numbers, finish reason and [DONE] do."""
    seen = await answered(programs, pieces)
    assert seen.whole >= 1, seen.complaint
    assert seen.events >= EVENTS
    assert seen.broken == 0


@pytest.mark.parametrize("answer", NOT_WHOLE.values(), ids=list(NOT_WHOLE))
async def test_a_broken_stream_is_noticed(programs: Programs, answer: bytes):
    """A stream that ends properly and lacks, doubles or reorders anything is broken."""
    seen = await answered(programs, [answer])
    assert (seen.whole, seen.broken, seen.errors) == (0, 1, 0)
    assert "not whole" in seen.complaint


@pytest.mark.parametrize("answer", ERRORS.values(), ids=list(ERRORS))
async def test_a_refused_or_cut_off_stream_is_an_error(programs: Programs, answer: bytes):
    """A stream without its end, or another status, is an error, and the complaint says which."""
    seen = await answered(programs, [answer])
    assert (seen.whole, seen.broken, seen.errors) == (0, 0, 1)
    assert seen.complaint


async def test_nobody_there_is_an_error(programs: Programs):
    """Where nobody listens there are errors, not a hang."""
    seen = await loaded(programs, Load(port=free_port(), connections=2, seconds=0.02, grace_s=1))
    assert (seen.whole, seen.errors) == (0, 2)


async def test_a_server_that_never_ends_is_left(programs: Programs):
    """An answer that does not end within the grace is unfinished."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(event(1)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    seen = await loaded(programs, Load(port=port, connections=1, seconds=0.02, events=EVENTS, grace_s=0.1))
    server.close()
    assert (seen.whole, seen.broken, seen.errors, seen.unfinished) == (0, 0, 0, 1)


@pytest.mark.parametrize("gap_ms", [0, 2])
async def test_engine_and_load_agree(programs: Programs, tmp_path: Path, gap_ms: int):
    """Directly, every answer is whole, plain or streamed, and every stream has its events."""
    with Running(engine(programs, free_port(), gap_ms), cores=frozenset(), log=tmp_path / "log") as running:
        port = running.target.port
        plain = await loaded(programs, Load(port=port, connections=5, seconds=0.2))
        streams = await loaded(programs, Load(port=port, connections=20, seconds=0.2, events=30, ramp_s=0.1))
    for seen, connections in ((plain, 5), (streams, 20)):
        assert seen.whole >= connections
        assert (seen.broken, seen.errors, seen.unfinished, seen.complaint) == (0, 0, 0, "")
    assert streams.events == streams.whole * 30
    assert plain.latency
    assert streams.ttft
    assert streams.itl


async def test_the_engine_speaks_openai(programs: Programs, tmp_path: Path):
    """A stream has a role, as many content events as asked for, a finish reason, usage if asked for, and [DONE] last."""
    asked = {"stream": True, "max_tokens": 3, "messages": [], "stream_options": {"include_usage": True}}
    with Running(engine(programs, free_port(), 0), cores=frozenset(), log=tmp_path / "log") as running:
        base = f"http://127.0.0.1:{running.target.port}"
        async with httpx.AsyncClient(base_url=base) as client:
            said = (await client.post("/v1/chat/completions", json=asked)).text
            models = (await client.get("/v1/models")).json()
            metrics = (await client.get("/metrics")).text
            whole = (await client.post("/v1/chat/completions", json={"messages": []})).json()
    assert said.endswith("data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in said.split("\n\n") if line.startswith("data: {")]
    deltas = [choice["delta"] for one in events for choice in one["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:]] == [f" #{number:06} words" for number in (1, 2, 3)]
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["usage"]["completion_tokens"] == 3
    assert models["data"][0]["id"] == programs.model
    assert "vllm:num_requests_running" in metrics
    assert whole["choices"][0]["finish_reason"] == "stop"


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """No `cc` on PATH is an error that names the package."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install gcc"):
        Programs.compiled(tmp_path / "cache")


def test_children_end_with_what_began_them(tmp_path: Path):
    """A child that outlived its parent is ended, too."""
    log = tmp_path / "log"
    process = started(("sh", "-c", "sleep 600 & echo $!"), cores=frozenset(), log=log)
    process.wait()
    child = Path("/proc", log.read_text().strip(), "stat")
    assert child.exists()
    stop(process, 1.0)
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] in "ZX"


async def test_cpu_time_and_memory_are_the_whole_sessions(programs: Programs, tmp_path: Path):
    """What children use is counted: a shell that waits for an engine uses what the engine uses."""
    target = engine(programs, free_port(), 0)
    wrapped = type(target)(
        name="wrapped",
        command=("sh", "-c", f"{' '.join(target.command)} & wait"),
        port=target.port,
        ready_path=target.ready_path,
    )
    with Running(wrapped, cores=frozenset(), log=tmp_path / "log") as running:
        await loaded(programs, Load(port=target.port, connections=20, seconds=0.3))
        assert running.cpu_s() > 0
        assert running.memory_mb() > 1
