"""Timestamps to figures: unknown is None, durations are never negative."""

from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.timeline import Timeline


def test_a_whole_life():
    """Queue time, TTFT, TPOT and end-to-end of a request that went well."""
    life = Timeline(10.0)
    life.queued_s, life.placed_s, life.sent_s = 10.5, 12.0, 12.25
    assert [life.on_tokens(1, 13.0), life.on_tokens(1, 13.5), life.on_tokens(2, 14.5)] == [None, 0.5, 1.0]
    life.finished_s = 15.0
    assert (life.queue_s, life.ttft_s, life.upstream_ttft_s, life.tpot_s, life.e2e_s) == (1.5, 3.0, 0.75, 0.5, 5.0)
    assert life.output_tokens == 4


def test_what_did_not_happen_is_unknown():
    """A request that never left the queue has no figure but its end."""
    life = Timeline(1.0)
    assert (life.queue_s, life.ttft_s, life.upstream_ttft_s, life.tpot_s, life.e2e_s) == (None,) * 5
    life.finished_s = 1.0
    assert life.e2e_s == 0.0


def test_one_token_has_no_time_per_token():
    """TPOT is of the tokens after the first."""
    life = Timeline(0.0)
    life.on_tokens(1, 2.0)
    assert (life.ttft_s, life.tpot_s) == (2.0, None)


def test_a_first_chunk_of_many_tokens():
    """Tokens that came together with the first count, but no interval is known."""
    life = Timeline(0.0)
    assert life.on_tokens(3, 1.0) is None
    assert life.on_tokens(1, 2.0) == 1.0
    assert life.tpot_s == 1.0 / 3


def test_no_tokens_change_nothing():
    """A keep-alive or a role chunk is no token."""
    life = Timeline(0.0)
    assert life.on_tokens(0, 1.0) is None
    assert (life.first_token_s, life.output_tokens) == (None, 0)


def test_placed_without_queueing():
    """Without a moment of queueing the queue time runs from arrival."""
    life = Timeline(1.0)
    life.placed_s = 1.5
    assert life.queue_s == 0.5


def test_moments_out_of_order():
    """Clock readings of another task may come late: no duration is negative, time does not run back."""
    life = Timeline(10.0)
    life.queued_s, life.placed_s = 12.0, 11.0
    assert life.queue_s == 0.0
    life.on_tokens(1, 20.0)
    assert life.on_tokens(1, 19.0) == 0.0
    assert life.on_tokens(1, 21.0) == 1.0


@settings(deadline=None, derandomize=True)
@given(chunks=st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1e6)), max_size=50))
def test_intervals_add_up(chunks: list[tuple[int, float]]):
    """Whatever the order, the gaps add up to the time from first to last token."""
    life = Timeline(0.0)
    total = sum(interval for count, now in chunks if (interval := life.on_tokens(count, now)) is not None)
    assert life.output_tokens == sum(count for count, _ in chunks)
    if life.first_token_s is not None and life.last_token_s is not None:
        assert abs(total - (life.last_token_s - life.first_token_s)) <= 1e-6 * max(1.0, life.last_token_s)
        assert life.last_token_s >= life.first_token_s
