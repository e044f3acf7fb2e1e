"""Which blocks a chunk needs: by its share of the tokens, corrected where prompts disagree."""

from hypothesis import given
from hypothesis import strategies as st

from batching.kv_chunks import ROOT, ChunkMap, chain, link


def learned(*prompts: tuple[list[int], list[int]], chunk_tokens: float = 4, block_size: int = 2) -> ChunkMap:
    """Chunks and blocks of each prompt, learned in turn; two blocks a chunk."""
    chunk_map = ChunkMap()
    for chunks, blocks in prompts:
        chunk_map.learn(chunks, blocks, chunk_tokens=chunk_tokens, block_size=block_size)
    return chunk_map


def needs(chunk_map: ChunkMap, *chunks: int) -> list[tuple[int, ...] | None]:
    return [chunk_map.blocks_of(chunk) for chunk in chunks]


def test_a_chain_is_of_full_blocks_and_covers_what_came_before() -> None:
    """The last, partial block has no hash; equal hashes mean equal tokens from the start, and equal seeds."""
    whole = chain(b"", [1, 2, 3, 4, 5], 2)
    assert len(whole) == 2
    assert whole[:1] == chain(b"", [1, 2], 2)
    assert whole[1] != chain(b"", [9, 9, 3, 4], 2)[1]
    assert not set(whole) & set(chain(b"law", [1, 2, 3, 4], 2))
    assert chain(b"", [1], 2) == []


def test_a_seed_is_not_taken_for_tokens() -> None:
    """Seed and tokens are told apart, whatever bytes they have."""
    assert link(ROOT, b"ab", b"c") != link(ROOT, b"a", b"bc")


def test_each_chunk_needs_the_blocks_of_its_own() -> None:
    """Those that end within it, from the end of the chunk before."""
    assert needs(learned(([1, 2], [10, 11, 12, 13, 14])), 1, 2, 3) == [(10, 11), (12, 13), None]


def test_shares_are_rounded_down() -> None:
    """Chunks of 5 tokens end within the blocks 2, 5 and 7 of 2 tokens: those blocks belong to the next chunk."""
    found = learned(([1, 2, 3], list(range(10, 17))), chunk_tokens=5)
    assert needs(found, 1, 2, 3) == [(10, 11), (12, 13, 14), (15, 16)]


def test_blocks_larger_than_chunks() -> None:
    """Chunks that end in one block all need it."""
    found = learned(([1, 2, 3, 4], [10, 11]), chunk_tokens=4, block_size=8)
    assert needs(found, 1, 2, 3, 4) == [(10,), (10,), (10,), (11,)]


def test_a_prompt_shorter_than_a_block_teaches_nothing() -> None:
    """The engine cannot cache it."""
    assert len(learned(([1], []))) == 0


def test_prompts_that_agree_change_nothing() -> None:
    """Another prompt of the same beginning adds its own chunks."""
    found = learned(([1, 2], [10, 11, 12, 13]), ([1, 3], [10, 11, 22, 23]))
    assert needs(found, 1, 2, 3) == [(10, 11), (12, 13), (22, 23)]


def test_an_estimate_that_went_too_far_is_corrected() -> None:
    """What two prompts of one chunk do not share cannot belong to it; a chunk left without blocks ends with its predecessor."""
    found = learned(([1, 2, 3], [10, 11, 12, 13, 14, 15]), ([1, 2, 3, 4], [10, 11, 12, 93, 94, 95, 96, 97]))
    assert needs(found, 1, 2, 3, 4) == [(10, 11), (12,), (12,), (93, 94, 95, 96, 97)]


def test_other_tokens_from_the_start_replace_what_was_known() -> None:
    """A template or tokenizer that changed: the newest prompt is right."""
    found = learned(([1, 2], [10, 11, 12, 13]), ([1, 2], [20, 21, 22, 23]))
    assert needs(found, 1, 2) == [(20, 21), (22, 23)]
    assert list(found.chunks_with(10)) == []


def test_the_oldest_are_forgotten_and_of_a_prompt_the_deepest() -> None:
    """At most so many chunks, and no block points at a forgotten one."""
    found = ChunkMap(max_chunks=3)
    found.learn([1, 2], [10, 11], chunk_tokens=2, block_size=2)
    found.learn([1, 3, 4], [10, 31, 41], chunk_tokens=2, block_size=2)
    assert needs(found, 1, 2, 3, 4) == [(10,), None, (31,), (41,)]
    assert list(found.chunks_with(11)) == []


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=8), st.floats(0.5, 9.0), st.integers(0, 12)),
        max_size=12,
    )
)
def test_both_ways_agree(prompts: list[tuple[list[int], float, int]]) -> None:
    """After any prompts, a chunk stands at exactly the blocks that it needs, has at least one, and the bound is kept."""
    chunk_map = ChunkMap(max_chunks=10)
    for choices, chunk_tokens, count in prompts:
        chunks = [hash(tuple(choices[: n + 1])) for n in range(len(choices))]
        chunk_map.learn(
            chunks, [hash((n, *choices[: n // 2])) for n in range(count)], chunk_tokens=chunk_tokens, block_size=2
        )
    wanted = {(chunk, block) for block, chunks in chunk_map._wanted.items() for chunk in chunks}
    assert wanted == {(chunk, block) for chunk, need in chunk_map._needs.items() for block in need.blocks}
    assert all(need.blocks for need in chunk_map._needs.values())
    assert len(chunk_map) <= 10
