"""Spot capacity over time, from traces: which spot replicas are taken away when, with what notice, and when they are back.

A trace says how many of some instances could be held at each tick, and perhaps at what price. Trace i of n governs the spot
replicas i, i+n, ... of the fleet; what it decides is their number, and always the first of them stay.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeGuard

from batching.request import ReplicaId
from config.schema import CostTier
from router.simulation.fleet import Machine
from router.simulation.run import Simulation

_MAX_INSTANCES: Final = 1_000_000  # at a tick; more is another file


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotTrace:
    """`held[i]` instances from tick i on, the last value for ever; `prices` is empty or as long. A tick takes `gap_s`."""

    gap_s: float
    held: tuple[int, ...]
    prices: tuple[float, ...] = ()

    def faster(self, scale: float) -> "SpotTrace":
        return replace(self, gap_s=self.gap_s / scale)

    def there(self, place: int, replicas: int) -> Iterator[tuple[float, float]]:
        """Spans in which replica `place` of `replicas` is there: it is while the share held, rounded down, reaches it."""
        most = max(*self.held, 1)
        start_s: float | None = None
        for tick, held in enumerate(self.held):
            up = place < replicas * held // most
            if up and start_s is None:
                start_s = tick * self.gap_s
            elif not up and start_s is not None:
                yield start_s, tick * self.gap_s
                start_s = None
        if start_s is not None:
            yield start_s, math.inf

    def price_changes(self) -> Iterator[tuple[float, float]]:
        """(when, how many times the first price)."""
        for tick, (before, now) in enumerate(pairwise(self.prices), 1):
            if now != before:
                yield tick * self.gap_s, now / self.prices[0]


def read_spot(path: Path) -> SpotTrace:
    """A JSON object with `data` (or several of them, which add up) and `gap_seconds`, also under `metadata`.

    Raises OSError, or ValueError of one line that names the file.
    """
    try:
        document = json.loads(path.read_text("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}: not UTF-8 text; is this a spot trace?") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}:{error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: not JSON: {error}") from None
    try:
        return _trace(document)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def spot_replicas(machines: Iterable[Machine], traces: Sequence[SpotTrace]) -> list[ReplicaId]:
    """Which the traces govern; raises ValueError where one would govern none."""
    spot = [machine.id for machine in machines if machine.profile.cost_tier is CostTier.SPOT]
    if len(traces) > len(spot):
        remedy = "mark replicas of the fleet with `cost: {tier: spot}`"
        raise ValueError(f"{len(traces)} spot traces, but the fleet has {len(spot)} spot replicas; {remedy}")
    return spot


def schedule(simulation: Simulation, traces: Sequence[SpotTrace], *, notice_s: float) -> None:
    """Arranges everything that the traces do to the spot replicas."""
    spot = spot_replicas(simulation.machines.values(), traces)
    for number, trace in enumerate(traces):
        governed = spot[number :: len(traces)]
        for place, replica in enumerate(governed):
            _come_and_go(simulation, replica, list(trace.there(place, len(governed))), notice_s)
            _price(simulation, replica, trace)


def _come_and_go(
    simulation: Simulation, replica: ReplicaId, there: Sequence[tuple[float, float]], notice_s: float
) -> None:
    if not there or there[0][0] > 0:
        simulation.at(0.0, simulation.take, replica)
    for start_s, end_s in there:
        if start_s > 0:
            simulation.at(start_s, simulation.give_back, replica)
        if end_s < math.inf:
            if notice_s > 0:
                simulation.at(max(start_s, end_s - notice_s), simulation.notice, (replica, end_s))
            simulation.at(end_s, simulation.take, replica)


def _price(simulation: Simulation, replica: ReplicaId, trace: SpotTrace) -> None:
    """The fleet's price is the trace's first; it moves as the trace's does, whatever GPU that was the price of."""
    usd_per_hour = simulation.machines[replica].profile.usd_per_hour

    def reprice(times: float, now: float) -> None:
        machine = simulation.machines[replica]
        machine.reprice(usd_per_hour * times, now)
        simulation.scheduler.update_profile(machine.profile, now)
        simulation.advance(None, now)

    for when_s, times in trace.price_changes():
        simulation.at(when_s, reprice, times)


def _trace(document: object) -> SpotTrace:
    if not isinstance(document, dict) or "data" not in document:
        raise ValueError("not an object with `data`, the instances held at each tick")
    metadata = document.get("metadata")
    gap_s = document.get("gap_seconds", metadata.get("gap_seconds") if isinstance(metadata, dict) else None)
    inner = document["data"]
    if isinstance(inner, dict) and "data" in inner:
        gap_s, inner = inner.get("gap_seconds", gap_s), inner["data"]
    if not _is_number(gap_s) or gap_s <= 0:
        raise ValueError("`gap_seconds` (there or under `metadata`) must be the seconds of a tick, above 0")
    held = tuple(map(int, _series("data", inner)))
    prices = tuple(_series("prices", document.get("prices") or [0.0] * len(held)))
    if len(prices) != len(held):
        raise ValueError(f"{len(prices):,} `prices` for {len(held):,} ticks of `data`; give one a tick, or none")
    return SpotTrace(gap_s=float(gap_s), held=held, prices=prices if prices[0] > 0 else ())


def _series(name: str, values: object) -> list[float]:
    """A list of numbers; several lists, by name or not, add up tick by tick."""
    if isinstance(values, dict):
        values = list(values.values())
    if not isinstance(values, list) or not values:
        raise ValueError(f"`{name}` must be a list with a number for each tick")
    if isinstance(values[0], list):
        parts = [_series(name, part) for part in values]
        if len({len(part) for part in parts}) != 1:
            raise ValueError(f"the lists in `{name}` are not equally long")
        return [sum(column) for column in zip(*parts, strict=True)]
    for tick, value in enumerate(values):
        if not _is_number(value) or not 0 <= value <= _MAX_INSTANCES:
            raise ValueError(f"`{name}`, tick {tick}: {str(value)[:40]!r} is not a number from 0 to {_MAX_INSTANCES:,}")
    return values


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
