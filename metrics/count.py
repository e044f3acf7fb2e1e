"""Counters and gauges whose `inc` costs a tenth of the library's: no lock, no look at what was never wrong.

A request touches ten of them (docs/decisions/0008 has why histograms are our own, too). What a scraper reads is made by the library.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from metrics.labelled import Labelled


class Count:
    """One combination of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        self.value -= amount

    def set(self, value: float) -> None:
        self.value = float(value)


class _Counts(Labelled[Count]):
    _kind: ClassVar[type[CounterMetricFamily | GaugeMetricFamily]]

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        super().__init__(name, documentation, labelnames, registry)

    def _new(self) -> Count:
        return Count()

    def inc(self, amount: float = 1.0) -> None:
        """Where there are no labels."""
        self.labels().inc(amount)

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for values, series in self._series.items():
            family.add_metric(values, series.value)
        return [family]

    def _family(self) -> CounterMetricFamily | GaugeMetricFamily:
        return self._kind(self._name, self._documentation, labels=self._labelnames)


class Counter(_Counts):
    """Only ever grows."""

    _kind = CounterMetricFamily


class Gauge(_Counts):
    """Tells of now."""

    _kind = GaugeMetricFamily

    def dec(self, amount: float = 1.0) -> None:
        """Where there are no labels."""
        self.labels().dec(amount)

    def set(self, value: float) -> None:
        """Where there are no labels."""
        self.labels().set(value)
