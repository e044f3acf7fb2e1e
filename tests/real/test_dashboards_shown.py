"""Every panel, variable and rule asked of a real Prometheus that scraped a live gateway: what shows nothing is broken."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import RedisServer
from tests.real.monitored_fleet import scene, wall_s
from tests.real.prometheus_server import Prometheus
from tests.support.patience import PATIENCE_S

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((ROOT / "metrics/dashboards").glob("*.json"))
SECONDS = 20.0
# As Grafana fills them in, "All" chosen; what the scrapes come to here instead of what they come to in a fleet.
CHOSEN = {
    "$__rate_interval": "5s",
    "$__interval": "5s",
    "$__range": "120s",
    "$job": "penstock",
    "$model": ".*",
    "$service_tier": ".*",
    "$cost_tier": ".*",
    "$replica": ".*",
    "$instance": ".*",
}


@dataclass(frozen=True)
class Watched:
    prometheus: Prometheus
    start_s: float
    end_s: float

    def shows(self, expr: str, *, instant: bool = False) -> bool:
        """Something that is a number, in the time watched or at its end: some seconds, as a busy machine may miss a scrape."""
        since_s = self.end_s - 10 if instant else self.start_s
        return bool(self.prometheus.over(filled(expr), since_s, self.end_s))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Watched]:
    """After all that can happen to a fleet has happened."""
    folder = tmp_path_factory.mktemp("watched")
    rules = sorted((ROOT / "metrics/rules").glob("*.yml"))
    with asyncio.Runner() as runner:
        started: list[Prometheus] = []

        def begin(target: str) -> None:
            started.append(Prometheus(folder, target, rules).__enter__())

        async def play() -> float:
            """When it is over, and the gateway still there."""
            async with scene(folder, redis_server.url) as (fleet, engine):
                begin(fleet.gateway.url.removeprefix("http://"))
                async with asyncio.timeout(PATIENCE_S):  # it looks for targets every five seconds
                    while not started[0].at("up", wall_s()):
                        await asyncio.sleep(0.1)
                await fleet.play(engine, SECONDS)
                await asyncio.sleep(2)  # a last scrape, and what the rules make of it
                return wall_s()

        start_s = wall_s()
        try:
            end_s = runner.run(play())
            yield Watched(started[0], start_s, end_s)
        finally:
            for prometheus in started:
                prometheus.__exit__(None, None, None)


def filled(expr: str) -> str:
    for name, value in sorted(CHOSEN.items(), reverse=True):
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def panels(file: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(file.read_text())["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_shows_something(watched: Watched, file: Path) -> None:
    """Each query of each panel has data; one that is empty asks for what there is not."""
    empty = [
        f"{panel['title']} {target['refId']}: {target['expr']}"
        for panel in panels(file)
        for target in panel["targets"]
        if not watched.shows(target["expr"], instant=target["instant"])
    ]
    assert empty == []


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda path: path.stem)
def test_every_variable_has_values(watched: Watched, file: Path) -> None:
    """What is asked for the lists above a dashboard; the marks for notices, too."""
    document = json.loads(file.read_text())
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found
            assert watched.prometheus.label_values(found[2], filled(found[1])), variable["name"]
    marks = [mark for mark in document["annotations"]["list"] if "expr" in mark]
    assert [mark["name"] for mark in marks if not watched.shows(mark["expr"])] == []


def test_every_rule_is_evaluated(watched: Watched) -> None:
    """Prometheus takes each rule without an error, and each recorded series has values."""
    rules = watched.prometheus.rules()
    assert {rule["health"] for rule in rules} == {"ok"}, [rule for rule in rules if rule["health"] != "ok"]
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert recorded
    assert [name for name in recorded if not watched.shows(name)] == []


def test_alerts_see_what_happened(watched: Watched) -> None:
    """Those that wait for nothing fire while the gateway is there; nobody misses the gateway."""
    fired = watched.prometheus.over('ALERTS{alertstate="firing"}', watched.start_s, watched.end_s)
    names = {series["metric"]["alertname"] for series in fired}
    assert {"PenstockStreamsErrored", "PenstockRetryBudgetSpent", "PenstockConfigRejected"} <= names
    assert "PenstockGatewayAbsent" not in names
