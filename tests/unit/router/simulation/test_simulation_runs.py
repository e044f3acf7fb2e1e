"""The offline simulator: that its figures can be trusted to be about the policies."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from batching.policies import BASELINES
from batching.scheduler import Scheduler
from config.schema import CostTier, Mechanism, Queue, Scheduling
from router.simulation.fleet import LINGER_S, Machine, build_machines, read_fleet
from router.simulation.report import percentile, show
from router.simulation.run import HOP_S, End, Life, Simulation, Watcher
from router.simulation.simulate import Options, Run, policies
from router.simulation.trace import Call, faster, synthetic_trace
from tests.support.simulation_files import FLEETS, MOONCAKE, ONE, written

CALL = Call(arrival_s=0.0, prompt_tokens=100, output_tokens=3)


def simulate(**options: Any) -> dict[str, Any]:
    return Run(Options(**options)).play()


@cache
def crowded(policy: str) -> dict[str, Any]:
    """Sixteen requests a second for four machines with tiny caches: more than the small ones can hold."""
    return simulate(fleet=FLEETS / "small_kv.yaml", policy=policy, rate_scale=3.2, limit=200, max_output_tokens=512)


def lone(calls: list[Call], machines: list[Machine], watcher: Watcher | None = None) -> Simulation:
    scheduler = Scheduler(Scheduling(), Queue())
    return Simulation(calls, machines, scheduler, model="m", max_wait_s=30.0, watcher=watcher)


def machines_of(folder: Path, text: str = ONE, seed: int = 0) -> list[Machine]:
    return build_machines(read_fleet(written(folder, "f.yaml", text)).replicas, seed)


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


def test_ours_is_the_first_policy_and_every_baseline_follows():
    """What --compare runs is what the registry holds."""
    assert policies() == ("penstock", *BASELINES, "oracle")


@pytest.mark.parametrize("policy", policies())
def test_every_request_ends_once(policy: str):
    """Completed, rejected and failed add up to the requests, under every policy, in all and in every group."""
    told = crowded(policy)
    assert told["completed"] + told["rejected"] + told["failed"] == told["requests"] == 200
    assert sum(row["requests"] for row in told["by_service_tier"].values()) == 200
    assert sum(row["completed"] for row in told["by_tenant"].values()) == told["completed"]
    assert sum(row["requests"] for row in told["by_cost_tier"].values()) == told["completed"] + told["failed"]


@pytest.mark.parametrize("policy", policies())
def test_a_run_is_a_function_of_its_options(policy: str):
    """The same options give the same figures to the byte, reading them again from the start."""
    options: dict[str, Any] = {"fleet": FLEETS / "mixed.yaml", "policy": policy, "rate_scale": 4.0, "limit": 60}
    assert json.dumps(simulate(**options)) == json.dumps(simulate(**options))


def test_the_seed_varies_the_steps():
    """Another seed on the same trace gives other times."""

    def last_s(seed: int) -> float:
        machines = build_machines(read_fleet(FLEETS / "homogeneous.yaml").replicas, seed)
        simulation = Simulation([CALL], machines, Scheduler(Scheduling(), Queue()), model="sim-8b", max_wait_s=30.0)
        return simulation.run().lives[0].last_s

    assert last_s(seed=1) != last_s(seed=2)


def test_the_trace_decides_how_much_is_generated():
    """Whoever sends everything on at once gets the same answers to the same requests, wherever they go."""
    told = [crowded(policy) for policy in ("round_robin", "least_requests")]
    assert len({(t["completed"], t["output_tokens"]) for t in told}) == 1


def test_penstock_spares_the_engines_preemptions():
    """Where counting requests overfills small KV caches, counting blocks hardly does; what is preempted is recomputed."""
    assert crowded("penstock")["engine_preemptions"] * 3 < crowded("round_robin")["engine_preemptions"]
    assert crowded("penstock")["recomputed_tokens"] * 10 < crowded("round_robin")["recomputed_tokens"]


def test_a_lone_request_takes_the_engines_time_and_two_hops(tmp_path: Path):
    """TTFT is the way there, one exact step of prefill, and the way back: nothing else is added."""
    machines = machines_of(tmp_path)
    life = lone([CALL], machines).run().lives[0]
    model = machines[0].options.step_model()
    assert life.first_s == pytest.approx(2 * HOP_S + model.step_s(prefill_tokens=100, prefill_context=100))
    assert life.tokens == 3


def test_equal_prefixes_hit_the_cache(tmp_path: Path):
    """The second of two equal prompts finds all its blocks but the one with its last token."""
    told = simulate(fleet=written(tmp_path, "f.yaml", ONE), trace=written(tmp_path, "t.jsonl", MOONCAKE))
    assert told["prefix_hit_ratio"] == pytest.approx((1024 - 16) / 2048, abs=1e-6)


@pytest.mark.parametrize("policy", policies())
def test_a_prompt_longer_than_any_machine_is_a_rejection(tmp_path: Path, policy: str):
    """What no engine could hold is refused under every policy, and misses the objective."""
    trace = written(tmp_path, "t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n0,1600,5\n1,100,5\n")
    told = simulate(fleet=written(tmp_path, "f.yaml", ONE), trace=trace, policy=policy)
    assert (told["completed"], told["rejected"], told["slo_attainment"]) == (1, 1, 0.5)
    assert told["reasons"] == {"context_length": 1}


def test_groups_are_those_of_the_trace(tmp_path: Path):
    """Figures by tenant and by service tier count the requests that named them."""
    text = "TIMESTAMP,ContextTokens,GeneratedTokens,tenant,service_tier\n0,100,5,a,priority\n1,100,5,b,\n2,100,5,b,\n"
    told = simulate(fleet=written(tmp_path, "f.yaml", ONE), trace=written(tmp_path, "t.csv", text))
    assert {name: row["requests"] for name, row in told["by_tenant"].items()} == {"a": 1, "b": 2}
    assert {name: row["requests"] for name, row in told["by_service_tier"].items()} == {"default": 2, "priority": 1}


def test_max_wait_s_of_a_request_is_kept(tmp_path: Path):
    """A request that may wait for less than the machine needs to be free again is sent away."""
    text = '{"timestamp": 0, "input_length": 1000, "output_length": 500}\n'
    text += '{"timestamp": 1, "input_length": 1000, "output_length": 500, "max_wait_s": 0.1}\n'
    told = simulate(fleet=written(tmp_path, "f.yaml", ONE), trace=written(tmp_path, "t.jsonl", text))
    assert told["reasons"] == {"deadline": 1}


def test_a_machine_that_is_not_reserved_is_paid_while_in_use_and_a_minute_longer(tmp_path: Path):
    """From the first request until LINGER_S after the last, again for the next; a reserved one all the time."""
    machines = machines_of(tmp_path, ONE.replace("gpu:", "cost: {tier: on_demand, usd_per_hour: 3600}, gpu:"))
    far = Call(arrival_s=1000.0, prompt_tokens=100, output_tokens=3)
    life, later = lone([CALL, far], machines).run().lives
    used_s = life.last_s - life.arrival_s + later.last_s - later.arrival_s - 4 * HOP_S
    assert machines[0].billed_usd(2000.0) == pytest.approx(used_s + 2 * LINGER_S)
    reserved = machines_of(tmp_path, ONE.replace("gpu:", "cost: {tier: reserved, usd_per_hour: 3600}, gpu:"))
    lone([CALL], reserved).run()
    assert reserved[0].profile.cost_tier is CostTier.RESERVED
    assert reserved[0].billed_usd(2000.0) == pytest.approx(2000.0)


def test_a_watcher_sees_every_end(tmp_path: Path):
    """Each request is shown once, as it ends; samples come as often as was asked for."""

    class Seen(Watcher):
        sample_every_s = 0.5

        def __init__(self) -> None:
            self.ends: list[tuple[int, End | None]] = []
            self.times: list[float] = []

        def ended(self, number: int, life: Life, now: float) -> None:
            self.ends.append((number, life.end))

        def sample(self, simulation: Simulation, now: float) -> None:
            self.times.append(now)

    seen = Seen()
    lone([CALL, Call(arrival_s=1.2, prompt_tokens=100, output_tokens=3)], machines_of(tmp_path), seen).run()
    assert seen.ends == [(0, End.COMPLETED), (1, End.COMPLETED)]
    assert seen.times == [0.0, 0.5, 1.0]


def test_a_fleet_without_a_common_model_is_refused(tmp_path: Path):
    """A trace names no model, so there must be exactly one."""
    two = ONE + ONE.removeprefix("replicas:\n").replace("name: a", "name: b").replace("[m]", "[n]")
    with pytest.raises(ValueError, match="exactly one common model"):
        Run(Options(fleet=written(tmp_path, "f.yaml", two)))


def test_percentiles_are_nearest_rank():
    """The value that the given share of values does not exceed; of nothing there is none."""
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.51, 0.99)] == [2.0, 3.0, 4.0]
    assert percentile([], 0.5) is None


def test_what_people_see_leaves_out_what_says_nothing():
    """A group of one repeats the whole and is not shown; unknown is a dash."""
    text = show({"n": 1, "x": None, "by": {"only": {"n": 1}}, "of": {"a": {"n": 1}, "b": {"n": 2.5}}})
    assert text.splitlines() == ["n    1", "x    -", "of", "  a  n 1", "  b  n 2.5"]


def test_the_oracle_knows_how_long_answers_are():
    """It is our own rule with the one thing that life does not tell: its figures differ from ours on the same trace."""
    ours, oracle = (
        simulate(fleet=FLEETS / "small_kv.yaml", policy=policy, rate_scale=3.2, limit=120)
        for policy in ("penstock", "oracle")
    )
    assert ours["requests"] == oracle["requests"]
    assert ours["ttft_p99_s"] != oracle["ttft_p99_s"]


def test_a_mechanism_can_be_switched_off_for_a_run():
    """`--without` names it in the result and changes what happens."""
    options: dict[str, Any] = {"fleet": FLEETS / "small_kv.yaml", "rate_scale": 3.2, "limit": 120}
    off = simulate(**options, without=(Mechanism.DEADLINES, Mechanism.LATE_LAST))
    assert off["run"]["without"] == ["deadlines", "late_last"]
    assert off["ttft_p99_s"] != simulate(**options)["ttft_p99_s"]


@pytest.mark.parametrize(("policy", "told"), [("penstock", True), ("oracle", True), ("llm_d", False)])
def test_the_oracle_sees_the_engines_pace_as_ours_does(policy: str, told: bool):
    """All that it knows more is the length of answers: both are shown a stream's tokens at every step, baselines are not."""
    run = Run(Options(limit=1, policy=policy))
    seen: list[int] = []
    told_tokens = run._scheduler.on_tokens

    def on_tokens(lease: Any, emitted: int, now: float) -> None:
        seen.append(emitted)
        told_tokens(lease, emitted, now)

    run._scheduler.on_tokens = on_tokens  # type: ignore[method-assign]
    run.play()
    assert (len(seen) > 0.5 * seen[-1]) is told
