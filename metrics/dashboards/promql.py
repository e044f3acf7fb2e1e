"""PromQL over the catalog: a metric, label or recorded name that does not exist raises, a legend can be checked against its query.

Each expression carries the labels that its result has. The dashboards' variables are put into every selector whose metric has the label.
Decides nothing about panels.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from typing import Final, get_args, get_type_hints

from metrics.catalog import Metrics, Spec
from metrics.count import Counter, Gauge
from metrics.histogram import Histogram
from metrics.pages import GAUGES, Across
from metrics.rules.recorded import recorded_labels

# The dashboards' variables that are labels of ours, in the order in which they are shown.
VARIABLES: Final = ("model", "service_tier", "cost_tier", "replica")
TARGET: Final = ("job", "instance")  # what Prometheus adds to every series
RATE: Final = "$__rate_interval"
STEP: Final = "$__interval"
RANGE: Final = "$__range"
_JOINED: Final = {
    Across.SUM: "sum",
    Across.WHOLE: "sum",
    Across.MOST: "max",
    Across.LEAST: "min",
    Across.MEAN: "avg",
}
_OPERATORS: Final = ("=~", "!~", "!=")

Where = Mapping[str, str]


class UnknownName(ValueError):
    """No such metric, label or recorded series."""


@dataclass(frozen=True, slots=True)
class Family:
    """What the catalog says of one metric."""

    metric: str
    kind: type
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expr:
    """A query and the labels of its result."""

    text: str
    labels: tuple[str, ...] = ()

    def __truediv__(self, other: "Expr | float") -> "Expr":
        return self._with("/", other)

    def __mul__(self, other: "Expr | float") -> "Expr":
        return self._with("*", other)

    def __add__(self, other: "Expr | float") -> "Expr":
        return self._with("+", other)

    def __sub__(self, other: "Expr | float") -> "Expr":
        return self._with("-", other)

    def __gt__(self, other: "Expr | float") -> "Expr":
        return self._with(">", other)

    def or_(self, other: "Expr") -> "Expr":
        """The other where there is nothing."""
        if set(self.labels) != set(other.labels):
            raise UnknownName(f"labels {self.labels} beside {other.labels}: {self.text} or {other.text}")
        return Expr(f"({self.text} or {other.text})", self.labels)

    def _with(self, operator: str, other: "Expr | float") -> "Expr":
        if not isinstance(other, Expr):
            return Expr(f"({self.text} {operator} {other:g})", self.labels)
        if set(self.labels) == set(other.labels):
            return Expr(f"({self.text} {operator} {other.text})", self.labels)
        if set(other.labels) < set(self.labels):
            shared = ", ".join(other.labels)
            return Expr(f"({self.text} {operator} on ({shared}) group_left () {other.text})", self.labels)
        raise UnknownName(f"labels {self.labels} {operator} {other.labels}: {self.text} {operator} {other.text}")


def family(name: str) -> Family:
    """By its name without `penstock_`. Raises UnknownName."""
    found = _families().get(name)
    if found is None:
        near = get_close_matches(name, _families(), 1)
        raise UnknownName(f"no metric {name!r} in metrics/catalog.py" + (f"; {near[0]!r}?" if near else ""))
    return found


def rate(name: str, *by: str, **where: str) -> Expr:
    """Of a counter, per second."""
    return _summed(f"rate({selector(name, Counter, where)}[{RATE}])", name, by)


def events(name: str, *by: str, over: str = STEP, **where: str) -> Expr:
    """Of a counter that counts seldom: `increase` sees nothing of a series that is born with its first event.

    Over a step, so that bars beside each other count each event once.
    """
    return _summed(_born(selector(name, Counter, where), over), name, by)


def quantile(which: float, name: str, *by: str, **where: str) -> Expr:
    """Of a histogram."""
    inner = _summed(f"rate({selector(name, Histogram, where, '_bucket')}[{RATE}])", name, by, "le")
    return Expr(f"histogram_quantile({which:g}, {inner.text})", by)


def quantile_of_events(which: float, name: str, *by: str, over: str = STEP, **where: str) -> Expr:
    """Of a histogram that is observed seldom; as `events`."""
    inner = _summed(_born(selector(name, Histogram, where, "_bucket"), over), name, by, "le")
    return Expr(f"histogram_quantile({which:g}, {inner.text})", by)


def buckets(name: str, **where: str) -> Expr:
    """A histogram over time, for a heat-map."""
    return _summed(f"increase({selector(name, Histogram, where, '_bucket')}[{RATE}])", name, (), "le")


def observed(name: str, *by: str, **where: str) -> Expr:
    """How often a histogram was observed, per second."""
    return _summed(f"rate({selector(name, Histogram, where, '_count')}[{RATE}])", name, by)


def mean(name: str, *by: str, **where: str) -> Expr:
    """Of a histogram's observations."""
    total = _summed(f"rate({selector(name, Histogram, where, '_sum')}[{RATE}])", name, by)
    return total / (observed(name, *by, **where) > 0)


