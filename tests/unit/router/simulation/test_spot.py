"""Spot capacity: what the traces may look like, and what they do to a fleet."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.simulation.run import End, Life, Watcher
from router.simulation.simulate import Options, Run
from router.simulation.spot import SpotTrace, read_spot
from tests.support.simulation_files import written

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
SPOT = "{name: %s, backend: simulated, models: [m], gpu: {type: A100-80G}, cost: {tier: spot, usd_per_hour: 3600}}"
RESERVED = (
    "{name: r, backend: simulated, models: [m], gpu: {type: A100-80G}, cost: {tier: reserved, usd_per_hour: 3600}}"
)


class Ends(Watcher):
    """How each request ended."""

    def __init__(self) -> None:
        self.lives: dict[int, Life] = {}

    def ended(self, number: int, life: Life, now: float) -> None:
        assert number not in self.lives
        self.lives[number] = life


def played(
    folder: Path, requests: str, spot: list[dict[str, Any]], replicas: list[str], **options: Any
) -> tuple[dict[str, Any], Run, list[Life]]:
    fleet = written(folder, "f.yaml", "replicas:\n" + "".join(f"  - {replica}\n" for replica in replicas))
    traces = [written(folder, f"s{number}.json", json.dumps(one)) for number, one in enumerate(spot)]
    trace = written(folder, "t.csv", HEAD + requests)
    run = Run(Options(fleet=fleet, trace=trace, spot=tuple(traces), seed=0, **options))
    ends = Ends()
    told = run.play(ends)
    return told, run, [life for _, life in sorted(ends.lives.items())]


def test_a_flat_trace_is_read_and_its_metadata(tmp_path: Path):
    """The gap may stand beside `data` or under `metadata`, prices may be there, a mark at the start is nothing."""
    plain = read_spot(written(tmp_path, "a.json", '{"data": [0, 1, 2], "gap_seconds": 30}'))
    assert plain == SpotTrace(gap_s=30.0, held=(0, 1, 2))
    text = '\ufeff{"metadata": {"gap_seconds": 30}, "data": [0, 1, 2], "prices": [0.5, 0.5, 1]}'
    assert read_spot(written(tmp_path, "b.json", text)) == SpotTrace(gap_s=30.0, held=(0, 1, 2), prices=(0.5, 0.5, 1))


@pytest.mark.parametrize(
    "data", ['[[1, 0], [0, 2]]', '{"zone-a": [1, 0], "zone-b": [0, 2]}', '{"data": [1, 2], "gap_seconds": 30}']
)  # fmt: skip
def test_nested_data_adds_up(tmp_path: Path, data: str):
    """Several series, in a list or by name, are one capacity, tick by tick."""
    text = f'{{"data": {data}, "gap_seconds": 30}}'
    assert read_spot(written(tmp_path, "a.json", text)) == SpotTrace(gap_s=30.0, held=(1, 2))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"\xff", "s: not UTF-8 text"),
        ("", "s:1: not JSON"),
        ('{"data": [1],\n', "s:2: not JSON"),
        ("[" * 100_000, "s: not JSON"),
        ("[1]", "s: not an object with `data`"),
        ('{"data": [1]}', "s: `gap_seconds` (there or under `metadata`) must be the seconds of a tick, above 0"),
        ('{"data": [1], "gap_seconds": 0}', "s: `gap_seconds`"),
        ('{"data": [1], "gap_seconds": NaN}', "s: `gap_seconds`"),
        ('{"data": [], "gap_seconds": 1}', "s: `data` must be a list with a number for each tick"),
        ('{"data": 5, "gap_seconds": 1}', "s: `data` must be a list"),
        ('{"data": [1, -1], "gap_seconds": 1}', "s: `data`, tick 1: '-1' is not a number from 0"),
        ('{"data": [1, null], "gap_seconds": 1}', "s: `data`, tick 1: 'None' is not a number"),
        ('{"data": [[1], [1, 2]], "gap_seconds": 1}', "s: the lists in `data` are not equally long"),
        ('{"data": [1, 2], "prices": [1], "gap_seconds": 1}', "s: 1 `prices` for 2 ticks of `data`"),
        (f'{{"data": [{"9" * 400}], "gap_seconds": 1}}', "s: `data`, tick 0: '99999"),
    ],
)  # fmt: skip
def test_what_is_no_spot_trace_is_told_in_one_line(tmp_path: Path, text: str | bytes, told: str):
    """The error names the file and what is wrong in it."""
    with pytest.raises(ValueError) as refused:
        read_spot(written(tmp_path, "s", text))
    message = str(refused.value)
    assert message.startswith(told)
    assert "\n" not in message
    assert len(message) < 300


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12))
def test_the_share_that_is_held_is_there_rounded_down(held: list[int], replicas: int):
    """At every tick as many replicas are there as the capacity's share of its maximum, and always the first ones."""
    trace = SpotTrace(gap_s=1.0, held=tuple(held))
    spans = [list(trace.there(place, replicas)) for place in range(replicas)]
    for tick, capacity in enumerate(held):
        up = [any(start <= tick < end for start, end in each) for each in spans]
        expected = replicas * capacity // max(*held, 1)
        assert up == [place < expected for place in range(replicas)]
    assert all(end == math.inf or end < len(held) for each in spans for _, end in each)


