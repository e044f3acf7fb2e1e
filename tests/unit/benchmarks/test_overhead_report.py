"""From the figures of rounds to the tables."""

import json
from pathlib import Path

import pytest

from benchmarks.overhead.measure import Figures, Outcome, combine
from benchmarks.overhead.report import Results
from benchmarks.overhead.scenarios import SCENARIOS, Scenario
from benchmarks.tables import render

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
WHOLE: Figures = {"whole": 10, "not_whole": 0, "errors": 0, "unfinished": 0}


def results(*names: str, scenarios: tuple[str, ...] = ("c64",)) -> Results:
    return Results(scenarios=[BY_NAME[name] for name in scenarios], names=names)


def add(to: Results, name: str, scenario: str = "c64", problem: str = "", **figures: float) -> None:
    to.add(name, BY_NAME[scenario], Outcome(figures={**WHOLE, **figures}, problem=problem))


def test_rounds_become_medians_and_sums():
    """Times by their median, answers by their sum; what a round lacks is left out, what all lack is unknown."""
    rounds: list[Figures] = [
        {"cpu_us": 3.0, "whole": 1, "x": None},
        {"cpu_us": 1.0, "whole": 2, "x": None},
        {"cpu_us": None, "whole": 4, "x": None},
    ]
    assert combine(rounds) == {"cpu_us": 2.0, "whole": 7, "x": None}


def test_ours_over_the_peers_and_what_is_added():
    """Latency is what it is above the engine's own; ratios are of medians; a peer that is not there has no column."""
    told = results("direct", "penstock", "nginx")
    for direct, ours, theirs in ((1.0, 3.0, 2.0), (1.0, 5.0, 2.0), (1.0, 99.0, 2.0)):
        add(told, "direct", latency_p50_ms=direct)
        add(told, "penstock", latency_p50_ms=ours, cpu_us=ours * 10)
        add(told, "nginx", latency_p50_ms=theirs, cpu_us=theirs * 10)
    table = told.table()
    assert table["penstock"]["c64: added_latency_p50_ms"] == 4.0
    assert table["direct"]["c64: added_latency_p50_ms"] is None
    assert table["penstock / nginx"]["c64: cpu_us"] == pytest.approx(2.5)
    assert table["penstock / nginx"]["c64: added_latency_p50_ms"] == pytest.approx(4.0)
    assert "penstock / vllm-router" not in table
    assert table["nginx"]["all requests: whole"] == 30
    assert table["nginx"]["all streams: whole"] is None
    assert told.spread()["penstock"]["c64: cpu_us"] == "30-990"


def test_two_workers_over_one():
    """CPU time of two workers is set beside that of one, for whoever has both."""
    told = results("penstock", "nginx", scenarios=("c64", "c64_2w"))
    add(told, "nginx", cpu_us=20.0)
    add(told, "nginx", "c64_2w", cpu_us=25.0)
    add(told, "penstock", cpu_us=20.0)
    told.add_problem("penstock", BY_NAME["c64_2w"], "no --workers")
    table = told.table()
    assert table["nginx: 2 workers / 1"] == {"c64_2w: cpu_us": pytest.approx(1.25)}
    assert "penstock: 2 workers / 1" not in table
    assert told.notes({"smg": "not on PyPI"}) == ["penstock, c64_2w: no --workers", "smg was not measured: not on PyPI"]


@pytest.mark.parametrize("bad", ["not_whole", "errors", "unfinished"])
def test_figures_of_broken_answers_are_worth_nothing(bad: str):
    """One answer of ours that was not whole is told; a peer's is the peer's."""
    told = results("penstock", "nginx")
    assert not told.ours_is_whole()
    add(told, "penstock")
    add(told, "nginx", **{bad: 1})
    assert told.ours_is_whole()
    add(told, "penstock", **{bad: 1})
    assert not told.ours_is_whole()


def test_every_scenario_has_rows():
    """No scenario is measured for nothing."""
    every: list[Scenario] = list(SCENARIOS)
    rows = Results(scenarios=every, names=["penstock"]).table()["penstock"]
    assert [scenario.name for scenario in every if f"{scenario.name}: cpu_us" not in rows] == ["memory"]
    assert "memory: rss_kb_per_connection" in rows


def test_notes_stand_under_their_table(tmp_path: Path):
    """benchmarks.tables prints what a reader of the figures has to know."""
    made = {"command": "c", "revision": "r", "python": "3.11", "machine": "m", "wall": {"date": "d"}}
    document = {"benchmark": "overhead", "run": "r", "figures": {"nginx": {"x": 1.0}}, "notes": ["nginx 1.22"], **made}
    file = tmp_path / "results.json"
    file.write_text(json.dumps([document]))
    assert "\n- nginx 1.22\n" in render(json.loads(file.read_text()))
