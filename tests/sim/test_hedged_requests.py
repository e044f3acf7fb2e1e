"""A replica that leaves a request without its first token: another one is asked, one answer reaches the client, nothing stays behind."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.backend import ClosedEarly, FirstByteTimeout
from config.schema import Config
from tests.support.asgi import Call, chat, post
from tests.support.conditions import at_rest
from tests.support.fake_engine import DONE, FakeEngine, Script, chunk, document, usage_chunk, whole_stream
from tests.support.gateways import Running, fake_config, gateway_over
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"
STREAM = chat(stream=True, max_tokens=20)
DOCUMENT = chat(max_tokens=20)
TAUGHT = 25  # answers of the first replica, so that its predictions are worth something
FLOOR_S = 0.5


def saying(word: str, choices: int = 1) -> list[bytes]:
    """A whole stream that tells who sent it."""
    words = [
        piece
        for index in range(choices)
        for piece in (chunk("", role="assistant", index=index), chunk(word, index=index, finish="stop"))
    ]
    return [*words, usage_chunk(5, choices), DONE]


def frozen(after_head: bool = True) -> Script:
    return Script(hang=True) if after_head else Script(head_s=10_000.0)


def engines(*names: str) -> dict[str, FakeEngine]:
    """Each answers with its own name after 10 ms; the first in order of names is preferred."""
    return {name: FakeEngine(default=lambda name=name: Script(saying(name), head_s=0.01)) for name in names}


def config(fleet: Mapping[str, FakeEngine], **hedge: Any) -> Config:
    return fake_config(fleet, scheduling={"hedge": {"floor_s": FLOOR_S, **hedge}})


@asynccontextmanager
async def taught(
    fleet: Mapping[str, FakeEngine], body: dict[str, Any] = STREAM, **hedge: Any
) -> AsyncIterator[Running]:
    async with gateway_over(fleet, config(fleet, **hedge)) as running:
        usual = fleet["a"].default
        if not body.get("stream"):
            fleet["a"].default = lambda: Script([document("a")], head_s=0.01, content_type="application/json")
        for _ in range(TAUGHT):
            assert (await post(running.app, CHAT, body).run()).header("x-penstock-replica") == "a"
        fleet["a"].default = usual
        for engine in fleet.values():
            engine.calls.clear()
        yield running
        await asyncio.sleep(1)
        assert at_rest(running), running.gateway.scheduler
        assert [engine.running for engine in fleet.values()] == [0] * len(fleet)
        assert not +running.gateway.dispatcher.in_use


def hedges(running: Running) -> dict[str, float]:
    names = ("won", "lost", "failed", "cancelled", "refused_budget", "refused_no_replica")
    found = {name: running.metric("penstock_hedges_total", outcome=name) for name in names}
    return {name: count for name, count in found.items() if count}


async def ask(running: Running, body: dict[str, Any] = STREAM) -> tuple[Call, float]:
    """The call, and how long it took."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    call = await post(running.app, CHAT, body).run()
    return call, loop.time() - began_s


def test_the_other_one_answers() -> None:
    """Whether the engine froze before or after its head: the answer is the other's, whole and once, half a second late."""

    async def main(*, after_head: bool) -> None:
        fleet = engines("a", "b")
        async with taught(fleet) as running:
            fleet["a"].scripts = [frozen(after_head)]
            call, took_s = await ask(running)
            assert (call.text(), call.events()[-1], call.complete) == ("b", "[DONE]", True)
            assert (call.header("x-penstock-replica"), call.header("x-penstock-attempts")) == ("b", "2")
            assert took_s == pytest.approx(FLOOR_S + 0.01)
            assert hedges(running) == {"won": 1}
            assert running.metric("penstock_upstream_attempts_total", replica="a", outcome="hedged") == 1
            assert running.metric("penstock_upstream_attempts_total", replica="b", outcome="ok") == 1

    run_virtual(main(after_head=True))
    run_virtual(main(after_head=False))


def test_the_first_one_answers_after_all() -> None:
    """It was late, and the other one later: the other is cancelled as soon as the first token is there."""

    async def main() -> None:
        fleet = engines("a", "b")
        async with taught(fleet) as running:
            fleet["a"].scripts = [Script(saying("a"), head_s=0.7)]
            fleet["b"].scripts = [Script(saying("b"), head_s=60.0)]
            call, took_s = await ask(running)
            assert (call.text(), call.header("x-penstock-replica"), call.header("x-penstock-attempts")) == (
                "a",
                "a",
                "1",
            )
            assert took_s == pytest.approx(0.7)
            assert (len(fleet["b"].calls), fleet["b"].running) == (1, 0)
            assert hedges(running) == {"lost": 1}

    run_virtual(main())


@pytest.mark.parametrize("head_s", [FLOOR_S - 1e-9, FLOOR_S, FLOOR_S + 1e-9, FLOOR_S + 0.01, FLOOR_S + 0.01 + 1e-9])
def test_both_at_the_same_moment(head_s: float) -> None:
    """The first token comes while the second is being placed, sent or heard: one answer, by one of them."""

    async def main() -> None:
        fleet = engines("a", "b")
        async with taught(fleet) as running:
            fleet["a"].scripts = [Script(saying("a"), head_s=head_s)]
            call, _ = await ask(running)
            assert call.text() in {"a", "b"}
            assert call.text() == call.header("x-penstock-replica")
            assert call.events()[-1] == "[DONE]"

    run_virtual(main())


