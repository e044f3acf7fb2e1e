"""`penstock replay` of what `penstock simulate --decisions` wrote: decided again, and priced."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from batching.request import Outcome, ReplicaId
from router.cli import build_app
from router.decision_file import Recording, read_decisions
from router.recorded import trace_of
from router.replay import Asked, fidelity, replay
from tests.support.decisions import Kept, fleet_file, prefix_trace
from tests.support.scheduling import profile, request


def cli(*args: str | Path) -> Result:
    return CliRunner().invoke(build_app(), [str(arg) for arg in args])


def recording(folder: Path, *more: str, replicas: int = 4, requests: int = 300) -> Path:
    """A simulated run, written as a gateway writes."""
    out, trace, fleet = folder / "d.jsonl", prefix_trace(folder, requests), fleet_file(folder, replicas)
    result = cli("simulate", "--trace", trace, "--fleet", fleet, "--decisions", out, *more)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("replicas", [4, 40])
def test_the_live_policy_decides_as_it_did(tmp_path: Path, replicas: int):
    """At least 99 % of the choices, prefixes, tiers, waiting and more candidates than are kept included."""
    found = fidelity(read_decisions(recording(tmp_path, replicas=replicas)).records)
    assert found.same + len(found.different) == 300
    assert found.ratio is not None
    assert found.ratio >= 0.99


def test_what_was_simulated_is_simulated_alike(tmp_path: Path):
    """Under the recorded policy, machines and seed the same requests have the same figures: the trace lost nothing that matters."""
    path = recording(tmp_path, requests=120)
    recorded, simulated = replay(Asked(file=path)).columns.values()
    for name in ("completed", "slo_attainment", "ttft_p50_s", "ttft_p99_s", "e2e_p99_s", "output_tokens", "usd_total"):
        assert simulated[name] == pytest.approx(recorded[name], rel=1e-6, abs=2e-6)  # rounded, name


def test_the_alternative_is_priced(tmp_path: Path):
    """--policy and --fleet each change a column; the table has what happened first, and the JSON has it all."""
    path, out = recording(tmp_path, requests=120), tmp_path / "out.json"
    other = fleet_file(tmp_path, 2, "two.yaml")
    result = cli("replay", path, "--policy", "round_robin", "--fleet", other, "--json", out)
    assert result.exit_code == 0
    assert "120 of 120 choices come out the same (100.00%)" in result.stdout
    for row in ("recorded  penstock, simulated  round_robin on two.yaml, simulated", "SLO attainment", "dollars"):
        assert row in result.stdout
    runs = json.loads(out.read_text())["runs"]
    assert list(runs) == ["recorded", "penstock, simulated", "round_robin on two.yaml, simulated"]
    assert runs["recorded"]["usd_total"] != runs["round_robin on two.yaml, simulated"]["usd_total"]


def test_a_choice_that_differs_is_named(tmp_path: Path):
    """Whom it went to then and whom the present code chooses, and how to see why."""
    path = recording(tmp_path, requests=60)
    lines = path.read_text().splitlines()
    row = json.loads(lines[2])
    row["choice"]["replica"] = next(offer[0] for offer in row["offers"] if offer[0] != row["choice"]["replica"])
    path.write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]))
    result = cli("replay", path)
    assert "59 of 60 choices come out the same (98.33%)" in result.stdout
    assert f"{row['request_id']}: {row['choice']['replica']} then, " in result.stdout
    assert f"penstock explain ID --file {path}" in result.stdout


def test_another_router_s_choices_cannot_be_decided_again(tmp_path: Path):
    """Its counters are not recorded, and it says so; its requests can be priced all the same."""
    result = cli("replay", recording(tmp_path, "--policy", "least_requests", requests=60), "--policy", "penstock")
    assert result.exit_code == 0
    assert "Decided again: none. least_requests decided" in result.stdout
    assert "least_requests, simulated  penstock, simulated" in result.stdout


def test_the_same_run_writes_the_same_file(tmp_path: Path):
    """As everything of the simulator: to the byte; an old file is begun anew."""
    first = recording(tmp_path, requests=40).read_bytes()
    assert recording(tmp_path, requests=40).read_bytes() == first


def edited(path: Path, **changes: object) -> Path:
    """The last record changed: outcome, stream and so on under `ended`."""
    lines = path.read_text().splitlines()
    row = json.loads(lines[-1])
    row["ended"].update(changes)
    path.write_text("\n".join([*lines[:-1], json.dumps(row)]))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outcome": "cancelled"}, "of the 39 that were streamed and answered in full"),
        ({"first_token_s": None}, "of the 39 that were streamed and answered in full"),
        ({"outcome": None, "finished_s": None}, "Not played: 1 still running."),
    ],
)
def test_what_says_nothing_of_latency_is_not_judged(tmp_path: Path, changes: dict[str, object], said: str):
    """Clients that left, answers that were not streamed: part of the load, not of the comparison; all columns alike."""
    result = cli("replay", edited(recording(tmp_path, requests=40), **changes))
    assert (result.exit_code, said in result.stdout) == (0, True)
    assert "completed  " in result.stdout
    assert [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("completed")] == [["39", "39"]]


@pytest.mark.parametrize(
    ("args", "said", "code"),
    [
        (["missing.jsonl"], "missing.jsonl: No such file or directory; name a readable file", 2),
        (["trace.jsonl"], "trace.jsonl:1: no decisions file", 2),
        (["d.jsonl", "--policy", "least_request"], "did you mean least_requests?", 2),
        (["d.jsonl", "--model", "x"], "no placement is for the model x; there are some for m", 2),
        (["d.jsonl", "--fleet", "trace.jsonl"], "trace.jsonl", 78),
    ],
)
def test_what_cannot_be_replayed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str, code: int
):
    """What is wrong and what to do, on stderr; the exit codes are simulate's."""
    recording(tmp_path, requests=10)
    monkeypatch.chdir(tmp_path)
    result = cli("replay", *args)
    assert result.exit_code == code
    assert said in result.stderr


@pytest.mark.parametrize("flag", [["--compare"], ["--policies", "penstock,round_robin"]])
def test_one_policy_a_file(tmp_path: Path, flag: list[str]):
    """A comparison's runs would write over one another."""
    result = cli("simulate", "--limit", "5", "--decisions", tmp_path / "d.jsonl", *flag)
    assert result.exit_code == 2
    assert "one policy a file" in result.stderr


def test_a_hedged_request_is_played_by_the_placement_that_answered():
    """The second placement lost, or won: in both cases the other one, cancelled, is part of the machines' time and no request of its own."""
    for winner in ("a", "b"):
        kept = Kept(profile("a", usd_per_hour=1.0), profile("b", usd_per_hour=2.0))
        first = kept.place(request("r"))
        second = kept.place(request("r", avoid=frozenset({ReplicaId("a")})), 0.5)
        won, lost = (first, second) if winner == "a" else (second, first)
        kept.scheduler.finish(lost.id, 0.6, outcome=Outcome.CANCELLED)
        kept.answer(won, first_s=0.6, last_s=2.0, tokens=30)
        records = kept.decisions.recent(limit=9)
        trace = trace_of(Recording(records=records, offsets=[0.0] * 2), None)
        assert [(one.life.replica, one.life.tokens, one.judged) for one in trace.played] == [(winner, 30, True)]
        assert len(trace.placements) == 2
