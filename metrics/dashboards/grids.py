"""Panels with a row for each series: cells by colour, named states, tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metrics.dashboards.parts import FULL_WIDTH, SHOWN, Color, Json, Query, Unit, panel, ref, targets, thresholds
from metrics.dashboards.promql import Expr, UnknownName


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A row a series, a cell a moment, by colour (Grafana's status history)."""

    title: str
    description: str
    query: Query
    unit: Unit
    width: int = 12
    height: int = 9

    def document(self) -> Json:
        defaults: Json = {
            "unit": str(self.unit), "min": 0, "max": 1,
            "color": {"mode": "continuous-GrYlRd"},
            "custom": {"fillOpacity": 90, "lineWidth": 0, "hideFrom": SHOWN},
        }  # fmt: skip
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
            "rowHeight": 0.9,
            "colWidth": 1,
            "showValue": "never",
            "tooltip": {"mode": "single", "sort": "none"},
        }
        return panel("status-history", self, targets([self.query]), defaults, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A row a series; its numbers stand for named states."""

    title: str
    description: str
    query: Query
    states: Mapping[int, tuple[str, Color]]
    width: int = 12
    height: int = 9

    def document(self) -> Json:
        named = {
            str(number): {"text": text, "color": str(color), "index": index}
            for index, (number, (text, color)) in enumerate(self.states.items())
        }
        defaults: Json = {
            "mappings": [{"type": "value", "options": named}],
            "color": {"mode": "thresholds"},
            "thresholds": thresholds(()),
            "custom": {"fillOpacity": 80, "lineWidth": 0, "spanNulls": False, "hideFrom": SHOWN},
        }
        options = {
            "alignValue": "left",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "mergeValues": True,
            "rowHeight": 0.9,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        }
        return panel("state-timeline", self, targets([self.query]), defaults, options)


@dataclass(frozen=True, slots=True)
class Column:
    """`name`: its heading."""

    name: str
    expr: Expr
    unit: Unit
    bar: bool = False  # a bar from 0 to 1
    hidden: bool = False  # only its labels are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A row for each value of `key`, joined from a query a column; `labels`: other labels of the first query that are shown."""

    title: str
    description: str
    key: str
    columns: Sequence[Column]
    labels: Mapping[str, str]  # label to heading
    width: int = FULL_WIDTH
    height: int = 9

    def document(self) -> Json:
        for column in self.columns:
            if self.key not in column.expr.labels:
                raise UnknownName(f"column {column.name!r} of {self.title!r} has no label {self.key!r}")
        asked = targets([Query(column.expr) for column in self.columns], instant=True, shape="table")
        values = {f"Value #{ref(n)}": column.name for n, column in enumerate(self.columns) if not column.hidden}
        unseen = [f"Value #{ref(n)}" for n, column in enumerate(self.columns) if column.hidden]
        unseen += ["Time", *(f"Time {n}" for n in range(1, len(self.columns) + 1))]
        shown = [self.key, *self.labels, *values]
        document = panel(
            "table", self, asked,
            {"custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False, "filterable": True},
             "noValue": "-"},
            {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, "reducer": ["sum"], "countRows": False, "fields": ""},
             "sortBy": [{"displayName": self.key.capitalize(), "desc": False}]},
        )  # fmt: skip
        document["fieldConfig"]["overrides"] = [_column(column) for column in self.columns if not column.hidden]
        document["transformations"] = [
            {"id": "joinByField", "options": {"byField": self.key, "mode": "outer"}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": dict.fromkeys(unseen, True),
                    "indexByName": {name: index for index, name in enumerate(shown)},
                    "renameByName": {self.key: self.key.capitalize(), **self.labels, **values},
                },
            },
        ]
        return document


def _column(column: Column) -> Json:
    properties: list[Json] = [{"id": "unit", "value": str(column.unit)}]
    if column.bar:
        properties += [
            {"id": "custom.cellOptions", "value": {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}},
            {"id": "min", "value": 0},
            {"id": "max", "value": 1},
            {"id": "color", "value": {"mode": "continuous-GrYlRd"}},
        ]
    return {"matcher": {"id": "byName", "options": column.name}, "properties": properties}