def test_the_first_fails_while_the_second_works() -> None:
    """The second is waited for instead of beginning a third time; a timeout, too, which else would not be tried again."""

    async def main(error: Exception) -> None:
        fleet = engines("a", "b", "c")
        async with taught(fleet) as running:
            fleet["a"].scripts = [Script(head_s=0.6, error=error)]
            fleet["b"].scripts = [Script(saying("b"), head_s=2.0)]
            call, took_s = await ask(running)
            assert (call.text(), took_s) == ("b", pytest.approx(FLOOR_S + 2.0))
            assert fleet["c"].calls == []
            assert hedges(running) == {"won": 1}

    run_virtual(main(ClosedEarly("gone")))
    run_virtual(main(FirstByteTimeout("nothing")))


def test_the_second_fails() -> None:
    """Nobody hears of it: the first one's answer comes when it comes."""

    async def main(failure: Script) -> None:
        fleet = engines("a", "b")
        async with taught(fleet) as running:
            fleet["a"].scripts = [Script(saying("a"), head_s=3.0)]
            fleet["b"].scripts = [failure]
            call, took_s = await ask(running)
            assert (call.text(), took_s) == ("a", pytest.approx(3.0))
            assert hedges(running) == {"failed": 1}

    run_virtual(main(Script(error=ClosedEarly("gone"))))
    run_virtual(main(Script([b'{"error": {"message": "busy"}}'], status=503)))
    run_virtual(main(Script([chunk("", role="assistant")])))  # ends before its first token


def test_both_fail() -> None:
    """Then it is a failed attempt as any: a third replica is tried, which is neither of the two; without one the client is told."""

    async def main(*names: str) -> Call:
        fleet = engines(*names)
        async with taught(fleet) as running:
            fleet["a"].scripts = [Script(head_s=0.7, error=ClosedEarly("gone"))]
            fleet["b"].scripts = [Script(head_s=0.4, error=ClosedEarly("gone"))]
            call, _ = await ask(running)
            assert hedges(running) == {"failed": 1}
            assert (len(fleet["a"].calls), len(fleet["b"].calls)) == (1, 1)
            return call

    assert run_virtual(main("a", "b", "c")).text() == "c"
    assert run_virtual(main("a", "b")).status == 502


def test_a_document_is_asked_for_twice_as_well() -> None:
    """It has no first token: overdue when the longest answer it may be should have ended."""

    async def main() -> None:
        fleet = engines("a", "b")
        async with taught(fleet, DOCUMENT) as running:
            fleet["a"].scripts = [frozen()]
            fleet["b"].scripts = [Script([document("b")], content_type="application/json")]
            call, took_s = await ask(running, DOCUMENT)
            assert call.json()["choices"][0]["message"]["content"] == "b"
            assert call.header("x-penstock-replica") == "b"
            assert FLOOR_S <= took_s < 60
            assert hedges(running) == {"won": 1}

    run_virtual(main())


def test_several_answers_of_one_request_come_from_one_replica() -> None:
    """`n: 2`: both choices are the second's, each with its finish reason."""

    async def main() -> None:
        fleet = engines("a", "b")
        async with taught(fleet) as running:
            fleet["a"].scripts = [frozen()]
            fleet["b"].scripts = [Script(saying("b", choices=2))]
            call, _ = await ask(running, chat(stream=True, n=2))
            assert call.data.count(b'"content":"b"') + call.data.count(b'"content": "b"') == 2
            assert call.events()[-1] == "[DONE]"
            assert hedges(running) == {"won": 1}

    run_virtual(main())


def test_what_has_begun_is_not_begun_again() -> None:
    """Something of the first answer has reached the client, though no token: it goes on, or fails, alone."""

    async def main() -> None:
        fleet = engines("a", "b")
        async with taught(fleet) as running:
            fleet["a"].scripts = [Script([chunk("", role="assistant")], hang=True)]
            call = post(running.app, CHAT, STREAM)
            task = asyncio.get_running_loop().create_task(call.run())
            await asyncio.sleep(30)
            assert fleet["b"].calls == []
            call.hang_up()
            await asyncio.wait([task])
            assert hedges(running) == {}

    run_virtual(main())


def test_a_slow_fleet_is_not_made_slower() -> None:
    """Every engine takes three seconds: of eighty requests hardly one in ten is sent twice, in whatever order they end."""

    async def main() -> None:
        fleet = engines("a", "b")
        async with taught(fleet) as running:
            for engine in fleet.values():
                engine.default = lambda: Script(whole_stream(), head_s=3.0)
            calls = [post(running.app, CHAT, STREAM) for _ in range(80)]
            await asyncio.gather(*(call.run() for call in calls))
            assert all(call.complete and call.status == 200 for call in calls)
            # Not by the engines' calls: who is slow is asked for a token now and then.
            assert sum(count for name, count in hedges(running).items() if not name.startswith("refused")) <= 8

    run_virtual(main())


