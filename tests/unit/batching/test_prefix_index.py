"""Who is believed to hold which prefix."""

from itertools import takewhile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from batching.prefix_index import PrefixIndex
from batching.request import ReplicaId

A, B = ReplicaId("a"), ReplicaId("b")


def test_match_counts_leading_chunks_for_each_replica():
    """A replica matches as far as it holds every chunk from the first on."""
    index = PrefixIndex()
    index.record(A, (1, 2, 3))
    index.record(B, (1, 2, 9))
    assert index.match((1, 2, 3, 4)) == {A: 3, B: 2}
    assert index.match((1, 2, 9)) == {A: 2, B: 3}
    assert index.match((5, 2)) == index.match(()) == {}


def test_forgotten_replicas_hold_nothing_until_recorded_anew():
    """What went down lost its cache, also when it comes back under its name."""
    index = PrefixIndex()
    index.record(A, (1, 2))
    index.record(B, (1,))
    index.forget(A)
    index.forget(A)
    assert index.match((1, 2)) == {B: 1}
    index.record(A, (1,))
    assert index.match((1, 2)) == {A: 1, B: 1}


def test_the_index_is_bounded_and_keeps_shared_beginnings():
    """The least recently used chunks go first, and of a prompt the deepest."""
    index = PrefixIndex(max_chunks=4)
    index.record(A, (1, 2, 3))
    index.record(A, (1, 7, 8))
    assert len(index) == 4
    assert index.match((1, 2, 3)) == {A: 2}
    assert index.match((1, 7, 8)) == {A: 3}


def test_a_replica_holds_no_more_than_its_cache():
    """What it used last stays, of a prompt the beginning; others' chunks are not touched."""
    index = PrefixIndex()
    index.record(A, (1, 2, 3), 4)
    index.record(B, (1, 2, 3), 100)
    index.record(A, (7, 8), 4)
    assert index.match((1, 2, 3)) == {A: 2, B: 3}
    index.record(A, (1, 2), 4)  # used again
    index.record(A, (5,), 4)
    assert index.match((7, 8)) == {A: 1}
    assert index.match((1, 2, 3)) == {A: 2, B: 3}


def test_many_holders_of_everything_are_bounded_too():
    """Where nobody knows how much the caches hold, the oldest chunks go when a few replicas on average hold each."""
    index = PrefixIndex(max_chunks=100)
    for chunk in range(100):
        for number in range(10):
            index.record(ReplicaId(f"r{number}"), (chunk,))
    assert sum(map(len, index._held.values())) == index._entries == 400
    assert len(index) == 40
    assert len(index.match((99,))) == 10
    index.forget(ReplicaId("r3"))
    assert sum(map(len, index._held.values())) == index._entries == 360
    index.drop(ReplicaId("r4"), range(100))
    assert index._entries == 320


def test_chunks_that_nobody_holds_are_forgotten():
    """Memory follows belief."""
    index = PrefixIndex()
    for start in range(0, 100, 2):
        index.record(A, (start, start + 1), 4)
    assert len(index) == 4
    index.drop(A, range(100))
    assert len(index) == 0


def test_thousands_of_replica_lives_leave_belief_intact():
    """Masks are renumbered when forgotten replicas fill them; nobody's chunks change hands."""
    index = PrefixIndex()
    index.record(B, (1, 2))
    for life in range(9000):
        index.record(A, (1, life))
        index.forget(A)
    index.record(A, (1,))
    assert index.match((1, 2)) == {A: 1, B: 2}


def test_those_who_ask_alike_share_one_answer():
    """What waits keeps its answer: ten thousand of one family hold one mapping, not ten thousand; it counts in units."""
    index = PrefixIndex()
    index.record(A, (1, 2, 3))
    index.record(B, (1,))
    first = index.match((1, 2, 3), 64)
    assert first == {A: 192, B: 64}
    assert index.match((1, 2, 3, 4), 64) is first
    index.record(B, (1, 2))
    assert index.match((1, 2, 3), 64) == {A: 192, B: 128}
    assert first == {A: 192, B: 64}


CHUNKS = st.lists(st.integers(0, 12), max_size=5, unique=True).map(tuple)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.sampled_from("abc"), CHUNKS, st.sampled_from([2, 4, 9])),
        st.tuples(st.just("drop"), st.sampled_from("abc"), CHUNKS),
        st.tuples(st.just("forget"), st.sampled_from("abc")),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(STEPS, CHUNKS)
def test_belief_is_that_of_a_list_for_each_replica(steps: list[Any], asked: tuple[int, ...]):
    """Least recently used first out, whatever is recorded, dropped and forgotten in whatever order."""
    index, naive = PrefixIndex(), dict[str, list[int]]()
    for name, replica, *values in steps:
        held = naive.setdefault(replica, [])
        if name == "record":
            chunks, limit = values
            index.record(ReplicaId(replica), chunks, limit)
            held[:] = ([chunk for chunk in held if chunk not in chunks] + list(reversed(chunks)))[-limit:]
        elif name == "drop":
            index.drop(ReplicaId(replica), values[0])
            held[:] = [chunk for chunk in held if chunk not in values[0]]
        else:
            index.forget(ReplicaId(replica))
            held.clear()
    depths = {name: len(list(takewhile(held.__contains__, asked))) for name, held in naive.items()}
    assert index.match(asked) == {name: depth for name, depth in depths.items() if depth}
    assert index._entries == sum(map(len, naive.values()))
    assert len(index) >= len({chunk for held in naive.values() for chunk in held})  # the forgotten's age out
