"""The circuit breaker: when it opens, how long it pauses, and that it always heals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.breaker import Breaker, BreakerState, Result, Trip, result_of
from config.health import Health

HEALTH = Health()
OK, SLOW, FAILED, TIMED_OUT = Result.OK, Result.SLOW, Result.FAILED, Result.TIMED_OUT


def after(*results: Result, every_s: float = 0.1) -> tuple[Breaker, list[Trip | None]]:
    breaker = Breaker(HEALTH)
    return breaker, [breaker.attempted(result, n * every_s) for n, result in enumerate(results)]


@pytest.mark.parametrize(
    ("results", "trip"),
    [
        ([FAILED] * 5, Trip.FAILURES),
        ([FAILED] * 4, None),
        ([FAILED] * 4 + [OK] + [FAILED] * 4, None),
        ([OK, FAILED] * 10, Trip.ERROR_RATIO),
        ([OK, FAILED] * 9, None),  # 18 attempts say nothing
        ([OK, OK, FAILED] * 20, None),
        ([SLOW] * 5, Trip.SLOW),
        ([SLOW, TIMED_OUT, SLOW, TIMED_OUT, SLOW], Trip.SLOW),
        ([SLOW, FAILED, SLOW, SLOW, FAILED, SLOW, SLOW], Trip.SLOW),  # what fails at once is not fast
        ([SLOW, SLOW, OK, SLOW, SLOW, SLOW], None),
        ([OK] * 100, None),
    ],
)
def test_what_opens_it(results: list[Result], trip: Trip | None) -> None:
    """Failures in a row, half of twenty, first bytes far too late in a row; it says which, once."""
    breaker, told = after(*results)
    assert told[-1] is trip
    assert not any(told[:-1])
    assert breaker.state is (BreakerState.OPEN if trip else BreakerState.CLOSED)


def test_old_failures_count_no_more() -> None:
    """Every second attempt fails, and only ten seconds of them count: too few, as slow as they come."""
    assert not any(after(*[OK, FAILED] * 50, every_s=0.6)[1])


def test_pauses_double_up_to_the_longest_and_shrink_after_a_calm() -> None:
    """1, 2, 4, 8, 16, 30, 30 seconds; after half a minute without an opening, one second again."""
    breaker, now, pauses = Breaker(HEALTH), 0.0, []
    for _ in range(7):
        breaker.open("test", now)
        assert not breaker.may_ask(breaker.due_s - 1e-6)
        pauses.append(breaker.due_s - now)
        now = breaker.due_s
        assert breaker.may_ask(now)
        breaker.ask()
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    breaker.close(now)
    breaker.open("again", now + 5)
    assert breaker.due_s == now + 35
    breaker.close(now + 40)
    breaker.open("later", now + 71)
    assert breaker.due_s == now + 72


def test_a_question_that_broke_off_may_be_asked_again() -> None:
    """Nobody brought the answer: it is not half open for ever."""
    breaker = Breaker(HEALTH)
    breaker.open("test", 0.0)
    breaker.ask()
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.may_ask(breaker.due_s)


def test_a_withdrawn_opening_makes_no_pause_longer() -> None:
    """As if it had not been."""
    breaker = after(*[FAILED] * 5)[0]
    breaker.withdraw(1.0)
    breaker.open("test", 1.0)
    assert breaker.due_s == 2.0


EVENTS = st.lists(
    st.tuples(st.floats(0, 50), st.sampled_from([*Result, "open", "ask", "close", "withdraw"])), max_size=60
)


@given(events=EVENTS)
def test_it_always_heals(events: list[tuple[float, str]]) -> None:
    """Whatever happened: within the longest pause it may be asked, and one answer makes it as good as new."""
    breaker, now = Breaker(HEALTH), 0.0
    for wait_s, event in events:
        now += wait_s
        if event == "open":
            breaker.open("test", now)
        elif event == "ask" and breaker.may_ask(now):
            breaker.ask()
        elif event == "close":
            breaker.close(now)
        elif isinstance(event, Result) and breaker.attempted(event, now):
            assert breaker.state is BreakerState.OPEN
        elif event == "withdraw" and breaker.state is BreakerState.OPEN:
            breaker.withdraw(now)
        assert len(breaker._window) <= 1024
        assert breaker._window_failures == sum(failed for _, failed in breaker._window)
    if breaker.state is not BreakerState.CLOSED:
        now += HEALTH.longest_pause_s
        assert breaker.may_ask(now)
        breaker.ask()
        breaker.close(now)
    assert not any(breaker.attempted(FAILED, now) for _ in range(0 if events else 4))
    breaker.close(now)
    assert [breaker.attempted(FAILED, now) for _ in range(5)] == [None] * 4 + [Trip.FAILURES]


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        ("ok", OK), ("rejected", OK), ("connect_error", FAILED), ("closed", FAILED), ("stream_cut", FAILED), ("5xx", FAILED),
        ("error_event", FAILED), ("garbled", FAILED), ("timeout", TIMED_OUT), ("cancelled", None), ("hedged", None),
        ("moved", None), ("lapsed", None), ("too_large", None),
    ],
)  # fmt: skip
def test_what_an_outcome_says(outcome: str, result: Result | None) -> None:
    """A refusal is the request's own fault, a cancellation nobody's."""
    assert result_of(outcome) is result


def test_an_answer_that_came_far_too_late() -> None:
    """Is slow, whether it was an answer or a refusal; a failure stays one."""
    assert result_of("ok", slow=True) is SLOW
    assert result_of("5xx", slow=True) is FAILED


def test_one_that_closed_again_is_on_probation() -> None:
    """After failures the first one opens it again; one answer, and it takes as many as ever."""
    breaker, _ = after(*[FAILED] * 5)
    breaker.ask()
    breaker.close(10.0)
    assert breaker.attempted(FAILED, 10.1) is Trip.FAILURES
    breaker.ask()
    breaker.close(20.0)
    assert breaker.attempted(OK, 20.1) is None
    assert [breaker.attempted(FAILED, 20.2 + n / 10) for n in range(5)] == [None] * 4 + [Trip.FAILURES]


def test_slowness_leaves_no_probation() -> None:
    """What opened on slow first bytes has failed nobody."""
    breaker, _ = after(*[SLOW] * 5)
    breaker.ask()
    breaker.close(10.0)
    assert breaker.attempted(FAILED, 10.1) is None
