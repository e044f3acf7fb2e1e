"""Who is believed to hold which chunk: bounded for each replica or for all together."""

from batching.policies.held_chunks import HeldChunks
from tests.unit.batching.policies.candidates import A, B, C


def test_counts_what_each_holds_of_what_anybody_holds():
    """1 and 2 are held by a and b, 3 by a; 4 is nobody's, so 5 is not looked at."""
    held = HeldChunks()
    held.record(A, (1, 2, 3, 5), max_chunks=10)
    held.record(B, (1, 2), max_chunks=10)
    assert held.counts((1, 2, 3, 4, 5)) == {A: 3, B: 2}
    assert held.counts((9, 1)) == held.counts(()) == {}


def test_a_gap_is_bridged_by_others():
    """As in the originals: b lost 1, which a holds, and is counted for 2."""
    held = HeldChunks()
    held.record(A, (1,), max_chunks=10)
    held.record(B, (1, 2), max_chunks=1)
    assert held.counts((1, 2)) == {A: 1, B: 1}


def test_deepest_names_the_holders_of_the_last():
    """1 is both's, 2 is b's."""
    held = HeldChunks()
    held.record(A, (1,), max_chunks=10)
    held.record(B, (1, 2), max_chunks=10)
    assert held.deepest((1, 2, 3)) == (2, [B])
    assert held.deepest((1, 9)) == (1, [A, B])
    assert held.deepest((9,)) == (0, [])


def test_each_replica_is_bounded_by_itself():
    """The least recently used goes: of 1, 2, 3 with 1 used again, that is 2."""
    held = HeldChunks()
    held.record(B, (1, 2), max_chunks=2)
    held.record(A, (1, 2, 3, 1), max_chunks=2)
    assert held.counts((1,)) == {A: 1, B: 1}
    assert held.counts((2,)) == {B: 1}
    assert held.counts((3,)) == {A: 1}
    assert len(held) == 4


def test_shared_all_are_bounded_as_one():
    """Two entries of b push out the oldest two of a."""
    held = HeldChunks(shared=True)
    held.record(A, (1, 2, 3), max_chunks=3)
    held.record(B, (8, 9), max_chunks=3)
    assert held.counts((3,)) == {A: 1}
    assert held.counts((1,)) == held.counts((2,)) == {}
    assert len(held) == 3


def test_forgotten_replicas_hold_nothing_and_leave_nothing():
    """Shared or not, a life leaves no trace and its place is used again."""
    for held in (HeldChunks(), HeldChunks(shared=True)):
        held.record(A, (1, 2), max_chunks=10)
        held.record(B, (1,), max_chunks=10)
        for life in range(300):
            held.record(C, (1, life), max_chunks=10)
            held.forget(C)
            held.forget(C)
        assert held.counts((1, 2)) == {A: 2, B: 1}
        assert len(held) == 3
        assert max(held._holders.values()) == 0b11
