"""A limit by the minute: no minute holds more, and one under pressure holds hardly less."""

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from router.tenants.window import SLOT_S, SPAN_S, Piece, Window

STEPS = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=80)


@settings(deadline=None)
@given(STEPS, st.integers(1, 100))
def test_no_minute_holds_more_than_the_limit(steps: list[tuple[float, int, float]], limit: int):
    """Wherever a minute begins, what was taken in it and not given back is within the limit, whatever is given back when."""
    window, now = Window(limit), 0.0
    kept: list[tuple[float, int]] = []
    for pause_s, amount, back in steps:
        now += pause_s
        if window.room(now) >= amount:
            piece = window.take(amount, now)
            given = int(amount * back)
            window.give_back(Piece(piece.slot, given), now)
            kept.append((now, amount - given))
    for start, _ in kept:
        assert sum(amount for at, amount in kept if start <= at < start + SPAN_S) <= limit


def test_pressure_fills_the_limit():
    """Asked for ten times as much, ten minutes let all but a slot's share of ten limits through, and never more."""
    window, taken = Window(600), 0
    for tick in range(6000):  # ten a second's tenth part: 100 a second for 600 seconds, at a limit of 10 a second
        now = tick * 0.1
        for _ in range(10):
            if window.room(now) >= 1:
                window.take(1, now)
                taken += 1
    assert 0.99 * 6000 <= taken <= 6000


@settings(deadline=None)
@given(STEPS, st.integers(1, 100), st.integers(1, 100))
def test_waiting_as_long_as_told_is_enough(steps: list[tuple[float, int, float]], limit: int, wanted: int):
    """After `wait_s` there is room, and a slot before it there is none; what is larger than the limit never fits."""
    window, now = Window(limit), 0.0
    for pause_s, amount, _ in steps:
        now += pause_s
        if window.room(now) >= amount:
            window.take(amount, now)
    wait_s = window.wait_s(wanted, now)
    if wanted > limit:
        assert wait_s == inf
        return
    assert wait_s <= SPAN_S + SLOT_S
    if wait_s > 2 * SLOT_S:
        assert window.room(now + wait_s - 2 * SLOT_S) < wanted
    assert window.room(now + wait_s + 1e-6) >= wanted


def test_what_comes_back_late_changes_nothing():
    """A piece that is older than the window is gone: giving it back makes no room that was not there."""
    window = Window(10)
    piece = window.take(10, 0.0)
    window.take(10, 61.0)
    window.give_back(piece, 62.0)
    assert window.room(62.0) == 0


def test_all_of_it_is_there_again_when_told():
    """`reset_s` is when the whole limit is free; 0 where it is."""
    window = Window(10)
    assert window.reset_s(5.0) == 0
    window.take(3, 5.0)
    reset_s = window.reset_s(5.0)
    assert 60 <= reset_s <= 60.2
    assert window.room(5.0 + reset_s + 1e-6) == 10
