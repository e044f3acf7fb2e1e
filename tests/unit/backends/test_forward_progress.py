"""Signs that an engine stands still: what is one, what is none, and what is learned from those that were not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.progress import Expected, Progress, Sign, Stillness

FAST = Expected(0.02, known=True)
SLOW = Expected(0.8, known=True)
TICK_S = 0.25


def silence_found(
    progress: Progress, last_s: float | None, expected: Expected, now: float, until_s: float
) -> float | None:
    """When, ticking on without a byte."""
    while now < until_s:
        if progress.silent(last_s, heard_from_s=0.0, expected=expected, now=now) is not None:
            return now
        now += TICK_S
    return None


def streaming(
    gap_s: float = 0.02, for_s: float = 20.0, expected: Expected = FAST
) -> tuple[Progress, float, list[float]]:
    """An engine whose streams have had bytes each `gap_s`; the last time, and when it was taken for silent."""
    progress, now, found = Progress(1.0, 0.0), 0.0, []
    while now < for_s:
        last_s = now // gap_s * gap_s
        if progress.silent(last_s, heard_from_s=0.0, expected=expected, now=now) is not None:
            found.append(now)
        now += TICK_S
    return progress, last_s, found


@pytest.mark.parametrize(("expected", "within_s"), [(FAST, 1.3), (SLOW, 1.7), (Expected(2.0, known=True), 3.8)])
def test_streams_that_get_nothing(expected: Expected, within_s: float) -> None:
    """After a second, or nearly two steps of a slow engine: so that two seconds, or three steps, are enough for the whole."""
    progress, last_s, found = streaming(expected=expected)
    assert found == []
    at_s = silence_found(progress, last_s, expected, last_s, last_s + 60)
    assert at_s is not None
    assert 1.0 < at_s - last_s <= within_s
    token_s = progress.token_timeout_s(Sign.SILENT, 0.5, expected, at_s)
    assert at_s + token_s - last_s <= max(2.0, 3 * expected.step_s)


@given(gap_s=st.floats(0.01, 30.0), step_s=st.floats(0.001, 5.0))
def test_gaps_as_before_are_no_sign(gap_s: float, step_s: float) -> None:
    """Once a gap was asked about and turned out to be one, gaps like it are borne."""
    expected = Expected(step_s, known=True)
    progress, now, last_s, refuted = Progress(1.0, 0.0), 0.0, 0.0, 0
    while now < 8 * gap_s + 20:
        last_s = now // gap_s * gap_s
        if progress.silent(last_s, heard_from_s=0.0, expected=expected, now=now) is not None:
            refuted += 1
            progress.refuted(Sign.SILENT, now - last_s, now)
        now += TICK_S
    assert refuted <= 10  # each makes it half as patient again: 1.5 ** 9 seconds are more than any gap here


def test_where_we_slept_nobody_was_silent() -> None:
    """A gateway that was not run itself hears its engines late; that is counted from when it woke."""
    progress, last_s, _ = streaming()
    now = last_s + 5
    assert progress.silent(last_s, heard_from_s=now, expected=FAST, now=now) is None
    assert progress.silent(last_s, heard_from_s=now, expected=FAST, now=now + 1.1) is not None


def test_an_engine_nobody_knows_gets_more_time() -> None:
    """Neither predictions were judged nor gaps seen."""
    unknown = Expected(0.02, known=False)
    found = silence_found(Progress(1.0, 0.0), 0.0, unknown, 0.0, 60.0)
    assert found is not None
    assert found > 4
    heard, last_s, _ = streaming(expected=unknown)
    found = silence_found(heard, last_s, unknown, last_s, last_s + 60)
    assert found is not None
    assert found - last_s < 1.3


def test_no_stream_no_silence() -> None:
    """And what was before the last stream ended is no gap."""
    progress, last_s, _ = streaming()
    assert progress.silent(None, heard_from_s=0.0, expected=FAST, now=last_s + 100) is None
    assert progress.silent(last_s + 100, heard_from_s=0.0, expected=FAST, now=last_s + 100) is None


def looks(progress: Progress, counts: list[int | None], *, busy: bool = True, expected: Expected = FAST) -> list[bool]:
    return [
        progress.standing(count, busy=busy, expected=expected, now=float(n)) is not None
        for n, count in enumerate(counts)
    ]


def test_a_count_that_stands() -> None:
    """Three looks and two seconds with requests running."""
    assert looks(Progress(1.0, 0.0), [1, 2, 3, 3, 3, 3]) == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("counts", "busy", "expected"),
    [
        ([1, 2, 3, 3, 3, 3, 3], False, FAST),  # idle
        ([7, 7, 7, 7, 7, 7, 7], True, FAST),  # never seen to count
        ([None] * 7, True, FAST),
        ([1, 2, 3, 3, 4, 4, 5], True, FAST),
        ([1, 2, 3, 3, 3, 3, 3], True, Expected(3.0, known=True)),  # slow steps
        ([1, 2, 3, 3, 3, 3, 3], True, Expected(0.02, known=False)),  # nobody knows it
        ([5, 6, 0, 0, 1, 1, 2], True, FAST),  # started anew
    ],
)
def test_counts_that_say_nothing(counts: list[int | None], busy: bool, expected: Expected) -> None:
    """Idle, never counting, absent, moving now and then, slow, new."""
    assert not any(looks(Progress(1.0, 0.0), counts, busy=busy, expected=expected))


def test_first_tokens_that_do_not_come() -> None:
    """Several, while nothing at all has moved for two seconds; one may be an odd one, and what moves is alive."""
    progress = Progress(1.0, 0.0)
    assert progress.late(3, expected=FAST, now=1.9) is None
    assert progress.late(2, expected=FAST, now=10.0) is None
    assert progress.late(3, expected=FAST, now=2.1) == pytest.approx(2.1)
    progress.answered(2.1)
    assert progress.late(3, expected=FAST, now=4.0) is None


def test_an_idle_engine_is_not_late() -> None:
    """It did not move for an hour because nobody asked; counted is from when somebody was kept waiting."""
    progress = Progress(1.0, 0.0)
    assert progress.late(0, expected=FAST, now=3600.0) is None
    assert progress.late(3, expected=FAST, now=3601.0) is None
    assert progress.late(3, expected=FAST, now=3602.5) == pytest.approx(2.5)


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 100)), max_size=40))
def test_the_longest_of_late(notes: list[tuple[float, float]]) -> None:
    """Never less than what was noted within the last minute, never what is older than two."""
    stillness, now, noted = Stillness(), 0.0, []
    for wait_s, still_s in notes:
        now += wait_s
        stillness.note(still_s, now)
        noted.append((now, still_s))
        longest_s = stillness.longest_s(now)
        assert longest_s >= max(still for at, still in noted if now - at < 60)
        assert longest_s <= max(still for at, still in noted if now - at <= 120)


def test_what_was_before_an_ejection_is_forgotten() -> None:
    """Its streams and its count begin anew."""
    progress, last_s, _ = streaming()
    progress.forget(last_s + 50)
    assert progress.silent(last_s + 50, heard_from_s=0.0, expected=FAST, now=last_s + 50.5) is None
    assert progress.moved_s == last_s + 50
