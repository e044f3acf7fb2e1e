"""The log of digests: who asks hears what others said since, or all that is left."""

from batching.prefix_log import EACH_BYTES, PrefixLog, Told

NOW_MS = 1_764_000_000_000


def test_each_hears_what_others_said_since():
    """Once, in order, and never its own words."""
    log = PrefixLog()
    first = log.exchange(NOW_MS, "one", b"1", 0)
    assert first == Told(NOW_MS, False, [])
    second = log.exchange(NOW_MS, "two", b"2", 0)
    assert second == Told(NOW_MS + 1, False, [b"1"])
    assert log.exchange(NOW_MS + 50, "one", b"", first.after).digests == [b"2"]
    assert log.exchange(NOW_MS + 50, "two", b"", second.after).digests == []


def test_who_comes_later_hears_what_is_left():
    """The log never grows beyond its bytes, however long it goes on; the newest are left."""
    log = PrefixLog(keep_bytes=5 * (100 + EACH_BYTES))
    for number in range(50):
        log.exchange(NOW_MS + number, "one", bytes([number]) * 100, 0)
    assert len(log) == 5
    told = log.exchange(NOW_MS + 60, "late", b"", 0)
    assert [digest[0] for digest in told.digests] == [45, 46, 47, 48, 49]


def test_much_is_heard_in_pages():
    """An answer ends once it is full; what follows is asked for with its number."""
    log, heard, after, pages = PrefixLog(most_bytes=250), [], 0, 0
    for number in range(10):
        log.exchange(NOW_MS, "one", bytes([number]) * 100, 0)
    while True:
        told = log.exchange(NOW_MS, "two", b"", after)
        heard += [digest[0] for digest in told.digests]
        after, pages = told.after, pages + 1
        if not told.more:
            break
    assert heard == list(range(10))
    assert pages == 4


def test_a_log_that_was_lost_is_heard_from_its_beginning():
    """Numbers are times, so that those of a new log are greater; where a clock was set back, a number from beyond it means nothing."""
    log = PrefixLog()
    log.exchange(NOW_MS, "one", b"1", 0)
    assert log.exchange(NOW_MS, "two", b"", NOW_MS + 5000).digests == [b"1"]
    assert PrefixLog().exchange(NOW_MS, "two", b"", NOW_MS) == Told(0, False, [])
