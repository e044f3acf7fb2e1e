"""What a request's trace tells, for each way in which a request can go: whole gateways in virtual time."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.backend import ConnectFailed, StreamCut
from router.tracing.context import Parent, parent_of
from tests.support.asgi import Call, chat, post
from tests.support.fake_engine import FakeEngine, Script, chunk, document, whole_stream
from tests.support.gateways import Running, fake_config, gateway_over
from tests.support.traces import KeptTraces, Tree
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"
STREAM = chat(stream=True, max_tokens=20)
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = 0x0AF7651916CD43DD8448EB211C80319C


def sections(**tracing: Any) -> dict[str, Any]:
    return {"tracing": {"enabled": True, **tracing}, "scheduling": {"hedge": {"enabled": False}}}


@asynccontextmanager
async def traced(
    engines: Mapping[str, FakeEngine], capacity: Mapping[str, Any] | None = None, **tracing: Any
) -> AsyncIterator[tuple[Running, KeptTraces]]:
    kept = KeptTraces()
    config = fake_config(engines, capacity, **sections(**tracing))
    async with gateway_over(engines, config, span_sink=kept) as running:
        yield running, kept
        for one in kept.finished:
            Tree(one).check()
    assert kept.closed


def upstream(engine: FakeEngine) -> Parent:
    """Whose child an engine's own spans would be."""
    found = parent_of(engine.calls[-1].headers)
    assert found is not None
    return found


def test_a_stream_is_a_tree() -> None:
    """Queue, place, one attempt with its relay; what was asked and answered in OpenTelemetry's names, the engine under the attempt."""

    async def main() -> None:
        engine = FakeEngine(Script(whole_stream(3, prompt=7), gap_s=0.1, head_s=0.5))
        async with traced({"a": engine}) as (running, kept):
            body = chat(stream=True, max_tokens=20, temperature=0.5, service_tier="flex", seed=3)
            await post(running.app, CHAT, body, headers=[("x-request-id", "r1"), ("x-session-id", "s1")]).run()
            tree = kept.only()
            assert (tree.root.name, tree.root.kind, tree.root.parent_id, tree.root.failed) == (
                "chat m",
                "server",
                None,
                None,
            )
            assert [span.name for span in tree.below] == ["queue", "place", "chat m", "relay"]
            told = tree.root.attributes
            assert told.items() >= {
                "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "m",
                "gen_ai.response.model": "m", "gen_ai.request.stream": True, "gen_ai.request.max_tokens": 20,
                "gen_ai.request.temperature": 0.5, "gen_ai.request.seed": 3, "openai.request.service_tier": "flex",
                "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3, "gen_ai.usage.cache_read.input_tokens": 0,
                "gen_ai.response.finish_reasons": ("stop",), "gen_ai.conversation.id": "s1", "http.response.status_code": 200,
                "penstock.request.id": "r1", "penstock.service_tier": "flex", "penstock.outcome": "completed",
                "penstock.replica": "a", "penstock.attempts": 1, "penstock.moves": 0,
            }.items()  # fmt: skip
            assert told["gen_ai.response.time_to_first_chunk"] == pytest.approx(0.7)
            assert "gen_ai.input.messages" not in told
            attempt, relay = tree.attempts[0], tree.named("relay")[0]
            assert attempt.attributes.items() >= {"server.address": "127.0.0.1", "server.port": 9000}.items()
            assert relay.parent_id == attempt.span_id
            assert relay.end_s - relay.start_s == pytest.approx(0.2)
            place = tree.named("place")[0].attributes
            assert place["penstock.placement.formula"].startswith("a [on_demand] by ")  # type: ignore[union-attr]
            assert (upstream(engine).trace_id, upstream(engine).span_id) == (tree.finished.trace_id, attempt.span_id)

    run_virtual(main())


def test_a_client_s_trace_goes_on() -> None:
    """Its trace id stays, the root is its span's child, and `tracestate` travels through; baggage does not."""

    async def main() -> None:
        engine = FakeEngine()
        async with traced({"a": engine}) as (running, kept):
            headers = [("traceparent", CLIENT), ("tracestate", "v=1,w=2"), ("baggage", "who=me")]
            await post(running.app, CHAT, STREAM, headers=headers).run()
            tree = kept.only()
            assert (tree.finished.trace_id, tree.root.parent_id) == (TRACE, 0xB7AD6B7169203331)
            assert upstream(engine) == Parent(TRACE, tree.attempts[0].span_id, sampled=True, state="v=1,w=2")
            assert "baggage" not in engine.calls[0].headers

    run_virtual(main())


