"""What one gateway is told next, from what stands and what it was told; and which of several notices that is."""

from dataclasses import replace

import pytest

from backends.spot_agent.admin_client import ReplicaView
from backends.spot_agent.dealings import Dealings, Step, give_up_unix_s, is_operators_own, nothing_to_restore
from backends.spot_agent.notice import Kind, Notice, Provider, gravest

NOW = 1000.0
RECLAIM = Notice(Provider.AWS, Kind.RECLAIM, "r", NOW, NOW + 120, "")
MAINTENANCE = Notice(Provider.AZURE, Kind.MAINTENANCE, "m", NOW, NOW + 900, "")
HINT = Notice(Provider.AWS, Kind.REBALANCE, "h", NOW, None, "")


def view(*, released: bool = False, lifecycle: str = "reclaiming") -> ReplicaView:
    return ReplicaView("a", lifecycle, "", 0 if released else 3, None, None, released)


def told(notice: Notice, *, released: bool = False) -> Dealings:
    dealings = Dealings()
    dealings.telling(notice)
    dealings.answered(view(released=released))
    return dealings


def test_nothing_stands_nothing_is_told():
    """A quiet machine asks its gateways nothing."""
    assert Dealings().next(None, NOW) is Step.REST


def test_a_notice_is_told_then_watched_until_released():
    """The whole life of a reclaim."""
    dealings = Dealings()
    assert dealings.next(RECLAIM, NOW) is Step.TELL
    dealings.telling(RECLAIM)
    dealings.answered(view())
    assert dealings.next(RECLAIM, NOW) is Step.LOOK
    dealings.answered(view(released=True))
    assert dealings.released
    assert dealings.next(RECLAIM, NOW) is Step.REST


def test_a_lost_answer_is_told_again():
    """Whether it was taken is not known, so it is told once more, and taken back if it no longer stands."""
    dealings = Dealings()
    dealings.telling(RECLAIM)
    assert dealings.next(RECLAIM, NOW) is Step.TELL
    assert dealings.next(None, NOW) is Step.RESTORE


def test_a_gateway_that_fell_silent_is_told_again():
    """It may have been restarted and know nothing."""
    dealings = told(RECLAIM)
    dealings.failed()
    assert dealings.next(RECLAIM, NOW) is Step.TELL


def test_an_earlier_deadline_is_told_and_a_later_one_is_not():
    """Of the same event: the gateway keeps the sooner anyway."""
    dealings = told(RECLAIM, released=True)
    assert dealings.next(replace(RECLAIM, deadline_unix_s=NOW + 200), NOW) is Step.REST
    assert dealings.next(replace(RECLAIM, deadline_unix_s=NOW + 20), NOW) is Step.TELL


def test_another_event_with_a_later_deadline_replaces_the_first():
    """The first was withdrawn, or the gateway would keep its deadline."""
    dealings = told(RECLAIM)
    other = replace(RECLAIM, id="r2", deadline_unix_s=NOW + 500)
    assert dealings.next(other, NOW) is Step.RESTORE
    dealings.restored()
    assert dealings.next(other, NOW) is Step.TELL


def test_a_graver_notice_is_told_and_a_milder_one_begins_anew():
    """A hint becomes a reclaim; and where only the hint is left the reclaim is taken back first."""
    assert told(HINT).next(RECLAIM, NOW) is Step.TELL
    assert told(MAINTENANCE).next(RECLAIM, NOW) is Step.TELL
    assert told(RECLAIM).next(HINT, NOW) is Step.RESTORE


def test_a_withdrawn_notice_is_restored_once():
    """And then there is nothing to do."""
    dealings = told(RECLAIM)
    assert dealings.next(None, NOW) is Step.RESTORE
    dealings.restored()
    assert dealings.next(None, NOW) is Step.REST


def test_a_hint_is_never_released():
    """It empties nothing, whatever the gateway says; it is looked at only to find a restart."""
    dealings = told(HINT, released=True)
    assert not dealings.released
    assert dealings.next(HINT, NOW) is Step.LOOK


def test_after_the_deadline_nobody_is_asked():
    """The cloud does what it said; a notice that nobody took is tried for half a minute at least."""
    assert told(RECLAIM).next(RECLAIM, NOW + 121) is Step.REST
    due_now = replace(RECLAIM, deadline_unix_s=NOW)
    assert Dealings().next(due_now, NOW + 29) is Step.TELL
    assert Dealings().next(due_now, NOW + 31) is Step.REST
    assert give_up_unix_s(HINT) == float("inf")


@pytest.mark.parametrize(("status", "done"), [(409, True), (404, True), (401, False), (503, False), (None, False)])
def test_a_refused_restore_may_be_one_done(status: int | None, done: bool):
    """Nothing to end is what was wanted; a key that is refused is not."""
    assert nothing_to_restore(status) is done


def test_a_withdrawn_hint_leaves_an_operators_drain():
    """A hint drains nothing, so whoever drains is somebody else."""
    assert is_operators_own(HINT, view(lifecycle="draining"))
    assert not is_operators_own(HINT, view(lifecycle="ready"))
    assert not is_operators_own(MAINTENANCE, view(lifecycle="draining"))


def test_the_gravest_notice_counts_by_the_soonest_deadline():
    """A reboot in a minute and a reclaim in two: it is a reclaim, and the machine must be empty in a minute."""
    soon = replace(MAINTENANCE, deadline_unix_s=NOW + 60)
    assert gravest([HINT, soon, RECLAIM]) == replace(RECLAIM, deadline_unix_s=NOW + 60)
    assert gravest([MAINTENANCE, HINT]) == MAINTENANCE
    assert gravest([HINT]) == HINT
    assert gravest([]) is None
