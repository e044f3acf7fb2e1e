"""What the figures of all rounds say: rows by contestant, ours over the peers', what is wrong with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final

from benchmarks.overhead.measure import COUNTS, Figures, Outcome, combine
from benchmarks.overhead.scenarios import Scenario
from benchmarks.overhead.targets import COMPILED, DIRECT, OURS

Rows = dict[str, float | None]
_AGAINST: Final = ("vllm-router", "nginx")
_TESTED: Final = (DIRECT, OURS, COMPILED)
_ADDED: Final = ("latency_p50_ms", "latency_p99_ms")
# A scenario's own figures, in this order; CPU and memory of `direct` are nobody's.
_SHOWN: Final[Mapping[str, Sequence[str]]] = {
    "c1": ("added_latency_p50_ms", "added_latency_p99_ms", "cpu_us"),
    "c64": ("cpu_us", "added_latency_p50_ms", "added_latency_p99_ms", "requests_per_s", "core_share", "rss_idle_mb"),
    "s64_fast": ("cpu_us", "events_per_s", "coalesced_share"),
    "s64_1ms": ("cpu_us", "events_per_s", "coalesced_share"),
    "s500": ("cpu_us", "itl_p50_ms", "itl_p99_ms", "ttft_p50_ms", "ttft_p99_ms", "events_per_s", "core_share"),
    "s2000": (
        "cpu_us",
        "itl_p50_ms",
        "itl_p99_ms",
        "ttft_p50_ms",
        "ttft_p99_ms",
        "events_per_s",
        "core_share",
        *COUNTS,
    ),
    "memory": ("rss_kb_per_connection", "rss_idle_mb", "core_share"),
    "c64_2w": ("cpu_us", "requests_per_s"),
    "s500_2w": ("cpu_us", "itl_p99_ms"),
}
_COMPARED: Final = ("cpu_us", "added_latency_p50_ms", "itl_p99_ms", "ttft_p99_ms", "rss_kb_per_connection")


@dataclass(slots=True)
class Results:
    """Outcomes of all rounds. A contestant that has no figures of a scenario has a line in `problems` that says why."""

    scenarios: Sequence[Scenario]
    names: Sequence[str]
    rounds: dict[tuple[str, str], list[Figures]] = field(default_factory=dict)  # by contestant and scenario
    problems: dict[tuple[str, str], str] = field(default_factory=dict)  # the first one of each

    def add(self, name: str, scenario: Scenario, outcome: Outcome) -> None:
        self.rounds.setdefault((name, scenario.name), []).append(outcome.figures)
        if outcome.problem:
            self.add_problem(name, scenario, outcome.problem)

    def add_problem(self, name: str, scenario: Scenario, problem: str) -> None:
        self.problems.setdefault((name, scenario.name), problem)

    def table(self) -> dict[str, Rows]:
        """Rows by contestant, then ratios of ours by peer. What is added to a latency is what it is above `direct`'s."""
        columns = {name: self._rows(name, _SHOWN) | self._totals(name) for name in self.names}
        for ours, other in product((OURS, COMPILED), _AGAINST):
            if other in columns and ours in columns:
                columns[f"{ours} / {other}"] = {
                    row: _over(columns[ours][row], columns[other].get(row))
                    for row in columns[ours]
                    if row.endswith(_COMPARED)
                }
        return columns | self._two_over_one(columns)

    def machinery(self) -> dict[str, Rows]:
        """Shares of their core that engines and load used: where they come near 1 together, they are what is measured."""
        shown = ("engines_core_share", "load_core_share")
        return {name: self._rows(name, {scenario.name: shown for scenario in self.scenarios}) for name in self.names}

    def spread(self) -> dict[str, dict[str, str]]:
        """Least and greatest of the rounds, of what is compared."""
        return {
            name: {
                f"{scenario.name}: {figure}": f"{min(values):.3g}-{max(values):.3g}"
                for scenario in self.scenarios
                for figure in ("cpu_us", "latency_p50_ms", "itl_p99_ms", "ttft_p99_ms")
                if (values := self._values(name, scenario.name, figure))
            }
            for name in self.names
        }

    def raw(self) -> dict[str, dict[str, list[Figures]]]:
        """Every figure of every round, by contestant and scenario."""
        made: dict[str, dict[str, list[Figures]]] = {}
        for (name, scenario), rounds in self.rounds.items():
            made.setdefault(name, {})[scenario] = rounds
        return made

    def notes(self, absent: Mapping[str, str]) -> list[str]:
        """A line for each problem and each peer that is not there."""
        lines = [f"{name}, {scenario}: {problem}" for (name, scenario), problem in self.problems.items()]
        return [*lines, *(f"{name} was not measured: {why}" for name, why in absent.items())]

    def ours_is_whole(self) -> bool:
        """Whether every answer of the engine and of ours was: figures of broken answers are worth nothing."""
        bad = ("not_whole", "errors", "unfinished")
        ours = [figures for (name, _), rounds in self.rounds.items() if name in _TESTED for figures in rounds]
        return bool(ours) and not any(figures[name] for figures in ours for name in bad)

    def _rows(self, name: str, shown: Mapping[str, Sequence[str]]) -> Rows:
        rows: Rows = {}
        for scenario in self.scenarios:
            figures = combine(self.rounds.get((name, scenario.name), []))
            direct = combine(self.rounds.get((DIRECT, scenario.name), []))
            for figure in _ADDED:
                figures[f"added_{figure}"] = _minus(figures.get(figure), direct.get(figure)) if name != DIRECT else None
            for figure in shown.get(scenario.name, ()):
                rows[f"{scenario.name}: {figure}"] = figures.get(figure)
        return rows

    def _totals(self, name: str) -> Rows:
        """Answers of all scenarios and rounds."""
        rounds = [(scenario, self.rounds.get((name, scenario.name), [])) for scenario in self.scenarios]
        rows: Rows = {}
        for kind, streams in (("requests", False), ("streams", True)):
            of_kind = [
                one for scenario, several in rounds if (scenario.events is not None) is streams for one in several
            ]
            for count in COUNTS:
                rows[f"all {kind}: {count}"] = sum(one[count] or 0 for one in of_kind) if of_kind else None
        return rows

    def _two_over_one(self, columns: Mapping[str, Rows]) -> dict[str, Rows]:
        """CPU time of two workers over that of one, where both were measured."""
        pairs = [
            (f"{scenario.name}: cpu_us", f"{scenario.name.removesuffix('_2w')}: cpu_us")
            for scenario in self.scenarios
            if scenario.workers > 1
        ]
        made: dict[str, Rows] = {}
        for name in self.names:
            ratios = {two: _over(columns[name].get(two), columns[name].get(one)) for two, one in pairs}
            if any(ratio is not None for ratio in ratios.values()):
                made[f"{name}: 2 workers / 1"] = ratios
        return made

    def _values(self, name: str, scenario: str, figure: str) -> list[float]:
        return [value for one in self.rounds.get((name, scenario), []) if (value := one.get(figure)) is not None]


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other
