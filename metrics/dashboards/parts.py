"""What panels are made of - units, colours, queries - and the JSON that all kinds share, as Grafana 12 wants it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Any, Final, Protocol

from metrics.dashboards.promql import Expr, UnknownName, labels_of_legend

Json = dict[str, Any]
DATASOURCE: Final[Mapping[str, str]] = {"type": "prometheus", "uid": "${datasource}"}
FULL_WIDTH: Final = 24  # columns of Grafana's grid


class Unit(StrEnum):
    """Grafana's names."""

    NUMBER = "short"
    COUNT = "none"
    SECONDS = "s"
    RATIO = "percentunit"
    BYTES = "bytes"
    USD = "currencyUSD"
    REQUESTS_PER_SECOND = "reqps"
    PER_SECOND = "cps"
    TOKENS_PER_SECOND = "suffix: tok/s"
    TOKENS = "suffix: tok"
    TIMES = "suffix:x"


class Color(StrEnum):
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    ORANGE = "orange"
    RED = "red"
    GREY = "#808080"


@dataclass(frozen=True, slots=True)
class Step:
    """From this value on it is this colour."""

    value: float
    color: Color


@dataclass(frozen=True, slots=True)
class Query:
    """`legend`: with `{{label}}`; a label that the result does not have raises."""

    expr: Expr
    legend: str = ""

    def __post_init__(self) -> None:
        if unknown := labels_of_legend(self.legend) - set(self.expr.labels):
            raise UnknownName(f"the legend {self.legend!r} speaks of {sorted(unknown)}, which {self.expr.text} has not")


class Panel(Protocol):
    """Anything that has a place in a row."""

    @property
    def title(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    def document(self) -> Json:
        """Without id and place."""


SHOWN: Final[Mapping[str, bool]] = {"tooltip": False, "viz": False, "legend": False}
MODEL_LINK: Final[Mapping[str, Any]] = {
    "title": "One model: ${__field.labels.model}",
    "url": "/d/penstock-model?var-datasource=${datasource}&var-model=${__field.labels.model}&${__url_time_range}",
}


def panel(kind: str, shown: Panel, asked: list[Json], defaults: Json, options: Json) -> Json:
    return {
        "type": kind,
        "title": shown.title,
        "description": shown.description,
        "datasource": dict(DATASOURCE),
        "targets": asked,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def targets(queries: Sequence[Query], *, instant: bool = False, shape: str = "time_series") -> list[Json]:
    return [
        {
            "refId": ref(number),
            "datasource": dict(DATASOURCE),
            "expr": query.expr.text,
            "legendFormat": "{{le}}" if shape == "heatmap" else query.legend or "__auto",
            "format": shape,
            "instant": instant,
            "range": not instant,
            "editorMode": "code",
        }
        for number, query in enumerate(queries)
    ]


def defaults_of(unit: Unit, steps: Sequence[Step], decimals: int | None) -> Json:
    found: Json = {"unit": str(unit), "thresholds": thresholds(steps)}
    if decimals is not None:
        found["decimals"] = decimals
    return found


def thresholds(steps: Sequence[Step]) -> Json:
    """The first colour is from minus infinity on: green, unless the first step says otherwise by -inf."""
    colors: list[Json] = [{"color": str(Color.GREEN), "value": None}]
    for step in steps:
        if step.value == -inf:
            colors = []
        colors.append({"color": str(step.color), "value": None if step.value == -inf else step.value})
    return {"mode": "absolute", "steps": colors}


def ref(number: int) -> str:
    """A, B, ...; no panel asks more."""
    return chr(ord("A") + number)
