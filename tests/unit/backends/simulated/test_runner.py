"""The engine's async shell under virtual time: exact pacing, bounded hand-over, cancellation, sleep, closing."""

import asyncio

import pytest

from backends.backend import StreamCut
from backends.simulated.engine import Engine, TooLarge
from backends.simulated.options import EngineOptions
from backends.simulated.runner import EngineRunner, Span, TokenStream
from backends.simulated.sequence import EngineSequence
from tests.support.virtual_time import run_virtual

OPTIONS = EngineOptions(kv_blocks=64, max_num_seqs=4)


def runner() -> EngineRunner:
    return EngineRunner(Engine(OPTIONS))


def sequence(subject: EngineRunner, prompt: int, limit: int) -> EngineSequence:
    return EngineSequence(
        seq_id=subject.next_id(),
        prompt_tokens=prompt,
        limit_tokens=limit,
        finish_reason="length",
        block_hash=lambda _: None,
    )


async def drain(stream: TokenStream) -> list[Span]:
    spans = []
    while not stream.ended:
        spans += await stream.progress()
    return spans


def test_tokens_come_at_the_roofline_times():
    """Each token arrives when its step's time has passed on the loop's clock."""

    async def main() -> tuple[list[float], list[float]]:
        subject, pure = runner(), Engine(OPTIONS)
        pure.add(sequence(subject, 100, 5), 0.0)
        expected, now = [], 0.0
        while (step := pure.step(now)) is not None:
            now += step.duration_s
            expected.append(now)
        stream = subject.submit([sequence(subject, 100, 5)])
        seen = []
        while not stream.ended:
            await stream.progress()
            seen.append(asyncio.get_running_loop().time())
        await subject.aclose()
        return seen, expected

    seen, expected = run_virtual(main())
    assert seen == pytest.approx(expected)


def test_a_slow_reader_gets_all_tokens_in_one_span():
    """What was not read is held as two numbers, whatever its length."""

    async def main() -> list[Span]:
        subject = runner()
        stream = subject.submit([sequence(subject, 10, 500)])
        await asyncio.sleep(3600)
        spans = await drain(stream)
        await subject.aclose()
        return spans

    assert run_virtual(main()) == [Span(0, 0, 500, "length")]


def test_choices_of_one_request_are_told_apart():
    """Each choice's spans are gapless and end with its own finish."""

    async def main() -> list[Span]:
        subject = runner()
        stream = subject.submit([sequence(subject, 10, limit) for limit in (3, 5)])
        spans = await drain(stream)
        await subject.aclose()
        return spans

    spans = run_virtual(main())
    for choice, limit in enumerate((3, 5)):
        own = [span for span in spans if span.choice == choice]
        assert [span.start for span in own] == list(range(limit))
        assert [span.finish_reason for span in own] == [None] * (limit - 1) + ["length"]


def test_closing_a_stream_frees_its_blocks_now():
    """Close aborts in the engine at once, may be repeated, and its waiting reader is told."""

    async def main() -> None:
        subject = runner()
        stream = subject.submit([sequence(subject, 10, 500)])
        await stream.progress()
        reader = asyncio.get_running_loop().create_task(stream.progress())
        await asyncio.sleep(0)
        stream.close()
        stream.close()
        assert subject.engine.kv.used_blocks == 0
        with pytest.raises(StreamCut):
            await reader
        await subject.aclose()

    run_virtual(main())


def test_the_engine_rests_between_requests():
    """An idle engine has no timer and no task, and starts again with the next request."""

    async def main() -> float:
        subject = runner()
        for _ in range(2):
            await drain(subject.submit([sequence(subject, 10, 2)]))
            await asyncio.sleep(1)
            assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        await subject.aclose()
        return asyncio.get_running_loop().time()

    assert 2 < run_virtual(main()) < 3


def test_sleeping_stops_the_stream_and_waking_finishes_it():
    """Nothing comes while asleep; afterwards no token is missing or doubled."""

    async def main() -> list[Span]:
        subject = runner()
        stream = subject.submit([sequence(subject, 10, 8)])
        spans = await stream.progress()
        subject.sleep()
        await asyncio.sleep(100)
        woken_at = asyncio.get_running_loop().time()
        subject.wake()
        spans += await drain(stream)
        assert asyncio.get_running_loop().time() > woken_at
        await subject.aclose()
        return spans

    assert [token for span in run_virtual(main()) for token in range(span.start, span.stop)] == list(range(8))


def test_closing_the_runner_cuts_open_streams():
    """Readers and later readers see StreamCut, not silence."""

    async def main() -> None:
        subject = runner()
        stream = subject.submit([sequence(subject, 10, 500)])
        await stream.progress()
        reader = asyncio.get_running_loop().create_task(stream.progress())
        await asyncio.sleep(0)
        await subject.aclose()
        await subject.aclose()
        with pytest.raises(StreamCut):
            await reader
        with pytest.raises(StreamCut):
            await stream.progress()

    run_virtual(main())


def test_an_engine_that_breaks_cuts_its_streams():
    """A bug in the engine ends the streams instead of leaving them waiting, and is reported on close."""

    class Broken(Engine):
        def step(self, now: float):
            raise ZeroDivisionError

    async def main() -> None:
        subject = EngineRunner(Broken(OPTIONS))
        stream = subject.submit([sequence(subject, 10, 5)])
        with pytest.raises(StreamCut):
            await stream.progress()
        with pytest.raises(ZeroDivisionError):
            await subject.aclose()

    run_virtual(main())


def test_a_refused_choice_takes_the_others_back():
    """Submitting is all or nothing."""

    async def main() -> None:
        subject = runner()
        with pytest.raises(TooLarge):
            subject.submit([sequence(subject, 10, 5), sequence(subject, 10, 100_000)])
        assert subject.engine.statistics().waiting == 0
        await subject.aclose()

    run_virtual(main())
