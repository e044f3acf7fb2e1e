"""Generation through the backend, against a server in memory: streams, refusals, silence, cancellation."""

import asyncio
import json
from typing import Any

import pytest

from backends.backend import ClosedEarly, ConnectFailed, EngineReply, FirstByteTimeout, StreamCut
from backends.triton.inference import EngineFault
from config.schema import Upstream
from tests.support.triton_fake import NEVER_S, FakeTriton, Step, backend_over, chat, completion, embeddings, read, token
from tests.support.virtual_time import run_virtual

QUICK = Upstream(first_byte_timeout_s=5, stall_timeout_s=2)
WORDS: list[Step] = [token("one "), token("two "), token("three", finish="stop")]
GONE = EngineFault("UNAVAILABLE", "Stream removed (Socket closed)")
DEAD = EngineFault("INTERNAL", "Stub process 'textgen_0_0' is not healthy.")


def texts(raw: bytes) -> list[Any]:
    chunks = [json.loads(line[6:]) for line in raw.decode().split("\n\n") if line.startswith("data: {")]
    return [chunk["choices"][0]["delta"].get("content") for chunk in chunks if "choices" in chunk]


async def collect(reply: EngineReply, pieces: list[bytes]) -> None:
    async for piece in reply.body():
        pieces += [piece]  # one by one: what came before a failure counts


def test_a_stream_is_relayed_as_it_comes() -> None:
    """Each response is its own piece, at its own time; the role comes with the first."""

    async def main() -> list[tuple[float, bytes]]:
        client = FakeTriton([token("a"), 1.0, token("b", finish="stop")])
        reply = await backend_over(client).send(chat())
        loop = asyncio.get_running_loop()
        return [(loop.time(), piece) async for piece in reply.body()]

    pieces = run_virtual(main())
    assert [time_s for time_s, _ in pieces] == [0.0, 1.0, 1.0]
    assert texts(b"".join(piece for _, piece in pieces)) == ["", "a", "b", None]
    assert pieces[-1][1].endswith(b"data: [DONE]\n\n")


