"""What a request leaves behind in memory: nothing that only a collection of cycles would find."""

import gc

from router.exchange import Exchange
from tests.support.asgi import chat, post
from tests.support.fake_engine import FakeEngine
from tests.support.gateways import gateway_over
from tests.support.simulated_fleet import CHAT
from tests.support.virtual_time import run_virtual


def test_an_answer_leaves_no_cycles() -> None:
    """A stream's records were once kept until a full collection, which walked through everybody else's while they waited."""

    async def main() -> int:
        async with gateway_over({"a": FakeEngine()}) as running:
            for number in range(20):
                await post(running.app, CHAT, chat(str(number), stream=True)).run()
            return _alive()

    gc.collect()
    before = _alive()  # what other tests of this process still hold
    gc.disable()
    try:
        left = run_virtual(main()) - before
    finally:
        gc.enable()
    assert left <= 1  # the last one's task may still be on its way out


def _alive() -> int:
    return sum(isinstance(found, Exchange) for found in gc.get_objects())
