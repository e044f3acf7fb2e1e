"""The streaming contract with OpenAI clients, point by point (numbers: the compatibility checklist in docs/api.md)."""

import asyncio
import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from backends.backend import ClosedEarly, ConnectFailed, StreamCut
from tests.support.asgi import Call, chat, post
from tests.support.fake_engine import DONE, FakeEngine, Script, chunk, sse, usage_chunk, whole_stream
from tests.support.gateways import Running, gateway_over
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"


def streamed(*scripts: Script, body: dict[str, object] | None = None, **sections: object) -> tuple[Call, FakeEngine]:
    """One streaming chat through a gateway over one scripted engine."""
    engine = FakeEngine(*scripts)

    async def main() -> Call:
        async with gateway_over({"a": engine}, **sections) as running:
            return await post(running.app, CHAT, body or chat(stream=True)).run()

    return run_virtual(main()), engine


def test_compat_01_stream_headers() -> None:
    """An SSE answer is never cached, compressed, buffered or given a length."""
    call, _ = streamed(Script(whole_stream()))
    headers = dict(call.response_headers)
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert "content-length" not in headers
    assert "content-encoding" not in headers


def test_compat_02_every_event_is_framed() -> None:
    """Each event is one data line and a blank line, [DONE] included, with LF only, whatever the engine's line ends."""
    crlf = [piece.replace(b"\n", b"\r\n") for piece in whole_stream()]
    call, _ = streamed(Script(crlf))
    assert b"\r" not in call.data
    assert call.data.endswith(b"data: [DONE]\n\n")
    assert all(event.startswith(b"data: ") and event.count(b"\n") == 0 for event in call.data[:-2].split(b"\n\n"))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_compat_03_any_rechunking_changes_nothing(data: st.DataObject) -> None:
    """However the engine's bytes were cut, the client gets the same bytes."""
    raw = b"".join([*whole_stream(4)[:-2], usage_chunk(5, 4), DONE])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if a < b]
    whole, _ = streamed(Script([raw]))
    cut, _ = streamed(Script(pieces))
    assert cut.data == whole.data
    assert cut.text() == "w0 w1 w2 w3 "


def test_compat_03_untouched_events_keep_their_bytes() -> None:
    """An event that needs no edit leaves as it came, unusual members and spacing included."""
    odd = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"\\u00e9 1e5"},"finish_reason":null}],"x_vendor":1.50}\n\n'
    call, _ = streamed(Script([chunk("", role="assistant"), odd, chunk("", finish="stop"), DONE]))
    assert odd in call.data


def test_compat_04_events_leave_as_they_come() -> None:
    """No event waits for the next: arrival times at the client equal those at the gateway."""
    call, _ = streamed(Script(whole_stream(4), gap_s=0.05))
    times = [round(at, 3) for at, _ in call.chunks]
    gaps = [round(b - a, 3) for a, b in pairwise(times)]
    assert gaps[:4] == [0.05] * 4


def test_compat_05_keep_alive_comments_while_silent() -> None:
    """A stream that is silent gets a comment every 15 s, the first of which commits the headers; a queued one gets none."""
    call, _ = streamed(Script(whole_stream(1), head_s=40.0))
    assert [round(at) for at, data in call.chunks if data == b": keep-alive\n\n"] == [15, 30]
    assert call.text() == "w0 "
    assert call.status == 200


def test_compat_05_a_queued_request_is_silent() -> None:
    """Nothing is committed before a placement: a stream that waits too long in the queue is refused with a status."""
    engine = FakeEngine(default=lambda: Script(hang=True))

    async def main() -> Call:
        async with gateway_over({"a": engine}, capacity={"max_num_seqs": 1}) as running:
            first = post(running.app, CHAT, chat(stream=True))
            task = asyncio.get_running_loop().create_task(first.run())
            await asyncio.sleep(1)
            waiting = await post(running.app, CHAT, chat(stream=True)).run()
            first.hang_up()
            await task
            return waiting

    waiting = run_virtual(main())
    assert (waiting.status, waiting.json()["error"]["code"]) == (503, "queue_timeout")


