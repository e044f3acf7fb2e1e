"""What one process tells of prefix caches, and what others believe by it."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.prefix_index import PrefixIndex
from batching.prefix_journal import PrefixJournal, packed, unpacked, words_of
from batching.replica import Lifecycle
from batching.request import ReplicaId
from batching.scheduler import Scheduler
from config.schema import Queue, Scheduling
from tests.support.scheduling import profile

A, B = ReplicaId("a"), ReplicaId("b")
ALL = 1000  # chunks: more than any test has


def process(**options: Any) -> PrefixIndex:
    index = PrefixIndex(**options)
    index.journal = PrefixJournal()
    return index


def digest(index: PrefixIndex, max_chunks: int = ALL) -> bytes:
    assert index.journal is not None
    return index.journal.digest(max_chunks)


def fold(index: PrefixIndex, body: bytes) -> None:
    for word in words_of(body):
        index.drop(word.replica, unpacked(word.lost), heard=True)
        index.fold(word.replica, unpacked(word.held), word.limit)


def held(body: bytes) -> dict[ReplicaId, tuple[int, ...]]:
    return {word.replica: unpacked(word.held) for word in words_of(body)} if body else {}


def test_what_one_has_placed_the_other_believes():
    """A digest makes another process match as the one that placed; nothing is told twice, and nothing is told on."""
    one, two = process(), process()
    one.record(A, (1, 2, 3), 100)
    one.record(B, (1, 9), 100)
    fold(two, digest(one))
    assert two.match((1, 2, 3)) == one.match((1, 2, 3)) == {A: 3, B: 1}
    assert digest(one) == digest(two) == b""


def test_a_conversation_costs_its_new_chunks_only():
    """Of a turn whose beginning is known there, eight bytes go out for each further chunk."""
    one = process()
    one.record(A, tuple(range(400)), 5000)
    digest(one)
    one.record(A, tuple(range(404)), 5000)
    told = digest(one)
    assert held(told) == {A: (403, 402, 401, 400)}  # deepest first, as they are to be believed in
    assert len(told) < 4 * 8 + 16


def test_what_is_in_use_is_told_again_before_others_believe_it_old():
    """A beginning that is used all the time is told again when a sixteenth of the cache is new, not at each use."""
    one, two, times = process(), process(), 0
    for turn in range(200):
        one.record(A, (1, 2, 1000 + turn), 160)
        told = digest(one)
        fold(two, told)
        assert held(told)[A] in {(1000 + turn,), (1000 + turn, 2, 1)}
        times += 1 in held(told)[A]
        assert two.match((1, 2)) == {A: 2}
    assert len(two) == 160
    assert times == 17  # with the first, and each time that more than ten are new


def test_what_both_have_told_is_told_by_neither():
    """What was heard counts as told, so that a beginning which all use is told by one of them."""
    one, two = process(), process()
    one.record(A, (1, 2), 1600)
    fold(two, digest(one))
    two.record(A, (1, 2, 3), 1600)
    assert held(digest(two)) == {A: (3,)}


def test_evictions_are_told():
    """What an engine has said to one process it has said to all; of what a process never knew it tells nothing."""
    one, two = process(), process()
    one.record(A, (1, 2, 3), 100)
    fold(two, digest(one))
    one.drop(A, (2, 77))
    told = digest(one)
    assert [(word.replica, unpacked(word.lost), word.held) for word in words_of(told)] == [(A, (2,), b"")]
    fold(two, told)
    assert two.match((1, 2, 3)) == {A: 1}
    assert digest(two) == b""


def test_the_last_word_counts():
    """Held, lost and held again in one digest is held."""
    one, two = process(), process()
    one.record(A, (1, 2), 100)
    one.drop(A, (1, 2))
    one.record(A, (1,), 100)
    fold(two, digest(one))
    assert two.match((1, 2)) == {A: 1}


def test_digests_are_bounded_and_every_replica_has_a_part():
    """Twenty chunks at a time: the oldest of each replica, until all are told."""
    one = process()
    one.record(A, tuple(range(100, 130)), 1000)
    one.record(B, tuple(range(200, 215)), 1000)
    told = [held(digest(one, 20)) for _ in range(4)]
    assert [{replica: len(chunks) for replica, chunks in each.items()} for each in told] == [
        {A: 10, B: 10},
        {A: 10, B: 5},
        {A: 10},
        {},
    ]
    assert told[0][A] == tuple(range(129, 119, -1))


def test_what_cannot_be_told_in_time_is_never_told():
    """Without anybody to tell it to the journal stays small, and has the youngest."""
    journal = PrefixJournal(max_untold=10)
    journal.held(B, [1], None)
    journal.held(A, range(100), None)
    assert len(journal) == 10
    assert held(journal.digest(ALL)) == {B: (1,), A: tuple(range(91, 100))}


def test_a_digest_is_read_or_refused():
    """What is no digest raises one kind of error, whatever it is; hashes of 64 bits keep theirs."""
    assert unpacked(packed([0, 2**64 - 1])) == (0, 2**64 - 1)
    short = msgspec.msgpack.encode([("a", None, False, b"1234567", b"")])
    for body in (b"", b"\xc1", b"no digest", msgspec.msgpack.encode([("a", "much")]), short):
        with pytest.raises(msgspec.MsgspecError):
            words_of(body)


def scheduler() -> Scheduler:
    built = Scheduler(Scheduling(), Queue())
    built.add_replica(profile("a"), Lifecycle.READY, 0.0)
    return built


def test_of_what_has_no_cache_nothing_is_believed():
    """Others may not know yet that a replica is down, or know one that is not here."""
    one, two = process(), scheduler()
    one.record(A, (1, 2), 100)
    one.record(B, (1, 2), 100)
    words = words_of(digest(one))
    two.set_lifecycle(A, Lifecycle.DOWN, 1.0)
    for word in words:
        two.prefixes.fold(word, old=False)
    assert two.prefixes.matched((1, 2)) == {}


def test_that_another_forgot_counts_only_from_before_ones_own_time():
    """Who cannot reach a replica takes nobody else's belief; who comes later does not believe what was before its restart."""
    one, two, late = scheduler(), scheduler(), scheduler()
    journal = one.prefixes.journal()
    one.prefixes.correct(A, held=(1, 2))
    said = [journal.digest(ALL)]
    one.prefixes.forget(A)
    one.prefixes.correct(A, held=(7,))
    said.append(journal.digest(ALL))
    for body in said:
        for word in words_of(body):
            two.prefixes.fold(word, old=False)
            late.prefixes.fold(word, old=True)
    assert (two.prefixes.matched((1, 2)), two.prefixes.matched((7,))) == ({A: 2}, {A: 1})
    assert (late.prefixes.matched((1, 2)), late.prefixes.matched((7,))) == ({}, {A: 1})


