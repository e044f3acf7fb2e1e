"""The dashboards: made from the catalog, committed as made, and shaped as Grafana wants them."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from backends.breaker import BreakerState
from batching.replica import Lifecycle
from metrics.catalog import Metrics
from metrics.dashboards import promql
from metrics.dashboards.files import rendered
from metrics.dashboards.fleet import STATES
from metrics.dashboards.grids import Column, Table
from metrics.dashboards.internals import CIRCUITS
from metrics.dashboards.parts import Query, Unit
from metrics.dashboards.promql import UnknownName

FOLDER = Path(__file__).resolve().parents[3] / "metrics/dashboards"
DOCUMENTS: dict[str, dict[str, Any]] = {name: json.loads(text) for name, text in rendered().items()}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# What no dashboard shows, and why.
UNSEEN = {
    "process_max_fds": "a limit; the panel of open files says where it stands",
    "process_start_time_seconds": "the figures that restart at 0 show it",
}
# compat.md 4.3, by the metrics that each group of panels is made of.
GROUPS = {
    "requests and errors": ("requests_total",),
    "time to first token": ("time_to_first_token_seconds",),
    "between tokens": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    "end to end": ("request_duration_seconds",),
    "queue": ("queue_depth", "oldest_queued_seconds", "queue_wait_seconds"),
    "running and waiting": ("replica_running", "replica_waiting"),
    "KV": ("replica_kv_usage_ratio", "replica_kv_headroom_tokens"),
    "prefix cache and tokens": ("tokens_total",),
    "lengths": ("prompt_length_tokens", "output_length_tokens"),
    "finish reasons": ("finish_reasons_total",),
    "routing": ("routing_decisions_total",),
    "refusals": ("requests_dropped_total",),
    "attempts and circuits": ("upstream_attempts_total", "replica_circuit_state"),
    "money": ("cost_units_total", "replica_cost_units_total", "replica_price_usd_per_hour", "replica_on_demand_usd_per_hour"),
    "replicas and notices": ("replica_up", "spot_notices_total", "replica_drains_total"),
    "the gateway": ("process_cpu_seconds_total", "process_resident_memory_bytes", "event_loop_lag_seconds", "overhead_seconds"),
}  # fmt: skip

by_name = pytest.mark.parametrize("name", DOCUMENTS)


def panels(name: str) -> Iterator[dict[str, Any]]:
    return (panel for panel in DOCUMENTS[name]["panels"] if panel["type"] != "row")


def exprs() -> str:
    return "\n".join(target["expr"] for name in DOCUMENTS for panel in panels(name) for target in panel["targets"])


@by_name
def test_what_is_committed_is_what_is_made(name: str) -> None:
    """Stale or edited by hand: `python -m metrics.dashboards` writes them."""
    assert (FOLDER / name).read_text() == rendered()[name]


def test_no_other_dashboard_lies_there() -> None:
    """One that is made no more is deleted."""
    assert {path.name for path in FOLDER.glob("*.json")} == set(DOCUMENTS)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: promql.rate("request_total"),
        lambda: promql.rate("requests_total", "tier"),
        lambda: promql.rate("requests_total", state="x"),
        lambda: promql.rate("queue_depth"),
        lambda: promql.gauge("requests_total"),
        lambda: promql.quantile(0.5, "queue_depth"),
        lambda: promql.folded("sum", promql.gauge("queue_depth", "model"), "replica"),
        lambda: promql.gauge("queue_depth", "model") / promql.gauge("replica_up", "replica"),
        lambda: promql.gauge("queue_depth", "model").or_(promql.gauge("queue_depth")),
        lambda: promql.recorded("job:penstock_ttft:rate5m"),
        lambda: promql.recorded("job_model_service_tier:penstock_ttft:rate5m", "replica"),
        lambda: Query(promql.gauge("queue_depth", "model"), "{{replica}}"),
        lambda: Table(
            title="t", description="d", key="replica", labels={}, columns=[Column("c", promql.gauge("queue_depth", "model"), Unit.COUNT)]
        ).document(),
    ],
)  # fmt: skip
def test_names_that_are_not_there_raise(wrong: Any) -> None:
    """A renamed metric, label or rule breaks the making of its dashboard, not its panel in a year."""
    with pytest.raises(UnknownName):
        wrong()


def test_a_near_name_is_told() -> None:
    """A misspelt metric says which was meant."""
    with pytest.raises(UnknownName, match="'requests_total'"):
        promql.family("request_total")


def test_gateways_are_joined_by_the_gauge_s_rule() -> None:
    """Two gateways that see the same replica count it once; what each has of a queue adds up; then the fold."""
    assert promql.gauge("queue_depth").text.startswith("sum(penstock_queue_depth{")
    assert promql.gauge("replica_up").text.startswith("sum(max by (replica, gpu, cost_tier) (penstock_replica_up{")
    assert promql.gauge("oldest_queued_seconds", fold="max").text.startswith("max(penstock_oldest_queued_seconds{")


def test_selectors_follow_the_variables() -> None:
    """Each label that has a variable is filtered by it, unless the panel says otherwise."""
    text = promql.rate("upstream_attempts_total", "outcome", outcome="!~ok|hedged").text
    assert text == (
        'sum by (outcome) (rate(penstock_upstream_attempts_total{job=~"$job",replica=~"$replica",outcome!~"ok|hedged"}[$__rate_interval]))'
    )


@by_name
def test_grafana_s_schema_knows_every_member(name: str) -> None:
    """Read into the types that Grafana generates from its schema and written again, nothing has gone: panels and their options, targets, variables."""
    register_default_plugins()
    document = DOCUMENTS[name]
    again = json.loads(json.dumps(Dashboard.from_json(document), cls=JSONEncoder))
    unknown = [path for path in _lost(document, again) if not path.startswith(_OF_THE_DATASOURCE)]
    assert unknown == []


# A datasource's own members of a mark, which the schema leaves to it, and a copy of the query for Grafana's list of variables.
_OF_THE_DATASOURCE = (
    *(f".annotations.list.1.{member}" for member in ("titleFormat", "textFormat", "tagKeys", "step")),
    *(f".templating.list.{number}.definition" for number in range(8)),
)


def _lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Members that are not the same any more; those without a value may go."""
    if isinstance(before, dict):
        for key, value in before.items():
            if key in after:
                yield from _lost(value, after[key], f"{path}.{key}")
            elif value not in (None, False, [], {}, ""):
                yield f"{path}.{key}"
    elif isinstance(before, list):
        if len(before) != len(after):
            yield path
        for number, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from _lost(one, other, f"{path}.{number}")
    elif before != after:
        yield path


