"""The work that every target gets, one scenario after another. What a figure of each means is in benchmarks/README.md."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`events` None: plain requests in a closed loop; else streams of so many events, `gap_ms` apart (0: as fast as they come)."""

    name: str
    connections: int
    seconds: float  # in which answers begin; they are read to their end
    events: int | None = None
    gap_ms: float = 0.0
    ramp_s: float = 0.0  # over which the streams start: as long as one lasts, so that they end evenly, too
    workers: int = 1  # of the gateway, all on its one core
    direct: bool = True  # whether the engine alone is worth measuring

    def scaled(self, factor: float) -> Self:
        """Smaller, for a quick look: fewer connections, events and seconds."""
        if factor == 1:
            return self
        return replace(
            self,
            connections=max(1, round(self.connections * factor)),
            seconds=max(0.1, self.seconds * factor),
            events=None if self.events is None else max(4, round(self.events * factor)),
            ramp_s=self.ramp_s * factor,
        )

    @property
    def offered_per_s(self) -> float | None:
        """Events that N running streams have in a second; None where nothing paces them."""
        return None if self.events is None or not self.gap_ms else self.connections * 1000 / self.gap_ms


SCENARIOS: Final = (
    Scenario(name="c1", connections=1, seconds=2),
    Scenario(name="c64", connections=64, seconds=3),
    Scenario(name="s64_fast", connections=64, seconds=2.5, events=500, ramp_s=0.5),
    Scenario(name="s64_1ms", connections=64, seconds=2.5, events=1000, gap_ms=1, ramp_s=0.5),
    Scenario(name="s500", connections=500, seconds=4, events=150, gap_ms=20, ramp_s=3),
    Scenario(name="s2000", connections=2000, seconds=5, events=80, gap_ms=50, ramp_s=4),
    # 5,000 events a second, which every gateway can bear: under more, what waits in buffers would be counted as a stream's memory.
    Scenario(name="memory", connections=1000, seconds=3, events=20, gap_ms=200, ramp_s=3, direct=False),
    Scenario(name="c64_2w", connections=64, seconds=3, workers=2, direct=False),
    Scenario(name="s500_2w", connections=500, seconds=4, events=150, gap_ms=20, ramp_s=3, workers=2, direct=False),
)


def selected(names: Sequence[str], factor: float) -> Iterator[Scenario]:
    """Those of these names in their own order; all for no names. ValueError names what there is."""
    known = [scenario.name for scenario in SCENARIOS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no scenario {', '.join(unknown)}; there are {', '.join(known)}")
    for scenario in SCENARIOS:
        if not names or scenario.name in names:
            yield scenario.scaled(factor)
