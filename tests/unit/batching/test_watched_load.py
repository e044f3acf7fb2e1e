"""On how many replicas batch may prefill while others are watched."""

import pytest

from batching.request import Outcome, ServiceTier
from batching.watched_load import WatchedLoad
from tests.support.scheduling import leases, placed, profile, request, scheduler


def test_the_load_is_that_of_the_last_second():
    """Placed evenly, it is the seconds of prefill per second; without more it fades."""
    load = WatchedLoad()
    for number in range(500):
        load.add(0.03, number / 100)
    assert load.replicas(4.99) == pytest.approx(3.0, rel=0.05)
    assert load.replicas(7.0) == pytest.approx(3.0 * 2.718281828**-(2.01), rel=0.05)
    assert load.replicas(60.0) < 1e-9


def test_batch_has_all_replicas_while_nobody_is_watched_and_one_at_least():
    """The more the watched need, the fewer it has."""
    load = WatchedLoad()
    assert load.batch_replicas(8, 0.0) == 8
    load.add(1.0, 0.0)  # one replica's worth
    assert load.batch_replicas(8, 0.0) == 5
    load.add(20.0, 0.0)
    assert load.batch_replicas(8, 0.0) == load.batch_replicas(1, 0.0) == 1


def test_batch_that_made_way_is_placed_when_the_load_has_gone():
    """By a timer: nothing else may happen that says so."""
    built = scheduler(*(profile(f"a{number}") for number in range(4)))
    for number in range(40):
        now = number / 40
        built.submit(request(f"r{number}", prompt_tokens=8000, arrived_s=now), now)
        for lease in leases(built.advance(now)):
            built.on_first_token(lease.id, now)
            built.finish(lease.id, now, outcome=Outcome.COMPLETED)
    for number in range(4):
        built.submit(request(f"b{number}", prompt_tokens=2000, service_tier=ServiceTier.BATCH), 1.0)
    assert len(placed(built.advance(1.0))) == 1
    late = []
    while built.queued and (now := built.next_deadline()) is not None and now < 20.0:
        late += placed(built.advance(now))
    assert late == ["b1", "b2", "b3"]
