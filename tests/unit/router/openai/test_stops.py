"""Stop strings that no single engine sees."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from router.openai.stops import StopGuard, stop_strings

TEXTS = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


def cut_at_stop(text: str, stops: list[str], *, kept: bool) -> str:
    """What a single engine would have shown, one character at a time."""
    for end in range(1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                ends = [(text[:end].rfind(s), s) for s in stops if text[:end].endswith(s)]
                at, found = min(ends)
                return text[: at + len(found)] if kept else text[:at]
    return text


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(places)]


@given(TEXTS, STOPS, st.booleans())
def test_one_character_at_a_time_it_is_what_one_engine_says(text: str, stops: list[str], kept: bool):
    """One character at a time it is what one engine says."""
    guard = StopGuard(stops, kept=kept)
    shown = "".join(map(guard.feed, text))
    shown += "" if guard.stopped else guard.rest()
    assert shown == cut_at_stop(text, stops, kept=kept)


@given(TEXTS, STOPS, st.lists(st.integers(0, 30)))
def test_nothing_behind_a_stop_is_shown_however_it_is_cut(text: str, stops: list[str], cuts: list[int]):
    """The earliest beginning counts; what is shown never has a stop in it, and is a beginning of the text."""
    guard = StopGuard(stops)
    shown = "".join(map(guard.feed, pieces_of(text, cuts)))
    shown += "" if guard.stopped else guard.rest()
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert (guard.stopped is None) == (not any(stop in text for stop in stops))
    if guard.stopped is None:
        assert shown == text


@given(TEXTS, TEXTS, STOPS)
def test_what_the_client_has_counts(said: str, text: str, stops: list[str]):
    """After a seam: a stop that begins in what was shown ends the answer, and nothing more of it is shown."""
    if any(stop in said for stop in stops):
        return
    guard = StopGuard(stops, said=said)
    shown = guard.feed(text)
    shown += "" if guard.stopped else guard.rest()
    assert (guard.stopped is not None) == any(stop in said + text for stop in stops)
    assert text.startswith(shown)
    assert not any(stop in said + shown for stop in stops)


def test_of_a_request():
    """Of a request."""
    assert stop_strings("a") == ("a",)
    assert stop_strings(["a", "", None, "b"]) == ("a", "b")
    assert stop_strings(None) == ()