def test_compat_06_events_may_be_large() -> None:
    """An event of 3 MiB passes whole."""
    big = "x" * (3 * 2**20)
    call, _ = streamed(Script([chunk("", role="assistant"), chunk(big), chunk("", finish="stop"), DONE]))
    assert call.text() == big


def test_compat_07_identity_is_constant() -> None:
    """id, created and model are the first chunk's on every chunk, even where an engine changes them."""
    other = chunk("b").replace(b"chatcmpl-1", b"chatcmpl-2")
    call, _ = streamed(Script([chunk("", role="assistant"), chunk("a"), other, chunk("", finish="stop"), DONE]))
    chunks = [json.loads(event) for event in call.events()[:-1]]
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1


def test_compat_08_first_delta_has_the_role() -> None:
    """The first chunk says role assistant, even where the engine says nothing or an empty role; a delta is never null."""
    nothing = sse(
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": None, "finish_reason": None}],
        }
    )
    call, _ = streamed(Script([nothing, chunk("hi", role=""), chunk("", finish="stop"), DONE]))
    deltas = [json.loads(event)["choices"][0]["delta"] for event in call.events()[:-1]]
    assert deltas[0]["role"] == "assistant"
    assert all(delta.get("role", "assistant") == "assistant" for delta in deltas)


def test_compat_09_choices_appear_in_order() -> None:
    """Index 1 never appears before index 0, and tool call deltas have an integer index."""
    call, _ = streamed(
        Script(
            [
                chunk("b", index=1),
                chunk("a", index=0),
                chunk("", finish="stop", index=1),
                chunk("", finish="stop"),
                DONE,
            ]
        ),
        body=chat(stream=True, n=2),
    )
    first_seen = [choice["index"] for event in call.events()[:-1] for choice in json.loads(event)["choices"]]
    assert first_seen.index(0) < first_seen.index(1)


def test_compat_10_usage_is_asked_for_and_removed() -> None:
    """Usage is always asked of the engine; a client that did not ask sees no usage chunk."""
    call, engine = streamed(Script(whole_stream()))
    assert json.loads(engine.calls[0].body)["stream_options"] == {"include_usage": True}
    assert all(json.loads(event)["choices"] for event in call.events()[:-1])


def test_compat_10_usage_reaches_who_asked() -> None:
    """A client that asked gets exactly one usage chunk, the last before [DONE]."""
    duplicate = [*whole_stream()[:-1], usage_chunk(5, 3), DONE]
    call, _ = streamed(Script(duplicate), body=chat(stream=True, stream_options={"include_usage": True}))
    events = call.events()
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"] == []
    assert sum(1 for event in events[:-1] if not json.loads(event)["choices"]) == 1


def test_compat_11_usage_is_estimated_where_none_came() -> None:
    """A stream without usage is accounted from its deltas, and marked as estimated."""
    engine = FakeEngine(Script([*whole_stream(4)[:-2], DONE]))

    async def main() -> tuple[float, float]:
        async with gateway_over({"a": engine}) as running:
            await post(running.app, CHAT, chat(stream=True)).run()
            return (
                running.metric("penstock_tokens_total", kind="output", source="estimated"),
                running.metric("penstock_tokens_total", kind="output", source="reported"),
            )

    assert run_virtual(main()) == (4.0, 0.0)


def two_engines(bad: Script, *, stream: bool = True, **sections: object) -> tuple[Call, FakeEngine, FakeEngine]:
    """A gateway whose first choice fails as scripted; the second is well."""
    first, second = FakeEngine(default=lambda: bad), FakeEngine()

    async def main() -> Call:
        async with gateway_over({"a": first, "b": second}, **sections) as running:
            return await post(running.app, CHAT, chat(stream=stream)).run()

    return run_virtual(main()), first, second


