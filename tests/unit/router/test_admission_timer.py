"""The shell's one timer, on the loop that serves: uvloop gives for what is due at once a handle that cannot say when."""

import asyncio

import uvloop

from batching.scheduler import Scheduler
from config.schema import Queue, Scheduling
from router.admission import Admission


class Impatient(Scheduler):
    """Always to be woken now."""

    def next_deadline(self) -> float:
        return asyncio.get_running_loop().time()


def test_two_passes_in_one_turn_with_something_due_at_once():
    """The second pass finds a timer that has not fired yet, and keeps it."""

    async def passes() -> None:
        admission = Admission(Impatient(Scheduling(), Queue()))
        admission.advance()
        first = admission._timer
        admission.advance()
        assert first is not None
        assert admission._timer is first
        admission.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(passes())


def test_what_has_expired_is_heard_before_anything_is_placed():
    """A process that was stopped wakes up in the middle of a request: the shares' end comes before the next placement, timer or not."""

    async def main() -> list[str]:
        said: list[str] = []

        class Placing(Scheduler):
            def advance(self, now: float):  # type: ignore[no-untyped-def]
                said.append("placed")
                return super().advance(now)

        admission = Admission(Placing(Scheduling(), Queue()))
        admission.expires_s = asyncio.get_running_loop().time() + 1
        admission.on_expired = lambda _now: said.append("expired")
        admission.advance()
        admission.expires_s = asyncio.get_running_loop().time()
        admission.advance()
        admission.close()
        return said

    assert asyncio.run(main()) == ["placed", "expired", "placed"]
