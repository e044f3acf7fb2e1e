"""Events lead from document to document: applied one after the other they give what a look at the whole would."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.board.changes import SHOWN_PLACEMENTS, applied, changes, latest_placements
from router.board.document import Live, Pulse
from tests.support.board_documents import card, line, live, lives


@given(st.lists(lives(), min_size=1, max_size=6))
def test_events_reconstruct_the_whole_document(looks: list[Live]):
    """Whatever happened between two looks, through JSON as it travels."""
    known: Live | None = None
    before: Live | None = None
    for look in looks:
        event = look if before is None else changes(before, look)
        travelled = msgspec.json.decode(msgspec.json.encode(event), type=Live)
        known, before = applied(known, travelled), look
        assert known == look


def test_an_event_has_only_what_is_new():
    """Cards that changed, replicas that are gone, the new second, the placement that ended - and not the others."""
    first, second = Pulse(unix_s=1.0), Pulse(unix_s=2.0)
    before = live(
        card("a"), card("b"), card("c"), pulses=(first,), placements=(line("r2", 2.0), line("r1", 1.0)),
    )  # fmt: skip
    after = live(
        card("a"), card("c", running=1), card("d"), pulses=(first, second),
        placements=(line("r3", 3.0), line("r2", 2.0), line("r1", 1.0, outcome="completed")),
    )  # fmt: skip
    event = changes(before, after)
    assert not event.whole
    assert event.replicas == (card("c", running=1), card("d"))
    assert event.gone == ("b",)
    assert event.pulses == (second,)
    assert event.placements == (line("r3", 3.0), line("r1", 1.0, outcome="completed"))
    assert applied(before, event) == after


def test_what_is_no_small_step_is_told_whole():
    """A replica in between, a second that was corrected, placements that are gone with their worker."""
    before = live(card("a"), card("b"), pulses=(Pulse(unix_s=1.0),), placements=(line("r1"),))
    for after in (
        live(card("a"), card("x"), card("b"), pulses=before.pulses, placements=before.placements),
        live(*before.replicas, pulses=(Pulse(unix_s=1.0, requests=1),), placements=before.placements),
        live(*before.replicas, pulses=before.pulses, placements=()),
    ):
        event = changes(before, after)
        assert event is after
        assert applied(before, event) == after


def test_a_stream_begins_with_the_whole():
    """What comes without it is refused: half a fleet must not look like one."""
    event = changes(live(card("a")), live(card("a"), card("b")))
    with pytest.raises(ValueError, match="first event"):
        applied(None, event)


def test_placements_are_bounded_and_the_newest_come_first():
    """Of two words about one placement the later one holds."""
    lines = tuple(line(str(number), float(number)) for number in range(30))
    found = latest_placements((*lines, line("29", 29.0, outcome="failed")))
    assert len(found) == SHOWN_PLACEMENTS
    assert [one.request_id for one in found[:2]] == ["29", "28"]
    assert found[0].outcome == "failed"
