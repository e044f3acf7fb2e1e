"""A histogram whose `observe` costs a seventh of the library's: no lock, one list of counts a series.

Every token of every stream is observed, so it counts (docs/decisions/0008 has the figures and the commands). One event loop writes and the same loop collects, so nothing has to be locked. The page is written without the library's samples: it is made while
streams wait.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import inf

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from metrics.labelled import Labelled


class Series:
    """One combination of labels."""

    __slots__ = ("_above", "_at", "_bounds", "_counts", "_held", "_up_to", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * len(bounds)
        self.total = 0.0
        self._at = 0  # the bucket of the last one; the next is mostly in it, too
        self._held = 0  # so many in that bucket are not in its count yet
        self._above, self._up_to = -inf, bounds[0]

    def observe(self, value: float, times: int = 1) -> None:
        if not self._above < value <= self._up_to:
            self._find(value)
        self._held += times
        self.total += value * times

    @property
    def counts(self) -> list[int]:
        """A bucket each, not cumulated."""
        self._counts[self._at] += self._held
        self._held = 0
        return self._counts

    @counts.setter
    def counts(self, counts: list[int]) -> None:
        self._counts, self._held = counts, 0

    def _find(self, value: float) -> None:
        self._counts[self._at] += self._held
        self._held = 0
        self._at = at = bisect_left(self._bounds, value)
        self._above, self._up_to = self._bounds[at - 1] if at else -inf, self._bounds[at]


class Histogram(Labelled[Series]):
    """As prometheus_client's; `buckets` are upper bounds in rising order, +Inf is added."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        registry: CollectorRegistry,
        buckets: Sequence[float],
    ) -> None:
        self._bounds = (*buckets, inf)
        super().__init__(name, documentation, labelnames, registry)

    def _new(self) -> Series:
        return Series(self._bounds)

    def observe(self, value: float) -> None:
        """Where there are no labels."""
        self.labels().observe(value)

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)]

    def collect(self) -> Iterable["Family"]:
        return [Family(self._name, self._documentation, self._labelnames, self._bounds, self._series)]


class Family(Metric):
    """What a histogram has counted. `lines` is its text; `samples`, the library's way of telling it, are made when somebody asks."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: tuple[str, ...],
        bounds: Sequence[float],
        series: Mapping[tuple[str, ...], Series],
    ) -> None:
        self._labelnames = labelnames
        self._bounds = [_bound(bound) for bound in bounds]
        self._series = series
        super().__init__(name, documentation, "histogram")

    @property
    def samples(self) -> list[Sample]:
        family = HistogramMetricFamily(self.name, self.documentation, labels=self._labelnames)
        for values, series in self._series.items():
            cumulated = accumulate(series.counts)
            buckets = [(bound, float(count)) for bound, count in zip(self._bounds, cumulated, strict=True)]
            family.add_metric(values, buckets, series.total)
        return family.samples

    @samples.setter
    def samples(self, _: list[Sample]) -> None:
        """The library begins with none."""

    def lines(self) -> Iterable[str]:
        """As the library writes them, a twentieth of its time: a series' labels are spelled out once."""
        name = self.name
        for values, series in self._series.items():
            labels = [
                (label, f'{label}="{_escaped(value)}"') for label, value in zip(self._labelnames, values, strict=True)
            ]
            before = "".join(f"{told}," for label, told in sorted(labels) if label < "le")
            after = "".join(f",{told}" for label, told in sorted(labels) if label > "le")
            head, tail = f'{name}_bucket{{{before}le="', f'"{after}}} '
            count = 0
            for bound, more in zip(self._bounds, series.counts, strict=True):
                count += more
                yield f"{head}{bound}{tail}{count}.0\n"
            told = ",".join(told for _, told in sorted(labels))
            told = f"{{{told}}}" if told else ""
            yield f"{name}_count{told} {count}.0\n{name}_sum{told} {_bound(series.total)}\n"


def _bound(value: float) -> str:
    """The library's own spelling."""
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