STEP = st.tuples(
    st.integers(0, 2),  # who
    st.sampled_from((A, B)),
    st.sampled_from(("record", "record", "record", "drop", "tell")),
    st.integers(0, 3),  # of which conversation
    st.integers(1, 12),  # how deep
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_all_come_to_believe_the_same(steps: list[tuple[int, ReplicaId, str, int, int]]):
    """Whatever three processes place and hear of evictions, and however rarely they tell: what is placed by any is in the end believed by all.

    An eviction that is told after another has placed anew is the one that may be believed too much or too little, so each chunk's
    evictions are of one process here.
    """
    processes = [process() for _ in range(3)]

    def tell(who: int) -> None:
        body = digest(processes[who], 7)
        for other in range(3):
            if other != who and body:
                fold(processes[other], body)

    for who, replica, what, conversation, depth in steps:
        chunks = tuple(100 * conversation + i for i in range(depth))
        if what == "record":
            processes[who].record(replica, chunks, 1000)
        elif what == "drop" and conversation == who:
            for other in range(3):  # they are told before, so that nobody places between
                while len(processes[other].journal or ()):
                    tell(other)
            processes[who].drop(replica, chunks)
        elif what == "tell":
            tell(who)
    for _ in range(40):
        for who in range(3):
            tell(who)
    for conversation in range(4):
        prompt = tuple(100 * conversation + i for i in range(12))
        assert processes[0].match(prompt) == processes[1].match(prompt) == processes[2].match(prompt)