@pytest.mark.parametrize(
    ("sent", "ratio", "seen"), [("00", 1.0, False), ("01", 0.0, True), (None, 0.0, False), (None, 1.0, True)]
)
def test_a_client_s_word_on_sampling_counts(sent: str | None, ratio: float, seen: bool) -> None:
    """Where it has none, the ratio does; what is not sampled still has ids, and engines are told that it is not."""

    async def main() -> None:
        engine = FakeEngine()
        async with traced({"a": engine}, sample_ratio=ratio) as (running, kept):
            headers = [] if sent is None else [("traceparent", CLIENT[:-2] + sent)]
            await post(running.app, CHAT, STREAM, headers=headers).run()
            assert len(kept.finished) == seen
            assert upstream(engine).sampled is seen
            assert (upstream(engine).trace_id == TRACE) is (sent is not None)
            assert upstream(engine).span_id != 0xB7AD6B7169203331

    run_virtual(main())


def test_a_malformed_parent_is_none() -> None:
    """A new trace begins, and nothing of the client's goes upstream."""

    async def main() -> None:
        engine = FakeEngine()
        async with traced({"a": engine}) as (running, kept):
            await post(running.app, CHAT, STREAM, headers=[("traceparent", "00-1-2-01"), ("tracestate", "v=1")]).run()
            assert kept.only().root.parent_id is None
            assert upstream(engine).state == ""

    run_virtual(main())


def test_without_traces_the_client_s_context_passes_untouched() -> None:
    """The gateway is not there, as far as traces go."""

    async def main() -> None:
        engine = FakeEngine()
        async with gateway_over({"a": engine}) as running:
            await post(running.app, CHAT, STREAM, headers=[("traceparent", CLIENT), ("tracestate", "v=1")]).run()
            assert dict(engine.calls[0].headers) == {"traceparent": CLIENT, "tracestate": "v=1"}

    run_virtual(main())


def test_who_waits_is_seen_to_wait() -> None:
    """The queue's span lasts as long as the wait did, says how many were there, and the attempt begins after it."""

    async def main() -> None:
        engine = FakeEngine(default=lambda: Script(whole_stream(2), gap_s=1.0))
        async with traced({"a": engine}, {"max_num_seqs": 1}) as (running, kept):
            calls = [post(running.app, CHAT, chat(str(number), stream=True, max_tokens=20)) for number in range(3)]
            async with asyncio.TaskGroup() as tasks:
                for call in calls:
                    tasks.create_task(call.run())
            first, second, third = (Tree(one) for one in kept.finished)
            waits = [tree.named("queue")[0] for tree in (first, second, third)]
            assert [wait.attributes["penstock.queue.outcome"] for wait in waits] == ["placed"] * 3
            assert [wait.attributes["penstock.queue.depth"] for wait in waits] == [0, 0, 1]
            assert waits[0].end_s - waits[0].start_s == 0
            assert waits[2].end_s - waits[2].start_s > waits[1].end_s - waits[1].start_s > 1.0
            assert third.attempts[0].start_s >= waits[2].end_s
            assert third.root.attributes["penstock.queue.seconds"] == pytest.approx(waits[2].end_s - waits[2].start_s)

    run_virtual(main())


def test_a_second_try_is_a_second_attempt() -> None:
    """The first one says why it failed, the second is linked to it, both have waited; the root says that it was asked again."""

    async def main() -> None:
        fleet = {"a": FakeEngine(Script(error=ConnectFailed("refused"))), "b": FakeEngine()}
        async with traced(fleet) as (running, kept):
            await post(running.app, CHAT, STREAM).run()
            tree = kept.only()
            assert tree.outcomes == [("a", "connect_error"), ("b", "ok")]
            first, second = tree.attempts
            assert (first.failed, first.attributes["error.type"]) == ("connect_error", "connect_error")
            assert [link.span_id for link in second.links] == [first.span_id]
            assert second.links[0].attributes == {"penstock.link": "repeats"}
            assert len(tree.named("queue")) == len(tree.named("place")) == 2
            assert (
                tree.event("retry").items()
                >= {"penstock.from": "a", "penstock.to": "b", "penstock.why": "connect_error"}.items()
            )
            assert (tree.root.failed, tree.root.attributes["penstock.attempts"]) == (None, 2)
            assert upstream(fleet["b"]).span_id == second.span_id

    run_virtual(main())


