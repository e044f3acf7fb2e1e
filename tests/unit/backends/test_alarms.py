"""Deadlines on one timer: each rings once, in time and in order, unless it was called off; and none is kept for long in vain."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from backends.alarms import Alarm, Alarms
from tests.support.virtual_time import run_virtual


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=200))
def test_each_rings_once_in_time_and_in_order(wanted: list[tuple[float, bool]]) -> None:
    """But for those that were called off."""
    rung: list[tuple[float, float]] = []

    async def main() -> None:
        loop, alarms = asyncio.get_running_loop(), Alarms()
        began = loop.time()

        def ring(after_s: float) -> None:
            rung.append((after_s, loop.time() - began))

        for after_s, called_off in wanted:
            alarm = alarms.call_at(began + after_s, lambda after_s=after_s: ring(after_s))
            if called_off:
                alarm.cancel()
                alarm.cancel()
        await asyncio.sleep(101)
        assert len(alarms) == 0

    run_virtual(main())
    assert [due for due, _ in rung] == sorted(after_s for after_s, called_off in wanted if not called_off)
    assert all(-1e-6 <= at - due <= 0.0011 for due, at in rung)


def test_one_may_be_set_and_called_off_while_others_ring() -> None:
    """An alarm that rings at the same time as the one that calls it off stays silent; a later one is not forgotten."""
    rung: list[str] = []

    async def main() -> None:
        alarms, now = Alarms(), asyncio.get_running_loop().time()
        second: list[Alarm] = []

        def first() -> None:
            rung.append("first")
            second[0].cancel()
            alarms.call_at(now + 2, lambda: rung.append("later"))

        alarms.call_at(now + 1, first)
        second.append(alarms.call_at(now + 1, lambda: rung.append("second")))
        await asyncio.sleep(3)

    run_virtual(main())
    assert rung == ["first", "later"]


def test_one_that_raises_disturbs_nobody() -> None:
    """The loop is told, as of any callback."""
    rung: list[str] = []
    told: list[object] = []

    async def main() -> None:
        loop, alarms = asyncio.get_running_loop(), Alarms()
        loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
        alarms.call_at(loop.time() + 1, lambda: {}["nothing"])
        alarms.call_at(loop.time() + 1, lambda: rung.append("other"))
        await asyncio.sleep(2)

    run_virtual(main())
    assert rung == ["other"]
    assert [type(error) for error in told] == [KeyError]


def test_those_called_off_are_swept_out() -> None:
    """A minute's deadline for each of a hundred thousand requests, all done at once, leaves next to nothing."""

    async def main() -> int:
        alarms, now = Alarms(), asyncio.get_running_loop().time()
        kept = [alarms.call_at(now + 60, lambda: None) for _ in range(100)]
        for _ in range(100_000):
            alarms.call_at(now + 60, lambda: None).cancel()
        assert not any(alarm.over for alarm in kept)
        return len(alarms)

    assert run_virtual(main()) <= 126
