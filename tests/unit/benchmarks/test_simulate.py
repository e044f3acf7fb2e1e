"""The offline simulator: what it reads, and that its figures can be trusted to be about the policies."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulate.__main__ import POLICIES, Options, main, simulate
from benchmarks.simulate.fleet import build_machines, read_fleet
from benchmarks.simulate.policies import Immediate
from benchmarks.simulate.report import percentile
from benchmarks.simulate.run import HOP_S, Simulation
from benchmarks.simulate.trace import Call, faster, read_trace, synthetic_trace

FLEETS = Path(__file__).resolve().parents[3] / "benchmarks" / "fleets"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9305900,396,0
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 27482, "input_length": 1024, "output_length": 3, "hash_ids": [0, 1]}
"""
ONE = """replicas:
  - {name: a, backend: simulated, models: [m], gpu: {type: A100-80G}, capacity: {kv_blocks: 100}}
"""


@cache
def crowded(policy: str) -> dict[str, Any]:
    """Sixteen requests a second for four machines with tiny caches: more than the small ones can hold."""
    options = Options(fleet=FLEETS / "small_kv.yaml", policy=policy, rate_scale=3.2, limit=200, max_output_tokens=512)
    return simulate(options)["figures"]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_azure_traces_are_recognised(tmp_path: Path):
    """A CSV's dates become seconds since its first request, its lengths tokens; an answer of none counts as one."""
    calls = read_trace(written(tmp_path, "t.csv", AZURE))
    assert calls == [
        Call(arrival_s=0.0, prompt_tokens=374, output_tokens=44),
        Call(arrival_s=4.25, prompt_tokens=396, output_tokens=1),
    ]


def test_mooncake_traces_are_recognised(tmp_path: Path):
    """JSON lines become seconds, lengths and prefix blocks, whatever the file is called."""
    calls = read_trace(written(tmp_path, "t.csv", MOONCAKE))
    assert [call.arrival_s for call in calls] == [0.0, 27.482]
    assert calls[0].prefix_blocks == (0, 1)


def test_plain_seconds_and_a_limit(tmp_path: Path):
    """Timestamps may be seconds, rows may be out of order, and a limit takes the earliest."""
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n9.5,30,3\n7.5,10,1\n8.5,20,2\n"
    calls = read_trace(written(tmp_path, "t.csv", text), limit=2)
    assert [(call.arrival_s, call.prompt_tokens) for call in calls] == [(0.0, 10), (1.0, 20)]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "TIMESTAMP,ContextTokens,GeneratedTokens\n", ""])
def test_other_files_are_refused_by_name(tmp_path: Path, text: str):
    """A file of neither shape, or without a request, is an error that names it."""
    with pytest.raises(ValueError, match=r"t\.csv"):
        read_trace(written(tmp_path, "t.csv", text))


def test_a_synthetic_trace_is_its_seed():
    """The same seed gives the same requests, a longer trace begins with the shorter, another seed differs."""
    assert synthetic_trace(1, 50) == synthetic_trace(1, 80)[:50]
    assert synthetic_trace(1, 50) != synthetic_trace(2, 50)


