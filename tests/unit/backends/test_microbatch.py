"""The micro-batcher: what closes a batch, and that nothing is lost, reordered or oversized whatever comes when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.microbatch import Batch, ClosedBy, MicroBatcher


class Row:
    """An item; equal to nothing but itself."""

    def __init__(self, name: str = "") -> None:
        self.name = name


def batcher(*, max_tokens: int = 100, max_size: int = 4, max_age_s: float = 1.0) -> MicroBatcher[Row]:
    return MicroBatcher(max_tokens=max_tokens, max_size=max_size, max_age_s=max_age_s)


def test_size_closes() -> None:
    """The item that fills the batch closes it, in order of arrival."""
    micro, rows = batcher(max_size=3), [Row(), Row(), Row()]
    assert [micro.add(row, 1, 0.0) for row in rows[:2]] == [None, None]
    assert micro.add(rows[2], 1, 0.5) == Batch(items=tuple(rows), tokens=3, opened_s=0.0, closed_by=ClosedBy.SIZE)


def test_tokens_close_before_they_overflow() -> None:
    """An item that would exceed the budget closes the batch without it and opens the next."""
    micro, first, second = batcher(max_tokens=10), Row(), Row()
    assert micro.add(first, 6, 0.0) is None
    assert micro.add(second, 6, 2.0) == Batch(items=(first,), tokens=6, opened_s=0.0, closed_by=ClosedBy.TOKENS)
    assert (len(micro), micro.next_deadline()) == (1, 3.0)


def test_a_full_budget_closes_at_once() -> None:
    """A batch whose budget is used up exactly does not wait for its age."""
    micro, row = batcher(max_tokens=10), Row()
    assert micro.add(row, 10, 0.0) == Batch(items=(row,), tokens=10, opened_s=0.0, closed_by=ClosedBy.TOKENS)


def test_an_oversized_item_goes_alone_and_at_once() -> None:
    """What no batch can ever hold is sent by itself, the batch before it first."""
    micro, small, huge = batcher(max_tokens=10), Row(), Row()
    micro.add(small, 1, 0.0)
    closed = micro.add(huge, 1000, 0.0)
    due = micro.due(0.0)
    assert closed is not None
    assert due is not None
    assert (closed.items, due.items, len(micro)) == ((small,), (huge,), 0)


def test_age_closes() -> None:
    """A batch is due at its first item's age, not before."""
    micro, row = batcher(max_age_s=0.25), Row()
    micro.add(row, 1, 5.0)
    assert (micro.next_deadline(), micro.due(5.2)) == (5.25, None)
    assert micro.due(5.25) == Batch(items=(row,), tokens=1, opened_s=5.0, closed_by=ClosedBy.AGE)


def test_nothing_open_has_no_deadline() -> None:
    """An empty batcher never wakes anybody."""
    micro = batcher()
    assert (micro.next_deadline(), micro.due(1e9)) == (None, None)


def test_a_removed_item_leaves_its_batch() -> None:
    """A cancelled row is not sent, its tokens are free again, and an emptied batch is no batch."""
    micro, kept, gone = batcher(max_tokens=10), Row(), Row()
    micro.add(gone, 9, 0.0)
    assert (micro.remove(gone), micro.remove(gone), micro.next_deadline()) == (True, False, None)
    assert micro.add(kept, 9, 7.0) is None
    due = micro.due(8.0)
    assert due is not None
    assert (due.items, due.opened_s) == ((kept,), 7.0)


@given(
    max_tokens=st.integers(1, 50),
    max_size=st.integers(1, 5),
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "remove", "wait"]), st.integers(0, 60), st.integers(0, 8)), max_size=60
    ),
)
def test_no_item_is_lost_doubled_late_or_crowded(
    max_tokens: int, max_size: int, steps: list[tuple[str, int, int]]
) -> None:
    """Whatever comes when: each item leaves exactly once and in order, in a batch within every bound, no later than its age."""
    micro = batcher(max_tokens=max_tokens, max_size=max_size)
    tokens: dict[Row, int] = {}
    added_s: dict[Row, float] = {}
    kept: list[Row] = []
    sent: list[Row] = []
    now = 0.0

    def took(batch: Batch[Row] | None) -> bool:
        if batch is None:
            return False
        assert batch.tokens == sum(tokens[row] for row in batch.items)
        assert 1 <= len(batch.items) <= max_size
        assert batch.tokens <= max_tokens or len(batch.items) == 1
        assert all(now - added_s[row] <= 1.0 for row in batch.items)
        sent.extend(batch.items)
        return True

    for action, number, quarters in steps:
        pause = quarters / 4  # exact in binary: an age is met to the bit
        if action == "add":
            row = Row()
            tokens[row], added_s[row] = number, now
            kept.append(row)
            took(micro.add(row, number, now))
            while took(micro.due(now)):
                pass
        elif action == "remove" and kept:
            row = kept[number % len(kept)]
            if micro.remove(row):
                kept.remove(row)
        else:
            deadline = micro.next_deadline()
            now = now + pause if deadline is None else min(now + pause, deadline)
            took(micro.due(now))
    now = micro.next_deadline() or now
    took(micro.due(now))
    assert sent == kept
    assert len(micro) == 0


@pytest.mark.parametrize("tokens", [0, 1])
def test_rows_of_no_tokens_still_count(tokens: int) -> None:
    """Size bounds a batch even of rows that cost nothing."""
    micro = batcher(max_size=2)
    micro.add(Row(), tokens, 0.0)
    assert micro.add(Row(), tokens, 0.0) is not None