def test_a_stream_that_moves_is_one_trace() -> None:
    """What the second engine says goes on where the first one stopped: a move, a seam with its length, a relay each."""

    async def main() -> None:
        begun = [chunk("", role="assistant"), chunk("one "), chunk("two ")]
        rest = [chunk("", role="assistant"), chunk("three", finish="stop"), b"data: [DONE]\n\n"]
        fleet = {
            "a": FakeEngine(Script(begun, gap_s=0.1, fail=StreamCut("gone"))),
            "b": FakeEngine(Script(rest, head_s=2.0)),
        }
        async with traced(fleet) as (running, kept):
            call = await post(running.app, CHAT, STREAM).run()
            assert call.text() == "one two three"
            tree = kept.only()
            assert tree.outcomes == [("a", "stream_cut"), ("b", "ok")]
            assert tree.attempts[1].attributes["penstock.continuation"] == "text"
            assert tree.attempts[1].links[0].attributes == {"penstock.link": "continues"}
            assert (
                tree.event("move").items()
                >= {"penstock.from": "a", "penstock.to": "b", "penstock.continuation": "text"}.items()
            )
            assert tree.event("seam")["penstock.gap_seconds"] == pytest.approx(2.0, abs=0.01)
            assert [relay.parent_id for relay in tree.named("relay")] == [span.span_id for span in tree.attempts]
            assert tree.root.attributes["penstock.moves"] == 1
            assert tree.root.failed is None

    run_virtual(main())


def test_a_hedge_runs_beside_the_first() -> None:
    """Two attempts at once; the loser has failed nobody, and no retry is told of."""

    async def main() -> None:
        fleet = {name: FakeEngine(default=lambda: Script(whole_stream(), head_s=0.01)) for name in ("a", "b")}
        kept = KeptTraces()
        config = fake_config(fleet, tracing={"enabled": True}, scheduling={"hedge": {"floor_s": 0.5}})
        async with gateway_over(fleet, config, span_sink=kept) as running:
            for _ in range(25):  # so that predictions are worth something
                await post(running.app, CHAT, STREAM).run()
            fleet["a"].scripts = [Script(head_s=10_000.0)]
            await post(running.app, CHAT, STREAM).run()
            tree = kept.last()
            tree.check()
            assert tree.outcomes == [("a", "hedged"), ("b", "ok")]
            first, second = tree.attempts
            assert second.start_s < first.end_s
            assert (first.failed, second.attributes["penstock.hedge"]) == (None, True)
            assert second.links[0].attributes == {"penstock.link": "hedges"}
            assert [event.name for event in tree.root.events] == ["first_token"]
            assert (len(tree.named("queue")), len(tree.named("place"))) == (1, 2)

    run_virtual(main())


@pytest.mark.parametrize(
    ("model", "max_wait_s", "status", "failed", "outcome"),
    [("nobody", 30, 404, None, "model_not_found"), ("m", 1.5, 503, "queue_timeout", "queue_timeout")],
)
def test_who_is_refused(model: str, max_wait_s: float, status: int, failed: str | None, outcome: str) -> None:
    """A wait in vain and no attempt; a server's failure only where it is one, and no client's word in a span's name."""

    async def main() -> None:
        engine = FakeEngine(Script(hang=True))
        kept = KeptTraces()
        config = fake_config({"a": engine}, {"max_num_seqs": 1}, queue={"max_wait_s": max_wait_s}, **sections())
        async with gateway_over({"a": engine}, config, span_sink=kept) as running:
            async with asyncio.TaskGroup() as tasks:
                first = post(running.app, CHAT, STREAM)
                tasks.create_task(first.run())
                await asyncio.sleep(0.1)
                call = await post(running.app, CHAT, chat("other", model=model, stream=True, max_tokens=9)).run()
                first.hang_up()
            tree = Tree(kept.finished[0])
            tree.check()
            assert call.status == tree.root.attributes["http.response.status_code"] == status
            assert (tree.root.failed, tree.root.attributes["error.type"]) == (failed, outcome)
            assert [span.name for span in tree.below] == ["queue"]
            assert (tree.below[0].attributes["penstock.queue.outcome"], tree.below[0].failed) == (outcome, failed)
            assert tree.root.name == ("chat m" if model == "m" else "chat other")

    run_virtual(main())


