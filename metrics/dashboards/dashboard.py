"""A dashboard as a value: rows of panels, laid out from left to right, with the variables, links and marks that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from metrics.count import Gauge
from metrics.dashboards.parts import DATASOURCE, FULL_WIDTH, Json, Panel
from metrics.dashboards.promql import events, selector

TAG: Final = "penstock"
_SCHEMA: Final = 41  # Grafana 12's; it reads older and newer ones, too
_ALL: Final = ".*"  # also what has no such label

# The metric that tells a variable's values: one that is there without traffic, where there is such a one.
_TOLD_BY: Final = {
    "job": "build_info",
    "instance": "build_info",
    "model": "overloaded",
    "cost_tier": "replica_up",
    "replica": "replica_up",
}
_LABELS: Final = {
    "job": "Gateways",
    "instance": "Instance",
    "model": "Model",
    "service_tier": "Service tier",
    "cost_tier": "Cost tier",
    "replica": "Replica",
}


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """`one_model`: its variable has no "All". `instances`: one gateway process can be chosen."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    one_model: bool = False
    instances: bool = False
    since: str = "now-1h"

    def document(self) -> Json:
        """What Grafana imports. The same for the same code: no dates, no versions of ours."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": _SCHEMA,
            "editable": True,
            "graphTooltip": 1,  # one crosshair over all panels
            "time": {"from": self.since, "to": "now"},
            "timezone": "",
            "refresh": "10s",
            "fiscalYearStartMonth": 0,
            "links": [_LINKS],
            "annotations": {"list": [_BUILT_IN, _notices()]},
            "templating": {"list": self._variables()},
            "panels": _placed(self.rows),
        }

    def _variables(self) -> list[Json]:
        found: list[Json] = [
            {
                "type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "regex": "",
                "refresh": 1, "multi": False, "includeAll": False, "hide": 0, "skipUrlSync": False, "options": [], "current": {},
            },
            _query_variable("job", ""),
        ]  # fmt: skip
        if self.instances:
            found.append(_query_variable("instance", 'job=~"$job"'))
        found.append(_query_variable("model", 'job=~"$job"', every=not self.one_model))
        found.append(_tiers())
        found.append(_query_variable("cost_tier", 'job=~"$job"'))
        found.append(_query_variable("replica", 'job=~"$job",cost_tier=~"$cost_tier"'))
        return found


def _query_variable(name: str, matchers: str, *, every: bool = True) -> Json:
    metric = selector(_TOLD_BY[name], Gauge, {}).split("{")[0]
    query = f"label_values({metric}{{{matchers}}}, {name})" if matchers else f"label_values({metric}, {name})"
    return {
        "type": "query",
        "name": name,
        "label": _LABELS[name],
        "datasource": dict(DATASOURCE),
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,  # when the time range changes: replicas come and go
        "regex": "",
        "sort": 1,
        **_choice(every=every),
        "options": [],
    }


def _tiers() -> Json:
    """A list of our own: a tier that nobody has asked for yet can be chosen, too."""
    names = ("priority", "default", "flex", "batch")
    return {
        "type": "custom",
        "name": "service_tier",
        "label": _LABELS["service_tier"],
        "query": ",".join(names),
        **_choice(every=True),
        "options": [{"text": name, "value": name, "selected": False} for name in names],
    }


def _choice(*, every: bool) -> Json:
    if not every:
        return {"multi": False, "includeAll": False, "current": {}, "hide": 0, "skipUrlSync": False}
    current = {"text": ["All"], "value": ["$__all"]}
    return {"multi": True, "includeAll": True, "allValue": _ALL, "current": current, "hide": 0, "skipUrlSync": False}


def _placed(rows: Sequence[Row]) -> list[Json]:
    """Ids count from 1 in reading order; a panel that does not fit beside the others begins a new line."""
    found: list[Json] = []
    y = 0
    for row in rows:
        place = {"h": 1, "w": FULL_WIDTH, "x": 0, "y": y}
        found.append({"type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": place})
        y += 1
        x = line = 0
        for panel in row.panels:
            if x + panel.width > FULL_WIDTH:
                x, y, line = 0, y + line, 0
            found.append({**panel.document(), "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y}})
            x, line = x + panel.width, max(line, panel.height)
        y += line
    return [{"id": number, **document} for number, document in enumerate(found, 1)]


def _notices() -> Json:
    """A mark where a notice came."""
    return {
        "name": "Spot notices",
        "datasource": dict(DATASOURCE),
        "enable": True,
        "hide": False,
        "iconColor": "orange",
        "expr": (events("spot_notices_total", "replica", "provider", "kind", over="1m") > 0).text,
        "titleFormat": "{{kind}}: {{replica}}",
        "textFormat": "notice by {{provider}}",
        "tagKeys": "kind,provider",
        "step": "60s",
    }


_BUILT_IN: Final[Json] = {
    "builtIn": 1,
    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    "enable": True,
    "hide": True,
    "iconColor": "rgba(0, 211, 255, 1)",
    "name": "Annotations & Alerts",
    "type": "dashboard",
}
_LINKS: Final[Any] = {
    "type": "dashboards",
    "title": "Penstock",
    "tags": [TAG],
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "icon": "external link",
    "tooltip": "",
    "url": "",
}
