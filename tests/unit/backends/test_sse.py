"""The splitter's rules: same events however the bytes were cut, whatever the line ends."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.upstream.sse import EventTooLarge, SseSplitter, event_data


def split(*pieces: bytes, max_event_bytes: int = 4 * 2**20) -> list[bytes]:
    splitter = SseSplitter(max_event_bytes=max_event_bytes)
    return [event for piece in pieces for event in splitter.feed(piece)]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({min(place, len(stream)) for place in places} | {0, len(stream)})
    return [stream[a:b] for a, b in pairwise(edges)]


def test_one_event_a_feed_is_passed_on_without_a_copy():
    """The common case hands back the very bytes that came."""
    event = b'data: {"x":1}\n\n'
    assert SseSplitter().feed(event)[0] is event


def test_a_burst_is_split():
    """Events that arrive together come out one by one."""
    assert split(b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n") == [b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_all_line_ends(end: bytes):
    """LF, CR LF and CR end lines; events come out with LF."""
    stream = b"event: e" + end + b"data: 1" + end + end + b"data: 2" + end + end
    assert split(stream) == [b"event: e\ndata: 1\n\n", b"data: 2\n\n"]


def test_mixed_line_ends():
    """A blank line may be closed by another line end than the line before it."""
    assert split(b"data: 1\r\n\ndata: 2\n\r\ndata: 3\r\r\ndata: 4\n\rdata: 5\n\n") == [
        b"data: %d\n\n" % i for i in range(1, 6)
    ]


def test_a_cut_between_cr_and_lf_makes_no_blank_line():
    """The LF of a CR LF that was cut is no second line end."""
    assert split(b"data: 1\r", b"\ndata: 2\r\n\r", b"\n", b"data: 3\r\n\r\n") == [
        b"data: 1\ndata: 2\n\n",
        b"data: 3\n\n",
    ]


def test_an_event_is_not_held_back_for_a_possible_lf():
    """A CR that ends an event gives it out at once."""
    assert SseSplitter().feed(b"data: 1\r\r") == [b"data: 1\n\n"]


def test_surplus_blank_lines_make_no_events():
    """Blank lines in front of, between and after events mean nothing."""
    splitter = SseSplitter()
    assert splitter.feed(b"\n\n\ndata: 1\n\n\n\n\ndata: 2\n\n\n") == [b"data: 1\n\n", b"data: 2\n\n"]
    assert splitter.rest == b""


def test_the_rest_is_what_no_blank_line_has_closed():
    """A stream that ends in mid-event leaves it visible."""
    splitter = SseSplitter()
    assert splitter.feed(b"data: 1\n\ndata: {") == [b"data: 1\n\n"]
    assert splitter.rest == b"data: {"


def test_comments_come_out_as_events_without_data():
    """A keep-alive comment passes through and carries nothing."""
    (event,) = split(b": keep-alive\n\n")
    assert (event, event_data(event)) == (b": keep-alive\n\n", None)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"event: error\nid: 7\ndata: x\n\n", b"x"),
        (b": c\ndata: x\n\n", b"x"),
        (b"data\n\n", b""),
        (b"data:\n\n", b""),
        (b"database: x\n\n", None),
        (b"event: ping\n\n", None),
    ],
)
def test_data_of_an_event(event: bytes, data: bytes | None):
    """Data lines are joined by LF, one leading space is cut, other fields and comments are not data."""
    assert event_data(event) == data


def test_an_event_up_to_the_cap_passes_and_one_byte_more_does_not():
    """The bound is exact, whether the event comes whole or in pieces."""
    event = b"data: " + b"x" * 92 + b"\n\n"
    assert split(event, max_event_bytes=100) == [event]
    for pieces in ([b"x" + event], [b"x" + event[:50], event[50:]]):
        with pytest.raises(EventTooLarge):
            split(*pieces, max_event_bytes=100)


def test_an_endless_line_is_refused_before_it_ends():
    """What is held without a blank line is bounded."""
    with pytest.raises(EventTooLarge):
        split(*[b"x" * 100] * 11, max_event_bytes=1000)


def test_the_default_cap_takes_4_mib():
    """An event of almost 4 MiB passes, dribbled or whole."""
    event = b"data: " + b"x" * (4 * 2**20 - 8) + b"\n\n"
    assert split(event) == [event]
    assert split(*(event[i : i + 65536] for i in range(0, len(event), 65536))) == [event]


STREAM = st.lists(
    st.sampled_from([b"data: a", b"data:b", b": c", b"event: e", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\xff"]),
    max_size=40,
).map(b"".join)


@given(STREAM, st.lists(st.integers(0, 200), max_size=30))
def test_any_cut_gives_the_same_events(stream: bytes, places: list[int]):
    """Rechunking a stream changes neither its events nor its rest."""
    whole, pieces = SseSplitter(), SseSplitter()
    expected = whole.feed(stream)
    got = [event for piece in cut(stream, places) for event in pieces.feed(piece)]
    assert (got, pieces.rest) == (expected, whole.rest)


def lines_of(stream: bytes) -> list[bytes]:
    return stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


@given(STREAM)
def test_events_and_rest_are_the_stream(stream: bytes):
    """No line is lost, invented or moved: blank lines aside, what comes out is what went in."""
    splitter = SseSplitter()
    out = b"".join(splitter.feed(stream)) + splitter.rest
    assert [line for line in lines_of(out) if line] == [line for line in lines_of(stream) if line]


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_random_bytes_raise_only_the_splitters_own_error(pieces: list[bytes]):
    """Garbage yields well-formed events or EventTooLarge, and event_data takes every event."""
    splitter = SseSplitter(max_event_bytes=64)
    try:
        for piece in pieces:
            for event in splitter.feed(piece):
                assert event.endswith(b"\n\n")
                assert b"\n\n" not in event[:-2]
                assert b"\r" not in event
                event_data(event)
    except EventTooLarge:
        assert sum(map(len, pieces)) > 62