def test_what_cannot_be_read_has_a_span_alone() -> None:
    """A body that is no object has no model, waits for nothing, and is the client's mistake."""

    async def main() -> None:
        async with traced({"a": FakeEngine()}) as (running, kept):
            await post(running.app, CHAT, []).run()
            tree = kept.only()
            assert (tree.root.name, tree.below, tree.root.failed) == ("chat", [], None)
            assert tree.root.attributes["http.response.status_code"] == 400

    run_virtual(main())


def test_who_hangs_up_was_not_failed() -> None:
    """While it waits, or while it is told: cancelled, by a client that is gone."""

    async def main() -> None:
        engine = FakeEngine(default=lambda: Script(whole_stream(20), gap_s=1.0))
        async with traced({"a": engine}, {"max_num_seqs": 1}) as (running, kept):
            calls: list[Call] = [post(running.app, CHAT, chat(str(n), stream=True, max_tokens=20)) for n in range(2)]
            async with asyncio.TaskGroup() as tasks:
                for call in calls:
                    tasks.create_task(call.run())
                await asyncio.sleep(5)
                calls[1].hang_up()
                await asyncio.sleep(1)
                calls[0].hang_up()
            waiting, told = (Tree(one) for one in kept.finished)
            for tree in (waiting, told):
                assert (tree.root.attributes["penstock.outcome"], tree.root.failed) == ("cancelled", None)
                assert tree.root.attributes["error.type"] == "client_closed"
            assert "http.response.status_code" not in waiting.root.attributes
            assert waiting.below[0].attributes["penstock.queue.outcome"] == "cancelled"
            assert told.outcomes == [("a", "cancelled")]
            assert told.named("relay")[0].end_s - told.named("relay")[0].start_s == pytest.approx(4.0, abs=1.01)

    run_virtual(main())


def test_an_answer_that_breaks_off_has_failed() -> None:
    """Its client had a 200; the root is an error all the same."""

    async def main() -> None:
        begun = [chunk("", role="assistant"), chunk("one ")]
        async with traced({"a": FakeEngine(Script(begun, fail=StreamCut("gone")))}) as (running, kept):
            await post(running.app, CHAT, chat(stream=True, max_tokens=20, logprobs=True)).run()
            tree = kept.only()
            assert tree.root.attributes["http.response.status_code"] == 200
            assert tree.root.failed == tree.root.attributes["error.type"] == "upstream_error"

    run_virtual(main())


@pytest.mark.parametrize("stream", [True, False])
def test_words_are_told_only_where_they_are_asked_for(stream: bool) -> None:
    """`tracing.content`: prompt and answer as message parts, within their bound; the last messages are kept first."""

    async def main() -> None:
        answer = whole_stream(2) if stream else [document("hello there")]
        script = Script(answer, content_type="text/event-stream" if stream else "application/json")
        messages = [
            {"role": "user", "content": "x" * 100},
            {"role": "user", "content": [{"type": "text", "text": "short"}]},
        ]
        body = {**chat(stream=stream, max_tokens=20), "messages": messages}
        async with traced({"a": FakeEngine(script)}, content=True, content_bytes=50) as (running, kept):
            await post(running.app, CHAT, body).run()
            told = kept.only().root.attributes
            asked, said = (json.loads(str(told[f"gen_ai.{way}.messages"])) for way in ("input", "output"))
            assert [message["parts"][0]["content"] for message in asked] == ["x" * 45 + "...", "short"]
            assert said == [
                {"role": "assistant", "parts": [{"type": "text", "content": "w0 w1 " if stream else "hello there"}]}
            ]

    run_virtual(main())


def test_an_error_of_ours_costs_a_trace_and_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """A sink that raises is logged; the client has all of its answer."""

    class Broken(KeptTraces):
        def add(self, finished: object) -> None:
            raise RuntimeError("a bug")

    async def main() -> None:
        config = fake_config({"a": (engine := FakeEngine())}, **sections())
        async with gateway_over({"a": engine}, config, span_sink=Broken()) as running:
            call = await post(running.app, CHAT, STREAM).run()
            assert (call.status, call.events()[-1]) == (200, "[DONE]")

    run_virtual(main())
    assert "cannot be traced" in caplog.text
