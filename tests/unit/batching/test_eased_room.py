"""Room that somebody was refused, and that is there once time has passed: whoever sees it first tells the others."""

from batching.request import ReplicaId
from tests.support.scheduling import placed, profile, request, scheduler


def test_a_placement_that_sees_the_room_tells_those_who_wait() -> None:
    """Writing the offer anew forgets what was wanted; the fleet's epoch is then all that leads those who wait back to it."""
    built = scheduler(profile())
    built.submit(request("first"), 0.0)
    assert placed(built.advance(0.0)) == ["first"]
    fleet = built._fleet
    offer = fleet[ReplicaId("a")].offer
    offer.want(0.0)  # somebody would fit as soon as the streams are due no sooner than this, and by now they are
    before = fleet.epoch
    built.submit(request("second", arrived_s=1.0), 1.0)
    assert placed(built.advance(1.0)) == ["second"]
    assert fleet.epoch > before
    assert offer.epoch == fleet.epoch