def test_compat_12_lost_before_the_first_byte_is_invisible() -> None:
    """Refused, closed or cut before anything was forwarded: another replica answers and the client never knows."""
    for bad in (
        Script(error=ConnectFailed("refused")),
        Script(error=ClosedEarly("closed")),
        Script(fail=StreamCut("cut")),
        Script(status=500, pieces=[b"boom"], content_type="text/plain"),
        Script(status=503, pieces=[b'{"error":{"message":"busy","type":"ServiceUnavailableError","code":503}}']),
        Script([sse({"error": {"message": "dead", "type": "InternalServerError", "code": 500}})]),
    ):
        call, first, second = two_engines(bad)
        assert call.status == 200
        assert call.text() == "w0 w1 w2 "
        assert call.header("x-penstock-attempts") == "2"
        assert (len(first.calls), len(second.calls)) == (1, 1)


def test_compat_12_lost_after_the_first_byte_is_an_error_event() -> None:
    """Cut in mid-stream with nobody to go on: an error event without `choices`, then the end; never [DONE], never a second answer."""
    cut = Script([chunk("", role="assistant"), chunk("w0 ")], fail=StreamCut("cut"))
    call, first, second = two_engines(cut, migration={"mode": "off"})
    events = call.events()
    assert call.status == 200
    assert "choices" not in json.loads(events[-1])
    assert json.loads(events[-1])["error"]["type"] == "server_error"
    assert "[DONE]" not in events
    assert (len(first.calls), len(second.calls)) == (1, 0)


def test_compat_13_no_done_without_finish_reason() -> None:
    """An engine that says [DONE], or just ends, without a finish reason has truncated the answer: an error, not a success."""
    for tail in ([DONE], []):
        cut = Script([chunk("", role="assistant"), chunk("half"), *tail])
        call, _ = streamed(cut, migration={"mode": "off"})
        assert "[DONE]" not in call.events()
        assert json.loads(call.events()[-1])["error"]


def test_compat_16_hanging_up_stops_the_engine() -> None:
    """A client that leaves while streaming, prefilling or queued stops the work at once, streaming or not."""

    async def main() -> list[tuple[int, int, str]]:
        seen = []
        for stream, script in (
            (True, Script(whole_stream()[:2], hang=True)),
            (False, Script([], hang=True)),
            (True, Script(head_s=1e6)),
            (False, Script([b"boom"], status=500, hang=True)),  # its error is still being read
        ):
            engine = FakeEngine(script)
            async with gateway_over({"a": engine}) as running:
                call = post(running.app, CHAT, chat(stream=stream))
                task = asyncio.get_running_loop().create_task(call.run())
                await asyncio.sleep(2.0)
                assert engine.running == 1
                call.hang_up()
                await asyncio.sleep(0)
                await task
                seen.append((engine.running, int(running.metric("penstock_client_disconnects_total")), leases(running)))
        return seen

    assert run_virtual(main()) == [(0, 1, "0 leased")] * 4


def test_compat_16_hanging_up_leaves_the_queue() -> None:
    """A queued request whose client leaves is never sent."""

    async def main() -> tuple[int, float]:
        engine = FakeEngine(Script(whole_stream(), head_s=100.0))
        async with gateway_over({"a": engine}, capacity={"max_num_seqs": 1}) as running:
            loop = asyncio.get_running_loop()
            first = loop.create_task(post(running.app, CHAT, chat(stream=True)).run())
            await asyncio.sleep(1)
            waiting = post(running.app, CHAT, chat(stream=True))
            second = loop.create_task(waiting.run())
            await asyncio.sleep(1)
            assert running.metric("penstock_queue_depth") == 1
            waiting.hang_up()
            await second
            depth = running.metric("penstock_queue_depth")
            await first
            return len(engine.calls), depth

    assert run_virtual(main()) == (1, 0.0)


def leases(running: Running) -> str:
    return repr(running.gateway.scheduler).removesuffix(">").rsplit(", ", 1)[-1]