def test_a_frozen_replica_is_left_alone() -> None:
    """One of three freezes for good, its probes are fine: each request is answered in seconds, and few are sent there at all."""

    async def main() -> None:
        fleet = engines("a", "b", "c")
        async with taught(fleet) as running:
            fleet["a"].default = frozen
            for _ in range(100):
                call, took_s = await ask(running)
                assert (call.text() in {"b", "c"}, call.events()[-1]) == (True, "[DONE]")
                assert took_s < 2 * FLOOR_S
                await asyncio.sleep(0.1)
            assert len(fleet["a"].calls) <= 10
            assert hedges(running) == {"won": len(fleet["a"].calls)}

    run_virtual(main())


@pytest.mark.parametrize("remaining", ["a", "b", "c"])
def test_replicas_that_are_removed_meanwhile(remaining: str) -> None:
    """First, second or both leave the configuration during the race: what they were asked goes on, and is answered."""

    async def main() -> None:
        fleet = engines("a", "b", "c")
        async with taught(fleet) as running:
            fleet["a"].scripts = [Script(saying("a"), head_s=5.0)]
            fleet["b"].scripts = [Script(saying("b"), head_s=2.0)]
            call = post(running.app, CHAT, STREAM)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(call.run())
                await asyncio.sleep(FLOOR_S + 1)
                assert len(fleet["b"].calls) == 1
                whole = config(fleet)
                kept = tuple(replica for replica in whole.replicas if replica.name == remaining)
                running.gateway.reload(whole.model_copy(update={"replicas": kept}))
            assert (call.text(), call.events()[-1]) == ("b", "[DONE]")

    run_virtual(main())


def test_a_second_replica_that_is_removed_before_it_is_asked() -> None:
    """Placed and removed in one turn of the loop: the first one's answer comes."""

    async def main() -> None:
        fleet = engines("a", "b")
        async with taught(fleet) as running:
            fleet["a"].scripts = [Script(saying("a"), head_s=2.0)]
            seconds = running.gateway.admission._settle

            def settle(decisions: Any) -> None:
                seconds(decisions)
                if any(getattr(decision, "hedges", None) for decision in decisions):
                    whole = config(fleet)
                    running.gateway.reload(whole.model_copy(update={"replicas": whole.replicas[:1]}))

            running.gateway.admission._settle = settle  # type: ignore[method-assign]
            call, _ = await ask(running)
            assert (call.text(), len(fleet["b"].calls)) == ("a", 0)
            assert hedges(running) == {"failed": 1}

    run_virtual(main())


@pytest.mark.parametrize("body", [STREAM, DOCUMENT], ids=["stream", "document"])
def test_a_client_that_leaves_at_any_time(body: dict[str, Any]) -> None:
    """Before the second is asked, while both work, in the turn in which one of them answers, afterwards: nothing stays behind."""
    streamed = bool(body.get("stream"))

    def answer(name: str, head_s: float) -> Script:
        if streamed:
            return Script(saying(name), head_s=head_s, gap_s=0.05)
        return Script([document(name)], head_s=head_s, gap_s=0.05, content_type="application/json")

    async def leaving(at_s: float, steps: int) -> float:
        fleet = engines("a", "b")
        async with taught(fleet, body) as running:
            fleet["a"].scripts, fleet["b"].scripts = [answer("a", 900.0)], [answer("b", 0.3)]
            call = post(running.app, CHAT, body)
            task = asyncio.get_running_loop().create_task(call.run())
            await asyncio.sleep(at_s)
            for _ in range(steps):
                await asyncio.sleep(0)
            call.hang_up()
            await asyncio.wait([task])
            return hedges(running).get("cancelled", 0)

    due_s = FLOOR_S if streamed else 0.0
    if not streamed:

        async def probe() -> float:
            fleet = engines("a", "b")
            async with taught(fleet, body) as running:
                fleet["a"].scripts, fleet["b"].scripts = [answer("a", 900.0)], [answer("b", 0.3)]
                return (await ask(running, body))[1] - 0.35

        due_s = run_virtual(probe())
    moments = (0.0, due_s - 0.01, due_s, due_s + 0.1, due_s + 0.3, due_s + 0.35, due_s + 0.4)
    cancelled = [run_virtual(leaving(at_s, steps)) for at_s in moments for steps in (0, 1, 2, 3, 5, 8)]
    assert sum(cancelled) > 6


def test_the_drain_deadline_ends_both() -> None:
    """Both are cut off, and the client gets its error."""

    async def main() -> None:
        fleet = engines("a", "b")
        async with taught(fleet) as running:
            fleet["a"].scripts, fleet["b"].scripts = [frozen()], [frozen()]
            call = post(running.app, CHAT, STREAM)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(call.run())
                await asyncio.sleep(2)
                running.gateway.begin_drain()
                running.gateway.end_drain()
            assert call.status == 503
            assert hedges(running) == {"cancelled": 1}

    run_virtual(main())