def test_all_spot_gone_and_back(tmp_path: Path):
    """While nothing is there requests are refused; before and after they are served, with an empty cache."""
    requests = "0,100,3\n40,100,3\n80,100,3\n"
    spot = [{"data": [1, 0, 0, 1], "gap_seconds": 20}]
    told, run, lives = played(tmp_path, requests, spot, [SPOT % "s"], spot_notice_s=5.0)
    assert [life.end for life in lives] == [End.COMPLETED, End.REJECTED, End.COMPLETED]
    assert told["reasons"] == {"no_replica": 1}
    assert len(run.machines[0].told) == 1


def test_nothing_is_placed_after_the_notice(tmp_path: Path):
    """Between notice and loss what runs may end, and what is new goes elsewhere."""
    requests = "0,100,3\n15,100,3\n"
    spot = [{"data": [1, 0], "gap_seconds": 20}]
    replicas = [SPOT.replace("3600", "1") % "s", RESERVED]
    _, _, lives = played(tmp_path, requests, spot, replicas, spot_notice_s=10.0, policy="round_robin")
    assert [life.end for life in lives] == [End.COMPLETED, End.COMPLETED]
    assert [life.replica for life in lives].count("s") <= 1
    assert lives[1].replica == "r"


def test_after_the_notice_our_own_rule_places_what_will_surely_have_ended(tmp_path: Path):
    """A short answer still goes to the only machine there is; one that would not be done by then is refused."""
    requests, spot = "0,100,3\n15,100,3\n30,100,3\n", [{"data": [1, 0], "gap_seconds": 32}]
    _, run, lives = played(tmp_path, requests, spot, [SPOT % "s"], spot_notice_s=25.0)
    assert [life.end for life in lives] == [End.COMPLETED, End.COMPLETED, End.REJECTED]  # the last has no second left
    assert run.machines[0].requests == 2
    _, _, lives = played(tmp_path, requests, spot, [SPOT % "s"], spot_notice_s=25.0, policy="round_robin")
    assert [life.end for life in lives] == [End.COMPLETED, End.REJECTED, End.REJECTED]


def test_without_a_token_it_is_placed_again(tmp_path: Path):
    """A request whose machine vanishes before its first token is served by another, and counts as recomputed."""
    spot = [{"data": [1, 0], "gap_seconds": 0.1}]
    replicas = [SPOT % "s", RESERVED]
    told, run, lives = played(tmp_path, "0,8000,3\n0,8000,3\n", spot, replicas, policy="round_robin", spot_notice_s=0.0)
    assert [life.end for life in lives] == [End.COMPLETED, End.COMPLETED]
    assert [life.replica for life in lives] == ["r", "r"]
    assert sorted(life.attempts for life in lives) == [1, 2]
    assert told["recomputed_tokens"] == 8000
    assert run.machines[0].requests == 1


def test_in_mid_stream_it_is_lost(tmp_path: Path):
    """A request that has given tokens fails with its machine: this simulator moves no streams."""
    spot = [{"data": [1, 0], "gap_seconds": 2}]
    replicas = [SPOT % "s", RESERVED]
    told, _, (life,) = played(tmp_path, "0,100,5000\n", spot, replicas, policy="spot_first", spot_notice_s=0.0)
    assert (life.end, life.reason, life.attempts) == (End.FAILED, "replica_lost", 1)
    assert told["reasons"] == {"replica_lost": 1}


