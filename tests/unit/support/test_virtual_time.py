"""The virtual-time loop: waiting is free, order is by time, and a hang is an error instead of a hang."""

import asyncio

import pytest

from tests.support.virtual_time import Deadlock, run_virtual


def test_sleep_moves_the_clock_by_what_was_slept():
    """A long sleep ends at exactly its virtual time."""

    async def main() -> float:
        await asyncio.sleep(7 * 3600)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 7 * 3600


def test_sleepers_wake_in_the_order_of_their_timers():
    """Timers fire by time, not by creation."""

    async def main() -> list[tuple[int, float]]:
        woken = []

        async def sleeper(seconds: int) -> None:
            await asyncio.sleep(seconds)
            woken.append((seconds, asyncio.get_running_loop().time()))

        async with asyncio.TaskGroup() as group:
            for seconds in (30, 10, 20):
                group.create_task(sleeper(seconds))
        return woken

    assert run_virtual(main()) == [(10, 10.0), (20, 20.0), (30, 30.0)]


def test_timeouts_obey_the_virtual_clock():
    """`asyncio.timeout` fires at its virtual deadline."""

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(12.5):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 12.5


def test_ready_work_runs_before_the_clock_moves():
    """Time stands still while any task can run."""

    async def main() -> float:
        for _ in range(1000):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 0.0


def test_a_wait_that_nothing_can_end_raises():
    """A deadlock is named instead of hanging the suite, and tasks are still cleaned up."""
    cleaned = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    with pytest.raises(Deadlock):
        run_virtual(main())
    assert cleaned == [True]


def test_many_small_steps_do_not_stall_late_in_the_run():
    """Adding a small step to a large clock still makes progress (no rounding live-lock)."""

    async def main() -> float:
        await asyncio.sleep(1_000_000)
        for _ in range(1000):
            await asyncio.sleep(0.001)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(1_000_001, abs=1e-3)


def test_a_thread_may_still_answer():
    """Work handed to a thread is waited for; it is no deadlock."""

    async def main() -> int:
        return await asyncio.to_thread(lambda: 42)

    assert run_virtual(main()) == 42