@by_name
def test_panels_have_places_of_their_own(name: str) -> None:
    """Ids are unique, nothing overlaps or leaves the grid, no title comes twice in a row."""
    shown = DOCUMENTS[name]["panels"]
    assert [panel["id"] for panel in shown] == list(range(1, len(shown) + 1))
    places = [panel["gridPos"] for panel in shown]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    over = [
        (one, other)
        for one, other in combinations(places, 2)
        if one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
        if one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"]
    ]
    assert over == []
    titles = [panel["title"] for panel in panels(name)]
    assert len(titles) == len(set(titles))


@by_name
def test_every_panel_can_be_read(name: str) -> None:
    """A title, a unit, and a description that says what is shown and what to do; several series have names."""
    for panel in panels(name):
        assert panel["title"]
        assert len(panel["description"]) >= 20, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        if panel["type"] in {"timeseries", "stat", "status-history"}:
            assert panel["fieldConfig"]["defaults"]["unit"] in set(Unit), panel["title"]
        if panel["type"] == "timeseries":
            assert all(target["legendFormat"] != "__auto" for target in panel["targets"]), panel["title"]


@by_name
def test_every_query_follows_the_datasource_and_the_scrape_interval(name: str) -> None:
    """Nothing is tied to one Prometheus, and no rate to one interval."""
    for panel in panels(name):
        assert panel["datasource"] == DATASOURCE
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs)) >= 1
        for target in panel["targets"]:
            assert target["datasource"] == DATASOURCE
            assert set(re.findall(r"rate\([^\[]*\[([^\]]+)\]", target["expr"])) <= {"$__rate_interval"}
            assert set(re.findall(r"increase\([^\[]*\[([^\]]+)\]", target["expr"])) <= {
                "$__rate_interval",
                "$__interval",
                "$__range",
            }
            assert 'job=~"$job"' in target["expr"] or ":budget" in target["expr"], panel["title"]


@by_name
def test_dashboards_are_templated_and_linked(name: str) -> None:
    """By datasource, gateways, model, service tier, cost tier and replica; each leads to the others with what was chosen."""
    document = DOCUMENTS[name]
    variables = [variable["name"] for variable in document["templating"]["list"]]
    assert [v for v in variables if v != "instance"] == [
        "datasource",
        "job",
        "model",
        "service_tier",
        "cost_tier",
        "replica",
    ]
    (link,) = document["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
        "dashboards",
        document["tags"],
        True,
        True,
    )


def test_dashboards_are_told_apart() -> None:
    """Five of them; links and provisioning go by uid."""
    uids = {document["uid"] for document in DOCUMENTS.values()}
    assert uids == {"penstock-fleet", "penstock-latency", "penstock-cost", "penstock-model", "penstock-internals"}


def test_every_group_of_panels_is_there() -> None:
    """What users of such gateways expect to find."""
    asked = exprs()
    missing = [
        (group, metric)
        for group, names in GROUPS.items()
        for metric in names
        if not re.search(rf"\b(penstock_)?{metric}", asked)
    ]
    assert missing == []
    heat_maps = [
        target["expr"]
        for name in DOCUMENTS
        for panel in panels(name)
        if panel["type"] == "heatmap"
        for target in panel["targets"]
    ]
    for metric in (
        "time_to_first_token_seconds",
        "replica_kv_usage_ratio",
        "prompt_length_tokens",
        "output_length_tokens",
    ):
        assert any(metric in expr for expr in heat_maps), metric


def test_every_metric_is_shown() -> None:
    """An instrument that no panel shows is read by nobody; the exceptions have reasons."""
    asked = exprs()
    unseen = {
        field.name
        for field in fields(Metrics)
        if not re.search(rf"\b{promql.family(field.name).metric}(_bucket|_sum|_count)?\{{", asked)
    }
    assert unseen == set(UNSEEN)


def test_states_are_the_fleet_s() -> None:
    """The numbers that timelines draw stand for all states there are."""
    assert {name for name, _ in STATES.values()} == set(Lifecycle)
    assert {name for name, _ in CIRCUITS.values()} == set(BreakerState)
