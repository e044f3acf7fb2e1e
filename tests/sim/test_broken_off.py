"""An engine that breaks off its answer after the head: another one answers, and that costs nothing of what retries may cost."""

import pytest

from backends.backend import StreamCut
from batching.retry_budget import MOST
from tests.support.asgi import chat, post
from tests.support.fake_engine import FakeEngine, Script, document, whole_stream
from tests.support.gateways import gateway_over
from tests.support.simulated_fleet import CHAT
from tests.support.virtual_time import run_virtual


@pytest.mark.parametrize("stream", [True, False])
def test_a_repeat_after_a_dead_engine_takes_nothing_from_the_budget(stream: bool) -> None:
    """Nobody does that work twice. What broke off is told from what made no sense, in compiled code, too."""
    whole = Script(whole_stream()) if stream else Script([document("b")], content_type="application/json")
    kind = {} if stream else {"content_type": "application/json"}
    engines = {"a": FakeEngine(Script([], fail=StreamCut("gone"), **kind)), "b": FakeEngine(whole)}

    async def main() -> None:
        async with gateway_over(engines) as running:
            call = await post(running.app, CHAT, chat("hello", stream=stream)).run()
            assert call.status == 200
            assert call.header("x-penstock-attempts") == "2"
            assert running.gateway.scheduler.retry_budget.left == MOST

    run_virtual(main())


@pytest.mark.parametrize("answer", [b"{", b"[]", b'{"choices": 7}'])
def test_a_garbled_document_is_asked_for_elsewhere(answer: bytes) -> None:
    """That engine has worked for nothing: a try of the budget's is taken."""
    engines = {
        "a": FakeEngine(Script([answer], content_type="application/json")),
        "b": FakeEngine(Script([document("b")], content_type="application/json")),
    }

    async def main() -> None:
        async with gateway_over(engines) as running:
            call = await post(running.app, CHAT, chat("hello")).run()
            assert (call.status, call.header("x-penstock-attempts")) == (200, "2")
            assert running.gateway.scheduler.retry_budget.left == MOST - 1

    run_virtual(main())
