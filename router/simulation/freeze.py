"""Engine metrics that stop being news for a while: what a probe brings back then.

Two failures of real life. `silent`: the scrape fails, so no report comes and the last one ages. `repeated`: the exporter hangs,
so the last figures come again and again and look fresh. Requests and tokens pass as ever.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from batching.replica import EngineLoad
from batching.request import ReplicaId


class FreezeMode(StrEnum):
    SILENT = "silent"
    REPEATED = "repeated"


@dataclass(frozen=True, slots=True)
class Freeze:
    """From `start_s` of the run's own time (a rate scale does not stretch it) for `seconds`, on every replica."""

    start_s: float
    seconds: float
    mode: FreezeMode = FreezeMode.SILENT

    def __str__(self) -> str:
        """As `parse` reads it."""
        mode = "" if self.mode is FreezeMode.SILENT else f":{self.mode}"
        return f"{self.start_s:g}:{self.seconds:g}{mode}"

    @property
    def end_s(self) -> float:
        return self.start_s + self.seconds

    def covers(self, now: float) -> bool:
        return self.start_s <= now < self.end_s


def parse(text: str) -> Freeze:
    """START:SECONDS or START:SECONDS:MODE; raises ValueError with what is wrong."""
    start, _, rest = text.partition(":")
    seconds, _, mode = rest.partition(":")
    try:
        start_s, lasts_s = float(start), float(seconds)
    except ValueError:
        raise ValueError(f"{text!r} is not START:SECONDS, as 120:60") from None
    if not (0 <= start_s < math.inf and 0 < lasts_s < math.inf):
        raise ValueError(f"{text!r} must start at 0 or later and last for more than 0 seconds")
    if mode not in {"", *FreezeMode}:
        raise ValueError(f"{mode!r} is no way to freeze; there are {', '.join(FreezeMode)}")
    return Freeze(start_s, lasts_s, FreezeMode(mode or FreezeMode.SILENT))


class Reports:
    """What reaches the gateway of what the engines would say."""

    def __init__(self, freeze: Freeze | None) -> None:
        self._freeze = freeze
        self._last: dict[ReplicaId, EngineLoad] = {}

    def received(self, replica: ReplicaId, load: EngineLoad) -> EngineLoad | None:
        """The report of a probe that finds `load`; None: none came."""
        freeze = self._freeze
        if freeze is None:
            return load
        if not freeze.covers(load.observed_s):
            self._last[replica] = load
            return load
        last = self._last.get(replica)
        if last is None or freeze.mode is FreezeMode.SILENT:
            return None
        return replace(last, observed_s=load.observed_s)
