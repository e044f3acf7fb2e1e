"""A replica removed from the configuration at any step of a request's way to it: the request is served all the same."""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.support.asgi import Call, chat, post
from tests.support.simulated_fleet import CHAT, contents, fleet, fleet_config
from tests.support.virtual_time import run_virtual

STEPS = 24
STORY = chat(stream=True, max_tokens=5, ignore_eos=True)


class Last(Call):
    """Calls back when its response is complete."""

    then: Callable[[], object]

    async def _send(self, message: dict[str, Any]) -> None:
        await super()._send(message)
        if self.complete:
            self.then()


def test_removal_at_any_step() -> None:
    """Whether it was queued, sent or streaming when its replica was removed, the answer is whole."""
    both, remaining = fleet_config("a", "b"), fleet_config("b")

    async def removed_after(steps: int) -> Call:
        async with fleet(both) as subject:
            call = post(subject.running.app, CHAT, STORY)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(call.run())
                for _ in range(steps):
                    await asyncio.sleep(0)
                subject.running.gateway.reload(remaining)
            await subject.check_rest()
            return call

    calls = [run_virtual(removed_after(steps)) for steps in range(STEPS)]
    assert {call.status for call in calls} == {200}
    assert {call.events()[-1] for call in calls} == {"[DONE]"}
    assert len({contents(call) for call in calls}) == 1
    assert {call.header("x-penstock-replica") for call in calls} == {"a", "b"}


def test_removal_between_placement_and_send() -> None:
    """A request that was given a replica in the very turn of the loop in which that was removed is given another."""

    async def main() -> Call:
        async with fleet(fleet_config("a", capacity={"max_num_seqs": 1})) as subject:
            loop = asyncio.get_running_loop()
            first = Last(subject.running.app, CHAT, post(None, CHAT, STORY).body)
            # Runs after the scheduler has given the slot on, and before the one who got it.
            first.then = lambda: loop.call_soon(subject.running.gateway.reload, fleet_config("b"))
            second = post(subject.running.app, CHAT, STORY)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(first.run())
                tasks.create_task(second.run())
            await subject.check_rest()
            return second

    call = run_virtual(main())
    assert (call.status, call.events()[-1]) == (200, "[DONE]")
    assert (call.header("x-penstock-replica"), call.header("x-penstock-attempts")) == ("b", "2")


def test_one_reload_after_another_leaves_no_replica_behind() -> None:
    """Replicas that come and go leave only the configured ones in the scheduler's picture."""

    async def main() -> set[str]:
        async with fleet(fleet_config("a", "b")) as subject:
            gateway = subject.running.gateway
            for names in (("b",), ("a", "b"), ("c",), ("a", "c"), ("a",)):
                gateway.reload(fleet_config(*names))
                call = await post(subject.running.app, CHAT, chat(max_tokens=2)).run()
                assert call.status == 200, call.data
            await subject.check_rest()
            return {str(state.profile.id) for state in gateway.scheduler.states(0.0)}

    assert run_virtual(main()) == {"a"}
