"""Where a look leaves a replica: as one table."""

import pytest

from backends.backend import ProbeResult
from batching.replica import TRANSITIONS, Lifecycle
from router.profiles import lifecycle_after

READY, BAD, ASLEEP = ProbeResult(ready=True), ProbeResult(ready=False), ProbeResult(ready=False, asleep=True)
L = Lifecycle


@pytest.mark.parametrize(
    ("current", "found", "failures", "after"),
    [
        (L.STARTING, READY, 0, L.READY),  # a gateway starts at once
        (L.READY, READY, 0, L.READY),
        (L.READY, BAD, 1, L.READY),
        (L.READY, BAD, 3, L.DOWN),
        (L.READY, None, 3, L.DOWN),
        (L.DOWN, READY, 0, L.WARMING),  # what was down gives a token first
        (L.WARMING, READY, 0, L.WARMING),  # ... and that ends it, no look does
        (L.WARMING, None, 3, L.DOWN),
        (L.SUSPECT, READY, 0, L.SUSPECT),  # looks are what it is not believed in
        (L.SUSPECT, None, 3, L.DOWN),
        (L.SUSPECT, ASLEEP, 1, L.ASLEEP),
        (L.DRAINING, READY, 0, L.DRAINING),
        (L.RECLAIMING, READY, 0, L.RECLAIMING),
        (L.RECLAIMING, None, 3, L.DOWN),
        (L.READY, ASLEEP, 1, L.ASLEEP),
        (L.ASLEEP, READY, 0, L.WAKING),
        (L.WAKING, READY, 0, L.READY),
    ],
)
def test_after_a_look(current: Lifecycle, found: ProbeResult | None, failures: int, after: Lifecycle) -> None:
    """And every step is one that the machine of lifecycles knows."""
    assert lifecycle_after(current, found, failures, 3) is after
    assert after is current or after in TRANSITIONS[current]