def gauge(name: str, *by: str, fold: str = "sum", **where: str) -> Expr:
    """Several gateways joined by the gauge's own rule (metrics.pages), then folded by `fold` onto the labels wanted."""
    found = family(name)
    wanted = _checked(found, by)
    series = selector(name, Gauge, where)
    joined = _JOINED[GAUGES[name]]
    kept = (*found.labels, *(label for label in wanted if label in TARGET))
    if set(kept) == set(wanted) or joined == fold:
        return Expr(f"{_by(joined, wanted)}({series})", wanted)
    return Expr(f"{_by(fold, wanted)}({_by(joined, kept)}({series}))", wanted)


def recorded(name: str, *by: str, fold: str = "max") -> Expr:
    """A series of metrics/rules; those that have a model or service tier are filtered by the variables."""
    try:
        labels = recorded_labels(name)
    except ValueError as error:
        raise UnknownName(str(error)) from None
    if missing := set(by) - set(labels):
        raise UnknownName(f"{name} has the labels {labels}, not {sorted(missing)}")
    matchers = ['job=~"$job"'] if "job" in labels else []
    matchers += [f'{label}=~"${label}"' for label in VARIABLES if label in labels]
    return Expr(f"{_by(fold, by)}({name}{{{','.join(matchers)}}})", by)


def ratio(part: Expr, whole: Expr) -> Expr:
    """0 where nothing of the part has happened yet, nothing where nothing has happened at all."""
    return part.or_(whole * 0) / (whole > 0)


def top(count: int, expr: Expr) -> Expr:
    return Expr(f"topk({count}, {expr.text})", expr.labels)


def folded(how: str, expr: Expr, *by: str) -> Expr:
    """`how`: sum, max, min, avg, count."""
    if missing := set(by) - set(expr.labels):
        raise UnknownName(f"{expr.text} has the labels {expr.labels}, not {sorted(missing)}")
    return Expr(f"{_by(how, by)}({expr.text})", by)


def selector(name: str, kind: type, where: Where, suffix: str = "") -> str:
    """With the dashboards' variables. `where`: label to value; a value may begin with an operator, `=~`, `!~` or `!=`."""
    found = family(name)
    if found.kind is not kind:
        raise UnknownName(f"{found.metric} is a {found.kind.__name__}, not a {kind.__name__}")
    _checked(found, tuple(where))
    matchers = ['job=~"$job"']
    matchers += [f'{label}=~"${label}"' for label in VARIABLES if label in found.labels and label not in where]
    for label, said in where.items():
        operator = said[:2] if said.startswith(_OPERATORS) else "="
        value = said[2:] if said.startswith(_OPERATORS) else said
        matchers.append(f'{label}{operator}"{value}"')
    return f"{found.metric}{suffix}{{{','.join(matchers)}}}"


def labels_of_legend(legend: str) -> set[str]:
    """`{{model}} p95` speaks of `model`."""
    return set(re.findall(r"\{\{\s*(\w+)\s*\}\}", legend))


def _summed(inner: str, name: str, by: tuple[str, ...], *more: str) -> Expr:
    wanted = _checked(family(name), by)
    return Expr(f"{_by('sum', (*more, *wanted))}({inner})", wanted)


def _born(series: str, over: str) -> str:
    return f"(({series} unless {series} offset {over}) or increase({series}[{over}]))"


def _by(how: str, labels: tuple[str, ...]) -> str:
    return f"{how} by ({', '.join(labels)}) " if labels else how


def _checked(found: Family, labels: tuple[str, ...]) -> tuple[str, ...]:
    unknown = set(labels) - {*found.labels, *TARGET}
    if unknown:
        raise UnknownName(f"{found.metric} has the labels {found.labels}, not {sorted(unknown)}")
    return labels


@cache
def _families() -> Mapping[str, Family]:
    hints = get_type_hints(Metrics, include_extras=True)
    found: dict[str, Family] = {}
    for declared in fields(Metrics):
        kind, spec = get_args(hints[declared.name])
        assert isinstance(spec, Spec)
        found[declared.name] = Family(spec.prefix + declared.name, kind, spec.labels)
    return found
