"""Where learned state lies: the latest of each name, for a day, and never more than so many."""

from batching.shelf import KEEP_MS, MOST_KEPT, MOST_READ, Shelf


def test_the_latest_first() -> None:
    """Each name's last, with its age."""
    shelf = Shelf()
    shelf.put(0, "a", b"old")
    shelf.put(5, "b", b"b")
    shelf.put(9, "a", b"new")
    assert shelf.read(10) == [("a", 1, b"new"), ("b", 5, b"b")]


def test_a_day_old_is_gone() -> None:
    """Also where nobody has put anything down since."""
    shelf = Shelf()
    shelf.put(0, "a", b"")
    assert len(shelf.read(KEEP_MS)) == 1
    assert shelf.read(KEEP_MS + 1) == []


def test_it_is_bounded() -> None:
    """Of pods that each had a name of their own the latest are kept, and of those the latest read."""
    shelf = Shelf()
    for n in range(1000):
        shelf.put(n, f"pod-{n}", b"")
    assert [kept.name for kept in shelf.read(1000)] == [f"pod-{999 - n}" for n in range(MOST_READ)]
    assert len(shelf._kept) == MOST_KEPT
