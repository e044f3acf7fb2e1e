"""Sequence numbers: what follows, what is missing, what is of another life of the engine."""

from hypothesis import given
from hypothesis import strategies as st

from backends.kv_events.order import Order, Verdict

FOLLOWS, REPEATED, MISSING, RESTARTED = Verdict.FOLLOWS, Verdict.REPEATED, Verdict.MISSING, Verdict.RESTARTED


def read_up_to(last: int, born: float = 100.0) -> Order:
    order = Order()
    for seq in range(last + 1):
        order.read(seq, born + seq)
    return order


def test_from_the_beginning() -> None:
    """Number 0 is the engine's first batch; with it, all that the engine did is known."""
    order = Order()
    assert (order.judge(0, 100.0), order.judge(5, 105.0)) == (FOLLOWS, MISSING)
    order.read(0, 100.0)
    assert (order.complete, order.last) == (True, 0)


def test_from_the_middle() -> None:
    """Whoever came late knows a part, also when all that follows is read."""
    order = Order()
    order.read(7, 107.0)
    order.read(8, 108.0)
    assert (order.complete, order.judge(9, 109.0)) == (False, FOLLOWS)


def test_live() -> None:
    """The next number follows, a higher one shows a gap, a lower one is old or an engine's new life."""
    order = read_up_to(5)
    assert order.judge(6, 106.0) is FOLLOWS
    assert order.judge(8, 108.0) is MISSING
    assert order.judge(5, 105.0) is order.judge(2, 102.0) is REPEATED
    assert order.judge(0, 500.0) is order.judge(5, 500.0) is RESTARTED


def test_a_replay_must_begin_with_what_is_known() -> None:
    """The same number with another time is another engine's; a replay that begins later has a hole."""
    order = read_up_to(5)
    assert order.judge_replayed(5, 105.0) is REPEATED
    assert order.judge_replayed(5, 500.0) is RESTARTED
    assert order.judge_replayed(6, 106.0) is FOLLOWS
    assert order.judge_replayed(7, 107.0) is MISSING


def test_begin_anew() -> None:
    """After it, nothing read before counts."""
    order = read_up_to(5)
    order.begin_anew()
    assert (order.last, order.complete, order.judge(6, 106.0), order.judge(0, 500.0)) == (None, False, MISSING, FOLLOWS)


@given(st.lists(st.integers(0, 12), max_size=40))
def test_whatever_arrives_is_taken_once_and_in_order(arrivals: list[int]) -> None:
    """Taking only what follows reads each batch of one engine once, without holes, however they are lost, doubled or swapped."""
    order, taken = Order(), []
    for seq in arrivals:
        verdict = order.judge(seq, 100.0 + seq)
        assert verdict is not RESTARTED
        if verdict is FOLLOWS:
            order.read(seq, 100.0 + seq)
            taken.append(seq)
    assert taken == list(range(len(taken)))
