"""Who suffers from whom: batch beside interactive work, a greedy tenant beside light ones: `python -m benchmarks.shared_fleet`.

Each scenario is run alone and together on one fleet in virtual time, under each policy. README.md says what it does not show.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from batching.policies import BASELINES
from batching.request import ServiceTier
from batching.scheduler import Scheduler
from benchmarks.provenance import provenance, today
from router.simulation.fleet import build_machines, model_of, read_fleet
from router.simulation.report import figures
from router.simulation.run import PROBE_INTERVAL_S, Simulation
from router.simulation.simulate import OURS
from router.simulation.trace import Call, synthetic_trace

_BATCH_PROMPT, _BATCH_OUTPUT = 1500, 300  # tokens: documents to summarise
_HOUR_S = 3600.0


def played(fleet: Path, calls: Iterable[Call], policy_name: str, seed: int) -> dict[str, object]:
    """The figures of one run."""
    ordered = sorted(calls, key=lambda call: call.arrival_s)
    config = read_fleet(fleet)
    machines = build_machines(config.replicas, seed)
    policy = None if policy_name == OURS else BASELINES[policy_name](seed)
    queue = config.queue.model_copy(update={"max_requests": len(ordered) + 1})
    scheduler = Scheduler(config.scheduling, queue, stale_after_s=config.probe.stale_after_s, policy=policy)
    simulation = Simulation(
        ordered,
        machines,
        scheduler,
        model=model_of(machines),
        max_wait_s=config.queue.max_wait_s,
        probe_interval_s=(policy and policy.scrape_interval_s) or PROBE_INTERVAL_S,
    )
    return figures(simulation.run(), ordered, machines)


def interactive(rate_per_s: float, seconds: float, seed: int) -> list[Call]:
    """Poisson arrivals of chat-like lengths."""
    random, calls, now_s = Random(seed), [], 0.0
    for call in synthetic_trace(seed, int(rate_per_s * seconds)):
        calls.append(replace(call, arrival_s=now_s, prompt_tokens=min(call.prompt_tokens, 8000)))
        now_s += random.expovariate(rate_per_s)
    return calls


def batch(number: int) -> list[Call]:
    """All there at once, and patient."""
    return [
        Call(
            arrival_s=0.001 * index,
            prompt_tokens=_BATCH_PROMPT,
            output_tokens=_BATCH_OUTPUT,
            service_tier=ServiceTier.BATCH,
            max_wait_s=24 * _HOUR_S,
            tenant="bulk",
        )
        for index in range(number)
    ]


def batch_beside_interactive(
    fleet: Path, policy: str, rate_per_s: float, seconds: float, jobs: int, seed: int
) -> dict[str, object]:
    """TTFT of the interactive requests without and with batch; the batch's throughput without and with them."""
    chat, bulk = interactive(rate_per_s, seconds, seed), batch(jobs)
    alone = played(fleet, chat, policy, seed)["by_service_tier"]["default"]  # type: ignore[index]
    bulk_alone = played(fleet, bulk, policy, seed)["by_service_tier"]["batch"]  # type: ignore[index]
    both = played(fleet, [*chat, *bulk], policy, seed)["by_service_tier"]
    with_batch, with_chat = both["default"], both["batch"]  # type: ignore[index]
    return {
        "interactive_ttft_p95_alone_s": alone["ttft_p95_s"],
        "interactive_ttft_p95_with_batch_s": with_batch["ttft_p95_s"],
        "ttft_ratio": round(with_batch["ttft_p95_s"] / alone["ttft_p95_s"], 3),
        "interactive_attainment": with_batch["slo_attainment"],
        "batch_completed": f"{with_chat['completed']}/{with_chat['requests']}",
        "batch_seconds_alone": bulk_alone["last_s"],
        "batch_seconds_with_interactive": with_chat["last_s"],
        "batch_throughput_ratio": round(bulk_alone["last_s"] / with_chat["last_s"], 3),
    }


def greedy_tenant(
    fleet: Path, policy: str, rate_per_s: float, seconds: float, greed: float, seed: int
) -> dict[str, object]:
    """p99 TTFT of nine light tenants, alone and beside one that asks `greed` times what all of them ask together."""
    light = [
        replace(call, tenant=f"light{index % 9}") for index, call in enumerate(interactive(rate_per_s, seconds, seed))
    ]
    heavy = [replace(call, tenant="greedy") for call in interactive(rate_per_s * greed, seconds, seed + 1)]
    alone = played(fleet, light, policy, seed)
    both = played(fleet, [*light, *heavy], policy, seed)["by_tenant"]
    worst = max(both[f"light{index}"]["ttft_p99_s"] for index in range(9))  # type: ignore[index]
    return {
        "light_ttft_p99_alone_s": alone["ttft_p99_s"],
        "worst_light_ttft_p99_beside_greedy_s": worst,
        "ttft_ratio": round(worst / alone["ttft_p99_s"], 3),  # type: ignore[operator]
        "light_attainment": min(both[f"light{index}"]["slo_attainment"] for index in range(9)),  # type: ignore[index]
        "greedy_attainment": both["greedy"]["slo_attainment"],  # type: ignore[index]
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_fleet", description=__doc__)
    parser.add_argument("--fleet", type=Path, default=Path("benchmarks/fleets/homogeneous.yaml"))
    parser.add_argument("--policies", default=f"{OURS},least_requests,llm_d,dynamo")
    parser.add_argument("--rate", type=float, default=8.0, help="interactive requests a second  [default: 8]")
    parser.add_argument("--seconds", type=float, default=120.0, help="[default: 120]")
    parser.add_argument("--batch", type=int, default=6000, help="batch requests  [default: 6000]")
    parser.add_argument(
        "--greed", type=float, default=8.0, help="the greedy tenant's rate over all others'  [default: 8]"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    said = parser.parse_args(arguments)
    results: dict[str, dict[str, object]] = {}
    for policy in said.policies.split(","):
        beside = batch_beside_interactive(said.fleet, policy, said.rate, said.seconds, said.batch, said.seed)
        tenants = greedy_tenant(said.fleet, policy, said.rate, said.seconds, said.greed, said.seed)
        results[policy] = {
            **{f"batch: {name}": value for name, value in beside.items()},
            **{f"tenants: {name}": value for name, value in tenants.items()},
        }
        print(policy, json.dumps(results[policy], indent=1), flush=True)
    if said.json:
        document = {
            "benchmark": "shared_fleet",
            "run": f"shared_fleet/fleet={said.fleet.stem}/rate={said.rate:g}/batch={said.batch}/greed={said.greed:g}/seed={said.seed}",
            **provenance("benchmarks.shared_fleet", arguments),
            "figures": results,
            "wall": {"date": today()},
        }
        said.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