def test_an_answer_is_one_document() -> None:
    """Without streaming the responses make one document; the engine is told not to stream."""

    async def main() -> tuple[Any, Any]:
        client = FakeTriton(WORDS)
        reply = await backend_over(client).send(completion(stream=False))
        assert (reply.status, reply.content_type) == (200, "application/json")
        return json.loads(await read(reply)), client.sent[0]["stream"].values

    document, streamed = run_virtual(main())
    assert document["choices"][0] == {"index": 0, "text": "one two three", "logprobs": None, "finish_reason": "stop"}
    assert document["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    assert document["created"] == 1_700_000_000
    assert streamed == (False,)


def test_the_chat_template_makes_the_prompt() -> None:
    """The configured template renders the messages; the model gets text."""

    async def main() -> object:
        client = FakeTriton(WORDS)
        models = {"models": [{"name": "textgen", "chat_template": "<{{ messages[0].content }}>"}]}
        await read(await backend_over(client, replica=models).send(chat("hello")))
        return client.sent[0]["text_input"].values

    assert run_virtual(main()) == (b"<hello>",)


def test_the_model_is_described_once() -> None:
    """Metadata is asked at the first request, not at each, and anew after a failure."""

    async def main() -> list[int]:
        client = FakeTriton(WORDS, WORDS, [EngineFault("INTERNAL", "broke")], WORDS)
        backend = backend_over(client)
        counts = []
        for _ in range(4):
            await read(await backend.send(chat()))
            counts.append(client.described)
        return counts

    assert run_virtual(main()) == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("step", "status", "code"),
    [
        (EngineFault("UNAVAILABLE", "Exceeds maximum queue size"), 503, "engine_overloaded"),
        (EngineFault("", "Request for unknown model: 'textgen' is not found"), 404, "model_not_found"),
        (EngineFault("INVALID_ARGUMENT", "too long"), 400, "invalid_value"),
        (DEAD, 503, "engine_dead"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_early_error_is_a_status(step: EngineFault, status: int, code: str, stream: bool) -> None:
    """An error before the first response is an HTTP status with an OpenAI error, streaming or not."""

    async def main() -> tuple[int, Any, bool]:
        client = FakeTriton([step])
        reply = await backend_over(client).send(chat(stream=stream))
        return reply.status, json.loads(await read(reply))["error"]["code"], client.streams[0].cancelled

    assert run_virtual(main()) == (status, code, True)


def test_overload_says_when_to_come_back() -> None:
    """A full engine queue carries retry-after."""

    async def main() -> object:
        reply = await backend_over(FakeTriton([EngineFault("UNAVAILABLE", "Exceeds maximum queue size")])).send(chat())
        return reply.headers["retry-after"]

    assert run_virtual(main()) == "1"


def test_a_late_error_is_an_event_without_done() -> None:
    """An error after the first response becomes the stream's last event; no [DONE], no address, no path."""

    async def main() -> bytes:
        fault = EngineFault("INTERNAL", "broke at /srv/models/textgen/1/model.py on 10.0.0.1:8001")
        return await read(await backend_over(FakeTriton([token("a"), fault])).send(chat()))

    raw = run_virtual(main())
    last = json.loads(raw.split(b"\n\n")[-2].removeprefix(b"data: "))
    assert last == {
        "error": {"message": "broke at ... on ...", "type": "server_error", "param": None, "code": "engine_error"}
    }
    assert b"[DONE]" not in raw


def test_a_late_error_of_a_whole_answer_is_a_status() -> None:
    """Without streaming the client has seen nothing yet, so a late error is a status too."""

    async def main() -> int:
        reply = await backend_over(FakeTriton([token("a"), EngineFault("INTERNAL", "broke")])).send(chat(stream=False))
        return reply.status

    assert run_virtual(main()) == 500


@pytest.mark.parametrize(
    ("steps", "error", "at_s"),
    [
        ([NEVER_S], FirstByteTimeout, 5.0),
        ([EngineFault("UNAVAILABLE", "failed to connect to all addresses")], ConnectFailed, 0.0),
        ([GONE], ClosedEarly, 0.0),
        ([EngineFault("DEADLINE_EXCEEDED", "")], FirstByteTimeout, 0.0),
    ],
)
def test_no_answer_raises(steps: list[Step], error: type[Exception], at_s: float) -> None:
    """Where no answer came, the gateway may try elsewhere: an exception, and the call is cancelled."""

    async def main() -> tuple[float, bool]:
        client = FakeTriton(steps)
        with pytest.raises(error):
            await backend_over(client, upstream=QUICK).send(chat())
        return asyncio.get_running_loop().time(), client.streams[0].cancelled

    assert run_virtual(main()) == (at_s, True)


@pytest.mark.parametrize(("step", "at_s"), [(NEVER_S, 2.0), (GONE, 0.0), (DEAD, 0.0)])
def test_a_stream_that_breaks_off_is_cut(step: Step, at_s: float) -> None:
    """Silence, a broken connection or a dead process after the first response raise StreamCut, without [DONE]."""

    async def main() -> tuple[float, bytes, bool]:
        client = FakeTriton([token("a"), step])
        reply = await backend_over(client, upstream=QUICK).send(chat())
        pieces: list[bytes] = []
        with pytest.raises(StreamCut):
            await collect(reply, pieces)
        return asyncio.get_running_loop().time(), b"".join(pieces), client.streams[0].cancelled

    time_s, seen, cancelled = run_virtual(main())
    assert (time_s, cancelled, texts(seen)) == (at_s, True, ["", "a"])
    assert b"[DONE]" not in seen


@pytest.mark.parametrize(("step", "error"), [(NEVER_S, FirstByteTimeout), (GONE, ClosedEarly)])
def test_a_whole_answer_that_breaks_off_never_came(step: Step, error: type[Exception]) -> None:
    """Without streaming a stall or a break in the middle is an answer that did not come."""

    async def main() -> None:
        with pytest.raises(error):
            await backend_over(FakeTriton([token("a"), step]), upstream=QUICK).send(chat(stream=False))

    run_virtual(main())


def test_closing_cancels_and_ends_the_body() -> None:
    """Closing while a response is awaited stops the engine's work and ends the body without an error; twice is once."""

    async def main() -> tuple[list[Any], bool]:
        client = FakeTriton([token("a"), NEVER_S, token("b")])
        reply = await backend_over(client).send(chat())
        pieces: list[bytes] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(collect(reply, pieces))
            await asyncio.sleep(1)
            await reply.aclose()
            await reply.aclose()
        return texts(b"".join(pieces)), client.streams[0].cancelled

    assert run_virtual(main()) == (["", "a"], True)


@pytest.mark.parametrize("stream", [True, False])
def test_cancelling_send_cancels_the_engine(stream: bool) -> None:
    """A client that goes away before the first token stops the engine's work."""

    async def main() -> tuple[bool, bool]:
        client = FakeTriton([NEVER_S])
        task = asyncio.get_running_loop().create_task(backend_over(client).send(chat(stream=stream)))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled(), client.streams[0].cancelled

    assert run_virtual(main()) == (True, True)


@pytest.mark.parametrize(
    ("call", "status", "param"),
    [
        (chat(n=2), 400, "n"),
        (chat(tools=[{}]), 400, "tools"),
        (chat(logprobs=True), 400, "logprobs"),
        (chat([{"type": "image_url"}]), 400, "messages"),
        (chat(max_tokens="x"), 400, "max_tokens"),
        (chat(model="nope"), 404, "model"),
        (completion(["a", "b"]), 400, "prompt"),
        (completion([1, 2]), 400, "prompt"),
        (embeddings("x", model="textgen"), 400, "model"),
        (chat(model="embed"), 400, "model"),
    ],
)
def test_refusals_never_reach_the_engine(call: Any, status: int, param: str) -> None:
    """What cannot be served is refused with the parameter's name before anything is sent."""

    async def main() -> tuple[int, str, int]:
        client = FakeTriton(WORDS)
        reply = await backend_over(client).send(call)
        return reply.status, json.loads(await read(reply))["error"]["param"], len(client.sent)

    assert run_virtual(main()) == (status, param, 0)


def test_a_model_that_says_nothing_ends_well() -> None:
    """A generation of no responses is an empty answer with a finish reason."""

    async def main() -> bytes:
        return await read(await backend_over(FakeTriton([])).send(chat()))

    raw = run_virtual(main())
    assert b'"finish_reason":"stop"' in raw
    assert raw.endswith(b"data: [DONE]\n\n")
