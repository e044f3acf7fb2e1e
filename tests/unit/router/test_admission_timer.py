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
