"""A heap that drops the dead when it meets them."""

from batching.lazy_heap import LazyHeap


def test_the_least_live_entry_is_on_top():
    """Dead entries are passed over, whenever they died."""
    alive = {3, 1, 2}
    heap: LazyHeap[int, int] = LazyHeap(alive.__contains__)
    for value in (3, 1, 2):
        heap.push(value, value)
    alive.discard(1)
    assert heap.peek() == (2, 2)
    assert heap.pop() == 2
    alive.discard(3)
    assert heap.peek() is None


def test_memory_is_bounded_by_what_lives():
    """A million that came and went leave no trace behind a live head."""
    alive = {0}
    heap: LazyHeap[int, int] = LazyHeap(alive.__contains__)
    for value in range(20_000):
        alive.add(value)
        heap.push(value, value)
        if value:
            alive.discard(value)
    assert len(heap) <= 65
