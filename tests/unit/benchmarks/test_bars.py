"""The programs that answer for a bar each, on traces of a few requests: what they compare, and the files that they write."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablations, affinity, frozen, oracle
from benchmarks.runs import columns, each, ratio, transposed
from benchmarks.tables import render
from config.schema import Mechanism
from router.simulation.freeze import Freeze
from router.simulation.simulate import Options
from tests.support.simulation_files import FLEETS, written

HOMOGENEOUS = FLEETS / "homogeneous.yaml"
BUSY = Options(fleet=HOMOGENEOUS, limit=200, rate_scale=4.0)


def conversations(folder: Path) -> Path:
    """Sixty requests of six conversations, each turn the last one's prompt and a block more."""
    rows = [
        {
            "timestamp": 60 * number,
            "input_length": 512 * (number // 6 + 2),
            "output_length": 30,
            "hash_ids": [1000 * (number % 6) + block for block in range(number // 6 + 2)],
        }
        for number in range(60)
    ]
    return written(folder, "turns.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def document(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(path.read_text())
    assert render([told])  # whatever is written can be shown
    return told


def test_results_keep_their_order_and_names(capsys: pytest.CaptureFixture[str]):
    """Each job's figures stand under its name; stderr tells of every end, stdout of nothing."""
    assert each(lambda number: {"n": number}, {"b": 2, "a": 1}) == {"b": {"n": 2}, "a": {"n": 1}}
    assert capsys.readouterr() == ("", "1/2 b\n2/2 a\n")


def test_processes_change_no_figure():
    """Two at a time give what one after the other gives."""
    jobs = {name: replace(BUSY, limit=20, policy=name) for name in ("penstock", "round_robin")}
    assert each(ablations.play, jobs, 2) == each(ablations.play, jobs)


def test_unknown_has_no_ratio():
    """Nor has anything over nothing; a count may stand over a share."""
    assert [ratio(1, 4.0), ratio(0.0, 2), ratio(None, 1.0), ratio(1.0, 0), ratio("x", 1)] == [
        0.25,
        0.0,
        None,
        None,
        None,
    ]


def test_a_table_turns_and_aligns():
    """A column a figure where runs are many; an unknown figure is a dash."""
    turned = transposed({"ours": {"x": 1.5}, "other": {"x": 2.0, "y": 3}})
    assert turned == {"x": {"ours": 1.5, "other": 2.0}, "y": {"ours": None, "other": 3}}
    assert columns(turned).splitlines() == ["         x  y", "ours   1.5  -", "other    2  3"]


def test_a_reference_that_never_meets_the_share_is_held_to_what_it_has(capsys: pytest.CaptureFixture[str]):
    """Its share at the lowest rate, in whole percent, takes the place of what was asked, and stderr says so."""
    options = replace(BUSY, policy="cache_aware", limit=80)
    rate, share, found = affinity.reference_rate(options, 18.0, 60.0, share=0.999, tolerance=0.5)
    assert 18.0 <= rate < 60.0
    assert share < 0.999
    assert share == round(share, 2) <= found["slo_attainment"]
    assert f"never meets 0.999: going by {share:g}" in capsys.readouterr().err


def test_a_reference_that_meets_the_share_is_asked_no_less():
    """Where it is in time, the share stays what was asked."""
    options = replace(BUSY, policy="cache_aware", limit=40)
    assert affinity.reference_rate(options, 1.0, 1.2, share=0.99, tolerance=0.5)[:2] == (1.0, 0.99)


def test_affinity_shows_hits_over_the_reference_and_both_highest_rates(tmp_path: Path):
    """The reference is its own measure; our affinity is there to find what blindness to it does not."""
    out = tmp_path / "affinity.json"
    words = ["--fleet", str(HOMOGENEOUS), "--trace", str(conversations(tmp_path)), "--policies", "penstock"]
    words += ["--low", "1", "--high", "1.5", "--tolerance", "0.5", "--json", str(out)]
    assert affinity.main(words) == 0
    figures = document(out)["figures"]
    assert set(figures) == {"cache_aware", "penstock", "penstock without prefix"}
    assert figures["cache_aware"]["hits_over_reference"] == 1.0
    assert figures["penstock"]["prefix_hit_ratio"] > 2 * figures["penstock without prefix"]["prefix_hit_ratio"]
    assert figures["penstock"]["highest_rate"] == figures["penstock without prefix"]["highest_rate"] == 1.0


def test_the_freeze_is_in_the_middle():
    """As much before as after, from a whole second on; a trace that is too short is refused."""
    window = frozen.middle(replace(BUSY, limit=400), 5.0)
    last_s = frozen.Run(replace(BUSY, limit=400)).calls[-1].arrival_s
    assert abs(window.start_s - (last_s - window.end_s)) <= 1.0
    with pytest.raises(ValueError, match="have no middle"):
        frozen.middle(replace(BUSY, limit=10), 60.0)


def test_who_arrives_in_the_freeze_is_counted_on_its_own():
    """Under llm_d, which halts, those are late while most of the run is in time."""
    window = Freeze(4.0, 3.0)
    fresh, silent = (frozen.watched((replace(BUSY, policy="llm_d", freeze_metrics=f), window)) for f in (None, window))
    column = frozen.compared(4.0, {"fresh": fresh, "silent": silent})
    assert column["attainment_meanwhile"] > 0.9
    assert column["silent: drop_points_meanwhile"] > 50
    assert 0 < column["silent: drop_points"] < column["silent: drop_points_meanwhile"]


def test_frozen_runs_each_policy_at_its_own_rate(tmp_path: Path):
    """A rate behind a name is that policy's; ours loses 2 points at most."""
    out = tmp_path / "frozen.json"
    words = ["--fleet", str(HOMOGENEOUS), "--limit", "200", "--seconds", "3", "--rate", "3"]
    assert frozen.main([*words, "--policies", "penstock:4,llm_d", "--modes", "silent", "--json", str(out)]) == 0
    figures = document(out)["figures"]
    assert (figures["penstock"]["rate_scale"], figures["llm_d"]["rate_scale"]) == (4.0, 3.0)
    assert figures["penstock"]["silent: drop_points"] <= 2 < figures["llm_d"]["silent: drop_points"]


def test_ablations_switch_off_one_at_a_time():
    """Each row differs from the first by one mechanism; the oracle has them all."""
    settings = ablations.settings(BUSY, list(Mechanism))
    assert settings.pop("penstock") == BUSY
    assert settings.pop("oracle") == replace(BUSY, policy="oracle")
    assert {name: run.without for name, run in settings.items()} == {f"without {m}": (m,) for m in Mechanism}


def test_a_mechanism_costs_what_attainment_falls_by():
    """In points, of a hundred, against everything on; who does better without it costs less than nothing."""
    shown = dict.fromkeys(ablations.play(replace(BUSY, limit=1)), 0.0)
    runs = {"penstock": 0.99, "without hold": 0.975, "oracle": 0.995}
    told = ablations.compared({name: {**shown, "slo_attainment": attained} for name, attained in runs.items()})
    assert {name: row["cost_points"] for name, row in told.items()} == {
        "penstock": 0,
        "without hold": 1.5,
        "oracle": -0.5,
    }


def test_ablations_are_a_table_with_a_row_a_run(tmp_path: Path):
    """A column a figure; what is off changes what happens."""
    out = tmp_path / "ablations.json"
    words = ["--fleet", str(FLEETS / "mixed.yaml"), "--limit", "150", "--rate", "12", "--mechanisms", "cost"]
    assert ablations.main([*words, "--json", str(out)]) == 0
    tails = document(out)["figures"]["ttft_p99_s"]
    assert list(tails) == ["penstock", "without cost", "oracle"]
    assert tails["without cost"] != tails["penstock"]


@pytest.mark.parametrize(
    "result",
    [
        {"benchmark": "rate", "run": "r", "figures": {"penstock": {"rate": 6.0}, "oracle": {"rate": 8.0}, "llm_d": {}}},
        {"benchmark": "ablations", "run": "r", "figures": {"rate": {"penstock": 6.0, "oracle": 8.0}}},
    ],
)
def test_the_distance_to_the_oracle_is_a_ratio(result: dict[str, Any]):
    """Ours over the oracle's, whether a column is a policy or a figure."""
    assert oracle.collected([result], ["rate"]) == {
        "penstock": {"r: rate": 6.0}, "oracle": {"r: rate": 8.0}, "ratio": {"r: rate": 0.75}
    }  # fmt: skip


def test_a_comparison_of_the_simulator_has_distances_too():
    """`penstock simulate --policies penstock,oracle --json` is named by its run, without the policy."""
    run = {"fleet": "f.yaml", "policy": "penstock", "seed": 1}
    told = {"penstock": {"run": run, "ttft_p99_s": 3.0}, "oracle": {"run": run, "ttft_p99_s": 2.0}}
    assert oracle.collected([told], ["ttft_p99_s"])["ratio"] == {"fleet=f.yaml/seed=1: ttft_p99_s": 1.5}


def test_without_an_oracle_there_is_no_distance():
    """A result of other policies alone gives no row; nor does a figure that nobody asked for."""
    alone = {"benchmark": "rate", "run": "r", "figures": {"penstock": {"rate": 6.0}}}
    both = {"benchmark": "rate", "run": "r", "figures": {"penstock": {"rate": 6.0}, "oracle": {"rate": 8.0}}}
    assert oracle.collected([alone], ["rate"])["ratio"] == {}
    assert oracle.collected([both], ["ttft_p99_s"])["ratio"] == {}
