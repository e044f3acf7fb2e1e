"""Panels over time and single figures. Decides nothing about what is shown or where.

Every panel has a description: what it shows, and what to do about it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from metrics.dashboards.parts import MODEL_LINK, SHOWN, Json, Query, Step, Unit, defaults_of, panel, targets

_BAR: Final = "1m"  # a bar shorter than some scrapes would miss events


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSeries:
    title: str
    description: str
    queries: Sequence[Query]
    unit: Unit
    stacked: bool = False
    log: bool = False
    at_most: float | None = None
    at_least: float | None = 0
    steps: Sequence[Step] = ()  # drawn as lines
    model_links: bool = False  # its series have the label `model`
    decimals: int | None = None
    bars: bool = False  # of `events`, a bar a step
    points: bool = False  # of `quantile_of_events`, a point where there were any
    width: int = 8
    height: int = 8

    def document(self) -> Json:
        custom: Json = {
            "drawStyle": "bars" if self.bars else "points" if self.points else "line",
            "lineWidth": 1,
            "pointSize": 7,
            "fillOpacity": 60 if self.bars else 30 if self.stacked else 8,
            "showPoints": "always" if self.points else "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
            "scaleDistribution": {"type": "log", "log": 10} if self.log else {"type": "linear"},
            "thresholdsStyle": {"mode": "dashed" if self.steps else "off"},
        }
        defaults = defaults_of(self.unit, self.steps, self.decimals)
        defaults |= {"custom": custom, "color": {"mode": "palette-classic"}}
        if self.at_most is not None:
            defaults["max"] = self.at_most
        if self.at_least is not None and not self.log:
            defaults["min"] = self.at_least
        if self.model_links:
            defaults["links"] = [MODEL_LINK]
        calcs = ["sum"] if self.bars else ["mean", "max", "lastNotNull"]
        options = {
            "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": calcs},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
        document = panel("timeseries", self, targets(self.queries), defaults, options)
        if self.bars or self.points:
            document["interval"] = _BAR  # the least step
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """One figure of now, or of the whole range shown."""

    title: str
    description: str
    query: Query
    unit: Unit
    steps: Sequence[Step] = ()
    decimals: int | None = None
    sparkline: bool = True
    empty: str | None = None  # said where there is nothing
    width: int = 3
    height: int = 4

    def document(self) -> Json:
        defaults = defaults_of(self.unit, self.steps, self.decimals)
        defaults["color"] = {"mode": "thresholds"}
        if self.empty is not None:
            defaults["noValue"] = self.empty
        options = {
            "colorMode": "value",
            "graphMode": "area" if self.sparkline else "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "value_and_name" if self.query.legend else "value",
            "wideLayout": True,
            "showPercentChange": False,
        }
        return panel("stat", self, targets([self.query], instant=not self.sparkline), defaults, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """Of a histogram's buckets; with `bucket_size`, of how many series have which value."""

    title: str
    description: str
    query: Query
    unit: Unit
    bucket_size: float | None = None
    width: int = 12
    height: int = 9

    def document(self) -> Json:
        calculated = self.bucket_size is not None
        options: Json = {
            "calculate": calculated,
            "cellGap": 1,
            "cellValues": {"unit": "short"},
            "color": {
                "mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "scale": "exponential", "exponent": 0.5,
                "steps": 64, "reverse": False,
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": str(self.unit)},
        }  # fmt: skip
        if calculated:
            y_buckets = {"mode": "size", "value": f"{self.bucket_size:g}", "scale": {"type": "linear"}}
            options["calculation"] = {"xBuckets": {"mode": "count", "value": "60"}, "yBuckets": y_buckets}
        defaults: Json = {"custom": {"scaleDistribution": {"type": "linear"}, "hideFrom": SHOWN}}
        asked = targets([self.query], shape="time_series" if calculated else "heatmap")
        return panel("heatmap", self, asked, defaults, options)
