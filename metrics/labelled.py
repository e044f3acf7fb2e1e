"""An instrument as its series by their labels: what counters, gauges and histograms of our own have in common.

One event loop writes and the same loop collects, so nothing is locked. Decides nothing about what a series is.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

S = TypeVar("S")


class Labelled(Collector, Generic[S]):
    """Without labels its one series is there from the beginning; with, each from when it is first asked for."""

    def __init__(self, name: str, documentation: str, labelnames: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labelnames)
        self._series: dict[tuple[str, ...], S] = {}
        if not labelnames:
            self.labels()
        registry.register(self)

    @abstractmethod
    def _new(self) -> S:
        """A series on which nothing was counted."""

    def labels(self, *values: str) -> S:
        series = self._series.get(values)
        if series is None:
            if len(values) != len(self._labelnames):
                raise ValueError(f"{self._name} has the labels {self._labelnames}, not {len(values)} of them")
            series = self._series[values] = self._new()
        return series

    def series(self) -> Iterable[tuple[tuple[str, ...], S]]:
        """By their labels."""
        return self._series.items()

    def remove(self, *values: str) -> None:
        """One series, if it is there."""
        self._series.pop(values, None)

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Every series that has these; whoever holds one of them counts into nothing."""
        wanted = [(self._labelnames.index(name), value) for name, value in labels.items()]
        for values in [values for values in self._series if all(values[place] == value for place, value in wanted)]:
            del self._series[values]

    def clear(self) -> None:
        """Of an instrument with labels: all its series."""
        self._series.clear()
