"""What two words about one replica come to."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from router.standing import Kind, Left, Standing, Word, is_repeat, joined


def word(kind: str, deadline_s: float | None = None, *ids: str, **fields: Any) -> Standing:
    unix_s = None if deadline_s is None else 1000 + deadline_s
    return Standing(kind=Kind(kind), deadline_s=deadline_s, deadline_unix_s=unix_s, ids=ids, **fields)


words = st.builds(
    word,
    st.sampled_from([kind.value for kind in Kind]),
    st.none() | st.floats(0, 100),
    st.sampled_from(["x", "y", "z"]),
)


def test_sooner_deadline_wins_and_a_later_one_changes_nothing():
    """Whichever came first."""
    for first, second in ((60.0, 20.0), (20.0, 60.0)):
        stands = joined(joined(None, word("drain", first)), word("drain", second))
        assert (stands.deadline_s, stands.deadline_unix_s) == (20.0, 1020.0)


def test_a_deadline_beats_none():
    """A drain that may take its time is over by the deadline of a notice."""
    stands = joined(word("drain"), word("reclaim", 30.0, "i-1", provider="aws"))
    assert (stands.kind, stands.provider, stands.deadline_s, stands.ids) == (Kind.DRAIN, "operator", 30.0, ("i-1",))


def test_a_hint_adds_nothing_to_what_is_graver():
    """Neither its kind nor a time that came with it."""
    assert joined(word("reclaim", 60.0), word("rebalance", 5.0)).deadline_s == 60.0
    assert joined(word("rebalance", 5.0), word("reclaim", 60.0)) == word("reclaim", 60.0)


@given(st.lists(words, min_size=1, max_size=6), st.randoms())
def test_order_of_words_does_not_matter(said: Any, random: Any):
    """The gravest kind and the soonest deadline hold, in whatever order workers hear of them."""
    shuffled = list(said)
    random.shuffle(shuffled)
    one = other = None
    for first, second in zip(said, shuffled, strict=True):
        one, other = joined(one, first), joined(other, second)
    assert one is not None
    assert other is not None
    assert (one.kind, one.deadline_s, set(one.ids)) == (other.kind, other.deadline_s, set(other.ids))
    ends = [each.deadline_s for each in said if each.empties and each.deadline_s is not None]
    assert one.deadline_s == min(ends, default=None)


@given(words, words)
def test_a_repeat_changes_nothing(before: Any, new: Any):
    """What counts as one leaves what stands as it is, but for the jitter of two readings of a clock."""
    stands = joined(joined(None, before), new)
    again = joined(stands, new)
    assert is_repeat(stands, new)
    assert again == stands
    assert not is_repeat(None, new)


def test_ids_that_are_remembered_are_bounded():
    """Whoever invents a new id each time costs no memory."""
    stands = word("reclaim", 30.0)
    for number in range(100):
        stands = joined(stands, word("reclaim", 30.0, f"i{number}"))
    assert stands.ids == tuple(f"i{number}" for number in range(84, 100))


def test_at_moves_a_deadline_to_another_clock():
    """And leaves none alone."""
    assert word("drain", 5.0).at(100.0).deadline_s == 105.0
    assert word("drain").at(100.0).deadline_s is None


def test_words_travel():
    """From worker to worker they stay what they are."""
    said = Word(replica="a", standing=word("reclaim", 5.0, "i", provider="gcp"), seat=2)
    assert msgspec.json.decode(msgspec.json.encode(said), type=Word) == said


def test_what_is_left_adds_up_and_is_released_only_by_all():
    """Requests of two workers; the replica that one still uses may not go."""
    left = Left(requests={"a": 1, "b": 0}, released={"b"}) + Left(requests={"a": 2, "b": 0}, released={"a", "b"})
    assert (left.requests, left.released) == ({"a": 3, "b": 0}, {"b"})
    assert msgspec.json.decode(msgspec.json.encode(left), type=Left) == left
