"""Ten times what a fleet can do, for thirty seconds: what is answered, who is refused, and whether what they are told is true.

The scheduler over simulated engines, in virtual time (`benchmarks.overload`).
"""

from typing import Any

import pytest

from benchmarks.overload import RULES, Scene, calls_at, figures, simulate
from router.simulation.report import meets
from router.simulation.run import End
from router.simulation.trace import Call

CAPACITY = 13.0  # requests a second; the first test says what that means


@pytest.fixture(scope="module")
def gave_up() -> dict[str, Any]:
    """Of those who do not come back."""
    return figures(Scene(rate=CAPACITY))


@pytest.fixture(scope="module")
def obeyed() -> dict[str, Any]:
    """Of those who come back when they are told to, once."""
    return figures(Scene(rate=CAPACITY, obeys=True))


def test_up_to_its_capacity_nobody_is_refused() -> None:
    """At all that the fleet can do, 99 of 100 are in time, and no refusal is a false one."""
    calls = calls_at([(CAPACITY, 120.0)], seed=1)
    clients = simulate(Scene(), calls)
    assert clients.refusals == []
    in_time = sum(meets(life, call) for life, call in zip(clients.observed.lives, calls, strict=True))
    assert in_time >= 0.99 * len(calls)


def test_goodput_stays_what_the_fleet_can_do(gave_up: dict[str, Any], obeyed: dict[str, Any]) -> None:
    """Answers within their objectives: 95 % of capacity and more, whatever the refused do."""
    assert min(gave_up["goodput_ratio"], obeyed["goodput_ratio"]) >= 0.95


def test_what_is_let_in_is_answered_in_time(gave_up: dict[str, Any], obeyed: dict[str, Any]) -> None:
    """The 99th percentile of first tokens is within the objective."""
    assert gave_up["ttft_p99_over_objective_s"] <= 0
    assert obeyed["ttft_p99_over_objective_s"] <= 0


def test_nine_of_ten_are_refused_without_having_waited(gave_up: dict[str, Any]) -> None:
    """Most at once: nobody queues for half a minute to hear that there is no room."""
    assert gave_up["refused_first"] >= 0.7 * gave_up["requests"]
    assert gave_up["refusal_waited_p50_s"] == 0
    assert gave_up["refusal_waited_p99_s"] <= 10


def test_who_returns_when_told_is_answered(obeyed: dict[str, Any]) -> None:
    """Four of five at least, on their next try, and nobody is told a time beyond two minutes."""
    assert obeyed["told_to_return"] >= 1000
    assert obeyed["return_succeeded_ratio"] >= 0.8


def test_two_seconds_after_the_burst_all_is_as_before(gave_up: dict[str, Any], obeyed: dict[str, Any]) -> None:
    """Whoever comes then is answered within its objective, also while the refused come back."""
    assert gave_up["after_in_objective_ratio"] >= 0.99
    assert gave_up["ttft_p99_2s_after_s"] <= 1.1 * gave_up["ttft_p99_before_s"]
    assert obeyed["after_in_objective_ratio"] >= 0.99


def test_without_early_refusal_these_bars_are_missed() -> None:
    """The state before: everybody waits half a minute, and who returns when told is refused again."""
    before = figures(Scene(rule="without", rate=CAPACITY, obeys=True))
    assert before["ttft_p99_over_objective_s"] > 20
    assert before["refusal_waited_p50_s"] == 30
    assert before["return_succeeded_ratio"] < 0.5


@pytest.mark.parametrize("rule", RULES)
def test_a_burst_of_two_hundred_is_answered(rule: str) -> None:
    """On a fleet that has just begun, and knows nothing of itself: nobody is refused, by whatever rule."""
    calls = [Call(arrival_s=number * 0.001, prompt_tokens=1000, output_tokens=100) for number in range(200)]
    clients = simulate(Scene(rule=rule), calls)
    assert clients.refusals == []
    assert all(life.end is End.COMPLETED for life in clients.observed.lives)


def test_twice_the_capacity_for_a_quarter_minute_is_only_waited_for() -> None:
    """What fits within the deadline is a burst: late, and answered."""
    calls = calls_at([(6.0, 10.0), (2 * CAPACITY, 22.0), (6.0, 60.0)], seed=2)
    clients = simulate(Scene(), calls)
    assert clients.refusals == []


def test_a_run_is_a_function_of_its_seed() -> None:
    """The same refusals, with the same times, twice."""
    scene, rates = Scene(obeys=True), [(6.0, 5.0), (130.0, 20.0)]
    first, second = (simulate(scene, calls_at(rates, 3)).refusals for _ in range(2))
    assert first == second
    assert len(first) > 100
