"""Paged KV memory: sharing, eviction order, all-or-nothing allocation."""

from backends.simulated.kv_cache import BlockTable, KvCache


def prefix(*hashes: int | None):
    return lambda index: hashes[index]


def fill(kv: KvCache, *hashes: int) -> BlockTable:
    """A table that computed the blocks of these hashes."""
    table = BlockTable()
    assert kv.allocate(table, len(hashes))
    kv.commit(table, len(hashes), prefix(*hashes))
    return table


def test_allocation_is_all_or_nothing():
    """Blocks that are not there change nothing."""
    kv, table = KvCache(4), BlockTable()
    assert not kv.allocate(table, 5)
    assert (table.blocks, kv.used_blocks) == (0, 0)
    assert kv.allocate(table, 4)
    assert kv.available_blocks == 0


def test_released_blocks_stay_cached_and_count_as_free():
    """After release the cache answers, and usage is zero."""
    kv = KvCache(4)
    kv.release(fill(kv, 11, 12))
    assert (kv.used_blocks, kv.available_blocks, kv.cached_blocks) == (0, 4, 2)
    assert kv.match(prefix(11, 12, 13), 3) == [11, 12]


def test_a_hit_ends_at_the_first_miss():
    """Only a leading run of blocks is a prefix; unknown hashes are misses."""
    kv = KvCache(8)
    kv.release(fill(kv, 11, 12, 13))
    assert kv.match(prefix(11, 99, 13), 3) == [11]
    assert kv.match(prefix(None, 12, 13), 3) == []
    assert kv.match(prefix(11, 12, 13), 2) == [11, 12]


def test_a_shared_block_is_held_once():
    """Two holders of one prefix use its blocks once, and the last one gives them back."""
    kv = KvCache(8)
    first = fill(kv, 11, 12)
    second = BlockTable()
    kv.claim(second, kv.match(prefix(11, 12), 2))
    assert kv.used_blocks == 2
    kv.release(first)
    assert kv.used_blocks == 2
    kv.release(second)
    assert kv.used_blocks == 0


def test_a_block_computed_twice_stays_private():
    """Copies are not merged: each of two prompts computed at once holds its own."""
    kv = KvCache(8)
    first, second = fill(kv, 11), fill(kv, 11)
    assert kv.used_blocks == 2
    kv.release(second)
    kv.release(first)
    assert (kv.used_blocks, kv.cached_blocks) == (0, 1)


def test_eviction_takes_the_tail_of_the_least_recently_used():
    """Room is made from the oldest prefix's end, so that what is left of it is still a prefix."""
    kv = KvCache(4)
    kv.release(fill(kv, 11, 12))
    kv.release(fill(kv, 21, 22))
    assert kv.allocate(BlockTable(), 1)
    assert kv.match(prefix(11, 12), 2) == [11]
    assert kv.match(prefix(21, 22), 2) == [21, 22]


def test_held_blocks_are_never_evicted():
    """Eviction stops at what is in use."""
    kv = KvCache(3)
    fill(kv, 11, 12)
    assert not kv.allocate(BlockTable(), 2)
    assert kv.match(prefix(11, 12), 2) == [11, 12]


def test_forget_drops_what_nobody_holds():
    """A reset prefix cache keeps blocks in use."""
    kv = KvCache(4)
    fill(kv, 11)
    kv.release(fill(kv, 21))
    kv.forget()
    assert (kv.cached_blocks, kv.used_blocks) == (1, 1)
