"""What an engine's events make believed of it."""

from batching.kv_belief import NOTHING, Change, KvBelief
from batching.request import ReplicaId

A, B = ReplicaId("a"), ReplicaId("b")
TOKENS = [1, 2, 3, 4, 5, 6, 7, 8]
CHUNKS = (100, 101)  # of 4 tokens, two blocks of 2
HASHES = (11, 12, 13, 14)


def told(replica: ReplicaId = A, *, complete: bool = True, belief: KvBelief | None = None) -> KvBelief:
    belief = belief or KvBelief()
    belief.begin(replica, complete=complete)
    return belief


def store(belief: KvBelief, first: int = 0, last: int = 4, replica: ReplicaId = A) -> Change:
    parent = HASHES[first - 1] if first else None
    blocks = HASHES[first:last]
    return belief.stored(replica, blocks, parent, TOKENS[2 * first : 2 * last], 2, seeds=[b""] * len(blocks))


def learn(belief: KvBelief, replica: ReplicaId = A) -> dict[ReplicaId, Change]:
    return belief.learn(replica, CHUNKS, TOKENS, chunk_tokens=4)


def test_blocks_that_are_stored_make_chunks_held() -> None:
    """Each chunk with the last of its blocks, by whatever traffic."""
    belief = told()
    store(belief, 0, 1)
    assert learn(belief) == {}
    assert store(belief, 1, 3) == Change(held=(100,))
    assert store(belief, 3, 4) == Change(held=(101,))
    assert belief.blocks(A) == 4


def test_what_is_learned_late_counts_at_once_and_everywhere() -> None:
    """A prompt seen at one replica tells of all that have its blocks."""
    belief = told(B, belief=told())
    store(belief)
    store(belief, 0, 2, replica=B)
    assert belief.lacks(A, CHUNKS)
    assert learn(belief) == {A: Change(held=CHUNKS), B: Change(held=(100,))}
    assert not belief.lacks(B, CHUNKS)


def test_an_eviction_ends_the_belief_in_its_chunk() -> None:
    """Of the one whose block it was; those behind it are not reached any more."""
    belief = told()
    store(belief)
    learn(belief)
    assert belief.removed(A, [12]) == Change(lost=(100,))
    assert belief.removed(A, [12, 99]) == NOTHING
    assert store(belief, 1, 2) == Change(held=(100,))


def test_a_copy_extended_after_its_eviction_is_followed() -> None:
    """A running request may hold a second copy of an evicted block: its children still have a known beginning."""
    belief = told()
    store(belief, 0, 2)
    learn(belief)
    belief.removed(A, [12])
    assert store(belief, 2, 4) == Change(held=(101,))


def test_settling_follows_the_events() -> None:
    """A request that is over: what the engine has stored is held, what it has not is lost."""
    belief = told()
    store(belief)
    learn(belief)
    belief.removed(A, [14])
    assert belief.settle(A, CHUNKS) == Change(held=(100,), lost=(101,))
    assert belief.settle(A, (555,)) == NOTHING
    assert belief.settle(B, CHUNKS) == NOTHING


def test_an_engine_heard_from_the_middle_loses_nothing_unsaid() -> None:
    """It may hold blocks from before: only what was told to be evicted ends a belief."""
    belief = told(complete=False)
    store(belief)
    learn(belief)
    assert belief.removed(A, [14]) == Change(lost=(101,))
    assert belief.settle(A, CHUNKS) == Change(held=(100,))


def test_a_clear_makes_it_known_whole() -> None:
    """An empty cache is known, wherever one began to listen."""
    belief = told(complete=False)
    store(belief)
    learn(belief)
    belief.cleared(A)
    assert belief.blocks(A) == 0
    assert belief.settle(A, CHUNKS) == Change(lost=CHUNKS)
    assert store(belief) == Change(held=CHUNKS)


def test_forgetting_begins_anew() -> None:
    """After it the next batch says whether all is known; the tokens of prompts stay learned."""
    belief = told()
    store(belief)
    learn(belief)
    belief.forget(A)
    assert belief.blocks(A) == 0
    told(complete=False, belief=belief)
    assert store(belief) == Change(held=CHUNKS)


def test_a_chain_without_its_beginning_is_not_guessed_at() -> None:
    """Blocks after an unknown one count for nothing, and the cache is not known whole any more."""
    belief = told()
    store(belief, 0, 1)
    learn(belief)
    assert belief.stored(A, [77], 76, [5, 6], 2, seeds=[b""]) == NOTHING
    assert belief.settle(A, CHUNKS) == NOTHING


def test_other_groups_and_partial_blocks_are_left_out() -> None:
    """The first attention group counts; a hybrid model's others, and blocks of another size, do not."""
    belief = told()
    belief.stored(A, HASHES, None, TOKENS, 2, seeds=[b""] * 4, group=1)
    learn(belief)
    assert belief.stored(A, HASHES, None, TOKENS, 2, seeds=[b""] * 4, group=2) == NOTHING
    assert belief.removed(A, [11], group=2) == NOTHING
    assert belief.stored(A, [50], None, [1], 1, seeds=[b""], group=1) == NOTHING
    assert belief.blocks(A) == 4
    assert belief.removed(A, [11], group=1) == Change(lost=(100,))


def test_what_else_tells_blocks_apart_counts() -> None:
    """An adapter's blocks are not the base model's."""
    belief = told()
    belief.stored(A, HASHES, None, TOKENS, 2, seeds=[b"law"] * 4)
    assert learn(belief) == {}
    assert belief.learn(A, (200, 201), TOKENS, chunk_tokens=4, seed=b"law") == {A: Change(held=(200, 201))}


def test_block_sizes_are_apart() -> None:
    """A replica with larger blocks needs its own map of the same prompt."""
    belief = told(B, belief=told())
    store(belief)
    learn(belief)
    belief.stored(B, [21, 22], None, TOKENS, 4, seeds=[b""] * 2)
    assert belief.lacks(B, CHUNKS)
    assert learn(belief, B) == {B: Change(held=CHUNKS)}


def test_an_engine_that_only_stores_is_bounded() -> None:
    """The oldest blocks are dropped, and what they carried is not believed."""
    belief = told(belief=KvBelief(max_blocks=4))
    store(belief)
    learn(belief)
    change = belief.stored(A, [31, 32], None, [9, 9, 9, 8], 2, seeds=[b""] * 2)
    assert (change.lost, belief.blocks(A)) == ((100,), 4)
    assert belief.settle(A, CHUNKS) == Change(held=(101,))


def test_nothing_told_is_nothing_known() -> None:
    """Before its first block a replica is not worth a question."""
    belief = told()
    assert not belief.lacks(A, CHUNKS)
    assert learn(belief) == {}
    assert belief.settle(A, CHUNKS) == NOTHING
