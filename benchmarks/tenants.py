"""One greedy tenant beside nine light ones: what the light ones notice, and how far apart those that wait are served."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.mixes import Ended, played
from benchmarks.service import bound, service_gap
from router.simulation.trace import Call, synthetic_trace

LIGHT: Final = tuple(f"light{number}" for number in range(9))
GREEDY: Final = "greedy"


def interactive(rate_per_s: float, seconds: float, seed: int) -> list[Call]:
    """Poisson arrivals of chat-like lengths."""
    random, calls, now_s = Random(seed), [], 0.0
    for call in synthetic_trace(seed, int(rate_per_s * seconds)):
        calls.append(replace(call, arrival_s=now_s, prompt_tokens=min(call.prompt_tokens, 8000)))
        now_s += random.expovariate(rate_per_s)
    return calls


def greedy_tenant(
    fleet: Path, policy: str, rate_per_s: float, seconds: float, greed: float, seed: int
) -> dict[str, object]:
    """p99 TTFT of the light tenants, alone and beside one that asks `greed` times what all of them ask together."""
    light = [
        replace(call, tenant=LIGHT[index % len(LIGHT)])
        for index, call in enumerate(interactive(rate_per_s, seconds, seed))
    ]
    heavy = [replace(call, tenant=GREEDY) for call in interactive(rate_per_s * greed, seconds, seed + 1)]
    alone_s = played(fleet, light, policy, seed).figures["ttft_p99_s"]
    both = played(fleet, [*light, *heavy], policy, seed)
    by_tenant = both.figures["by_tenant"]
    worst_s = max(by_tenant[tenant]["ttft_p99_s"] for tenant in LIGHT)
    requests: dict[str, list[Ended]] = {}
    for ended in both.requests:
        requests.setdefault(ended.call.tenant, []).append(ended)
    gap, most = service_gap(list(requests.values())), bound(both.requests)
    return {
        "light_ttft_p99_alone_s": alone_s,
        "worst_light_ttft_p99_beside_greedy_s": worst_s,
        "ttft_ratio": round(worst_s / alone_s, 3),
        "light_attainment": min(by_tenant[tenant]["slo_attainment"] for tenant in LIGHT),
        "greedy_attainment": by_tenant[GREEDY]["slo_attainment"],
        "service_gap_tokens": None if gap is None else round(gap),
        "vtc_bound_tokens": round(most),
        "gap_over_bound": None if gap is None else round(gap / most, 3),
    }