def test_a_notice_shorter_than_the_answer_still_lets_it_end(tmp_path: Path):
    """What ends between notice and loss is a completed request."""
    spot = [{"data": [1, 0], "gap_seconds": 5}]
    _, _, (life,) = played(tmp_path, "0,100,100\n", spot, [SPOT % "s"], spot_notice_s=5.0)
    assert life.end is End.REJECTED  # the notice came with the machine: nothing was ever placed
    _, _, (life,) = played(tmp_path, "0,100,100\n", spot, [SPOT % "s"], spot_notice_s=4.5)
    assert life.end is End.COMPLETED


def test_a_machine_that_is_away_costs_nothing(tmp_path: Path):
    """It is paid until it is taken, not for the minute that an idle one lingers."""
    spot = [{"data": [1, 0], "gap_seconds": 10}]
    replicas = [SPOT % "s", RESERVED]
    told, run, _ = played(tmp_path, "0,100,3\n30,100,3\n", spot, replicas, policy="spot_first", spot_notice_s=0.0)
    assert told["by_cost_tier"]["spot"]["usd"] == pytest.approx(10.0, abs=0.01)
    assert run.machines[0].there_usd(1000.0) == pytest.approx(10.0)


def test_prices_follow_the_trace(tmp_path: Path):
    """The fleet's price is the trace's first; when that doubles, so does what the scheduler believes and what is paid."""
    spot = [{"data": [1, 1, 1], "prices": [0.5, 1.0, 1.0], "gap_seconds": 10}]
    told, run, _ = played(tmp_path, "0,100,3\n20,100,3\n", spot, [SPOT % "s"])
    assert run.machines[0].profile.usd_per_hour == 7200
    assert told["usd_total"] == pytest.approx(10 + 2 * (told["duration_s"] - 10), abs=0.01)


def test_traces_share_the_spot_replicas(tmp_path: Path):
    """Of two traces the first governs the first and third replica, the second the second; others are left alone."""
    gone, there = {"data": [0, 0, 1], "gap_seconds": 50}, {"data": [1], "gap_seconds": 50}
    replicas = [SPOT % "a", RESERVED, SPOT % "b", SPOT % "c"]
    _, run, _ = played(tmp_path, "0,100,3\n0,100,3\n0,100,3\n0,100,3\n", [gone, there], replicas, policy="round_robin")
    assert [machine.requests > 0 for machine in run.machines] == [False, True, True, False]


def test_spot_time_runs_with_the_requests(tmp_path: Path):
    """Capacity changes as many times as fast as requests come, or as is said; the notice is a cloud's and stays."""
    trace = written(tmp_path, "s.json", '{"data": [1, 0], "gap_seconds": 60}')
    assert Options(spot=(trace,), rate_scale=6.0).spot_traces()[0].gap_s == 10.0
    assert Options(spot=(trace,), rate_scale=6.0, spot_scale=2.0).spot_traces()[0].gap_s == 30.0


def test_a_fleet_without_spot_replicas_has_nothing_to_govern(tmp_path: Path):
    """Spot traces that could do nothing are a mistake, told with the remedy."""
    with pytest.raises(ValueError, match=r"1 spot traces, but the fleet has 0 spot replicas; mark .*tier: spot"):
        played(tmp_path, "0,100,3\n", [{"data": [1], "gap_seconds": 1}], [RESERVED])


@pytest.mark.parametrize("policy", ["penstock", "llm_d", "cache_aware"])
def test_a_fleet_that_comes_and_goes_loses_no_request(tmp_path: Path, policy: str):
    """However often machines vanish, every request ends once, the ledgers add up, and a second run is the same."""
    spot = [{"data": [2, 1, 0, 2, 0, 1, 2] * 9, "prices": [1, 2, 1, 1, 3, 1, 1] * 9, "gap_seconds": 3}]
    requests = "".join(f"{number / 4},{300 + number % 7 * 300},{5 + number % 11 * 30}\n" for number in range(240))
    replicas = [RESERVED.replace("A100-80G", "L4-24G"), SPOT % "a", SPOT % "b"]

    first, _, lives = played(tmp_path, requests, spot, replicas, policy=policy, spot_notice_s=1.0)
    second, _, _ = played(tmp_path, requests, spot, replicas, policy=policy, spot_notice_s=1.0)
    assert len(lives) == 240
    assert first == second
    assert first["completed"] + first["rejected"] + first["failed"] == 240
    assert set(first["reasons"]) <= {"replica_lost", "no_replica", "deadline", "queue_full"}
    assert first["reasons"]["replica_lost"] > 0
