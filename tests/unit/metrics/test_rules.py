"""The rules: every name is the catalog's, every alert can be acted on, thresholds are the objectives'."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from config.scheduling import Objectives
from metrics.buckets import ITL_BUCKETS_S, TTFT_BUCKETS_S
from metrics.catalog import Metrics
from metrics.histogram import Histogram
from metrics.rules.recorded import RULES, recorded_labels

ROOT = Path(__file__).resolve().parents[3]
TARGET = {"job", "instance"}
ALERTS_WANTED = {
    "PenstockTtftBudgetBurnsFast", "PenstockTtftBudgetBurnsSlowly", "PenstockItlBudgetBurnsFast", "PenstockItlBudgetBurnsSlowly",
    "PenstockQueueAge", "PenstockNoReadyReplica", "PenstockEngineMetricsStale", "PenstockGreyReplica", "PenstockSpotReclaimStorm",
    "PenstockErrorRatio", "PenstockOverloaded", "PenstockRetryBudgetSpent", "PenstockStreamsErrored", "PenstockEventLoopLag",
}  # fmt: skip


def rules() -> Iterator[dict[str, Any]]:
    for path in sorted(RULES.glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def catalog() -> dict[str, set[str]]:
    """Sample name to labels."""
    hints = get_type_hints(Metrics, include_extras=True)
    found: dict[str, set[str]] = {}
    for declared in fields(Metrics):
        kind, spec = get_args(hints[declared.name])
        name = spec.prefix + declared.name
        labels = {*spec.labels, *TARGET}
        if kind is Histogram:
            found |= {f"{name}_bucket": {*labels, "le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name] = labels
    return found


def names(expr: str) -> set[str]:
    """Metrics and recorded series of an expression."""
    return set(re.findall(r"\b(?:penstock_\w+|\w+:penstock\w*:\w+|penstock:\w+:\w+)", expr)) - {"penstock_"}


@pytest.mark.parametrize("rule", list(rules()), ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_name_is_there(rule: dict[str, Any]) -> None:
    """Metrics and their labels are the catalog's, recorded series are recorded, and labels kept are labels of something asked."""
    known, kept = catalog(), set()
    for name in names(rule["expr"]):
        if ":" in name:
            kept |= set(recorded_labels(name))
        else:
            assert name in known, name
            kept |= known[name]
    for name, matchers in re.findall(r"([\w:]*penstock[\w:]*)\{([^}]*)\}", rule["expr"]):
        labels = known.get(name) or set(recorded_labels(name))
        assert set(re.findall(r"(\w+)(?==|!)", matchers)) <= labels, (name, matchers)
    for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"]):
        assert set(listed.split(", ")) <= kept, listed


def test_recorded_names_say_what_they_keep() -> None:
    """level:metric:operation, the level being the labels of the result."""
    for rule in rules():
        if "record" in rule:
            assert re.fullmatch(r"(job_model(_service_tier)?|penstock):\w+:\w+", rule["record"])
            kept = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
            assert all(set(recorded_labels(rule["record"])) == set(labels.split(", ")) for labels in kept)


def test_alerts_there_are() -> None:
    """Those that operators were promised, each once."""
    found = [rule["alert"] for rule in alerts()]
    assert len(found) == len(set(found))
    assert set(found) >= ALERTS_WANTED


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_can_be_acted_on(rule: dict[str, Any]) -> None:
    """A severity, a line for the subject, a description with the value, and a section of docs/alerts.md with what to do."""
    assert rule["labels"]["severity"] in {"critical", "warning"}
    said = rule["annotations"]
    assert said["summary"]
    assert "$value" in said["description"] or rule["expr"].startswith("absent(")
    page, _, anchor = said["runbook_url"].partition("#")
    sections = (ROOT / page).read_text().split("\n### ")[1:]
    (section,) = [text for text in sections if text.split("\n", 1)[0].strip().lower() == anchor]
    assert {"**Means**", "**Look at**", "**Do**"} <= set(re.findall(r"\*\*[^*]+\*\*", section))


def test_burn_rates_are_the_workbook_s() -> None:
    """14.4 over an hour, 6 over six, 3 over a day, 1 over three, each with a short window of a twelfth, for both objectives."""
    pairs = {
        ("14.4", "1h"),
        ("14.4", "5m"),
        ("6", "6h"),
        ("6", "30m"),
        ("3", "1d"),
        ("3", "2h"),
        ("1", "3d"),
        ("1", "6h"),
    }
    for key in ("ttft", "itl"):
        text = "\n".join(rule["expr"] for rule in alerts() if f"penstock_{key}_late" in rule["expr"])
        found = re.findall(rf"penstock_{key}_late:ratio_rate(\w+)(?:\{{[^}}]*\}})? > ([\d.]+) \*", text)
        assert {(factor, window) for window, factor in found} == pairs


@pytest.mark.parametrize(
    ("metric", "objective_s", "bounds"),
    [
        ("penstock_time_to_first_token_seconds_bucket", Objectives().ttft_s, TTFT_BUCKETS_S),
        ("penstock_inter_token_latency_seconds_bucket", Objectives().tpot_s, ITL_BUCKETS_S),
    ],
)
def test_late_is_later_than_the_objective(metric: str, objective_s: float, bounds: tuple[float, ...]) -> None:
    """The bucket is the one nearest to the default of scheduling.objectives, said as the histogram says it."""
    bound = min(bounds, key=lambda upper: abs(upper - objective_s))
    text = "\n".join(rule["expr"] for rule in rules())
    assert re.findall(rf'{metric}\{{le="([^"]+)"\}}', text) == [str(bound)]