def test_rate_scale_shortens_time_only():
    """Twice the rate halves every arrival time and touches no length."""
    before = synthetic_trace(1, 5)
    after = faster(before, 2.0)
    assert [call.arrival_s * 2 for call in after] == [call.arrival_s for call in before]
    assert [call.prompt_tokens for call in after] == [call.prompt_tokens for call in before]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_once(policy: str):
    """Completed, rejected and failed add up to the requests, under every policy."""
    told = crowded(policy)
    assert told["completed"] + told["rejected"] + told["failed"] == told["requests"] == 200
    assert sum(told["by_cost_tier"].values()) == told["completed"] + told["failed"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_is_a_function_of_its_options(policy: str):
    """The same options give the same figures to the byte, reading them again from the start."""
    options = Options(fleet=FLEETS / "mixed.yaml", policy=policy, rate_scale=4, limit=60)
    assert json.dumps(simulate(options)["figures"]) == json.dumps(simulate(options)["figures"])


def test_the_seed_varies_the_steps():
    """Another seed on the same trace gives other times."""
    assert _one_answer(seed=1) != _one_answer(seed=2)


def test_policies_serve_the_same_work():
    """The trace decides how many tokens are generated, not the policy: same rejections, same output."""
    told = [crowded(policy) for policy in POLICIES]
    assert len({(t["completed"], t["output_tokens"]) for t in told}) == 1


def test_penstock_spares_the_engines_preemptions():
    """Where counting requests overfills small KV caches, counting blocks does not."""
    assert crowded("penstock")["engine_preemptions"] == 0
    assert crowded("round_robin")["engine_preemptions"] > 0


def test_a_lone_request_takes_the_engines_time_and_two_hops(tmp_path: Path):
    """TTFT is the way there, one exact step of prefill, and the way back: nothing else is added."""
    machines = build_machines(read_fleet(written(tmp_path, "f.yaml", ONE)).replicas, seed=0)
    call = Call(arrival_s=0.0, prompt_tokens=100, output_tokens=3)
    policy = Immediate([machine.id for machine in machines], by_load=False)
    life = Simulation([call], machines, policy, wall=lambda: 0.0).run().lives[0]
    model = machines[0].engine.options.step_model()
    assert life.first_s == pytest.approx(2 * HOP_S + model.step_s(prefill_tokens=100, prefill_context=100))
    assert life.tokens == 3


def test_equal_prefixes_hit_the_cache(tmp_path: Path):
    """The second of two equal prompts finds all its blocks but the one with its last token."""
    trace = written(tmp_path, "t.jsonl", MOONCAKE)
    told = simulate(Options(fleet=written(tmp_path, "f.yaml", ONE), trace=trace))["figures"]
    assert told["prefix_hit_ratio"] == pytest.approx((1024 - 16) / 2048, abs=1e-6)


def test_a_prompt_longer_than_any_machine_is_a_rejection(tmp_path: Path):
    """What no engine could hold is refused under every policy, and misses the objective."""
    trace = written(tmp_path, "t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n0,1600,5\n1,100,5\n")
    for policy in POLICIES:
        told = simulate(Options(fleet=written(tmp_path, "f.yaml", ONE), trace=trace, policy=policy))["figures"]
        assert (told["completed"], told["rejected"], told["slo_attainment"]) == (1, 1, 0.5)
        assert told["reasons"] == {"context_length": 1}


def test_percentiles_are_nearest_rank():
    """The value that the given share of values does not exceed; of nothing there is none."""
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.51, 0.99)] == [2.0, 3.0, 4.0]
    assert percentile([], 0.5) is None


def test_the_result_names_its_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The JSON holds figures, wall times apart, and the command without this machine's folders."""
    out = tmp_path / "r.json"
    fleet = written(tmp_path, "f.yaml", ONE)
    assert main(["--fleet", str(fleet), "--limit", "3", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["command"] == "python -m benchmarks.simulate --fleet f.yaml --limit 3"
    assert result["figures"]["requests"] == 3
    assert set(result["wall"]) == {"date", "seconds", "requests_per_min", "decisions_per_s"}
    assert "slo_attainment" in capsys.readouterr().out


def test_a_bad_fleet_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A fleet file with a mistake ends with the configuration's own message and exit code 78."""
    fleet = written(tmp_path, "f.yaml", ONE.replace("kv_blocks", "kv_block"))
    with pytest.raises(SystemExit) as ended:
        main(["--fleet", str(fleet)])
    assert ended.value.code == 78
    assert "kv_block" in capsys.readouterr().err


def _one_answer(seed: int) -> float:
    machines = build_machines(read_fleet(FLEETS / "homogeneous.yaml").replicas, seed)
    policy = Immediate([machine.id for machine in machines], by_load=True)
    call = Call(arrival_s=0.0, prompt_tokens=100, output_tokens=20)
    return Simulation([call], machines, policy, wall=lambda: 0.0).run().lives[0].last_s
