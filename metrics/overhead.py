"""What the gateway itself takes of a request's time, in three stages; neither the queue's time nor an engine's is in it.

`ingress`: from the body's last byte until the request stands in the queue: reading, checking and measuring it, and the wait for the
event loop's next turn. `route`: for one that is placed at once, submitting it and the pass that placed it; for one that had to wait,
from the beginning of the pass that found room; both until its handler goes on. `relay`: one read of a stream, from the engine's bytes
being here until they are handed to the client's socket; one read in eight is timed. Of answers that are not streamed nothing is
counted under `relay`, and what the kernel's sockets take is in none of them.

Timed by `clock`, not by the event loop: uvloop's clock has whole milliseconds.
"""

from collections.abc import Callable
from itertools import cycle
from time import perf_counter
from typing import Final

from metrics.catalog import Metrics

EVERY: Final = 8  # reads of a stream, of which one is timed; a power of two


class Overhead:
    """The stages' histograms. `clock`: seconds, fine enough for tens of microseconds."""

    __slots__ = ("_phases", "clock", "ingress", "relay", "route")

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        stage = metrics.overhead_seconds.labels
        self.ingress, self.route, self.relay = stage("ingress"), stage("route"), stage("relay")
        self._phases = cycle(range(EVERY))

    def phase(self) -> int:
        """Where a new stream begins to count: so that first reads, which cost more, are timed no more often than others."""
        return next(self._phases)
