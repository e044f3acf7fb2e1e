"""From what was observed to the figures of a run: latency, goodput under a stated objective, money.

Every figure is a function of trace, fleet, policy and seed: nothing here knows how long the run took.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from backends.simulated.statistics import Statistics
from router.simulation.fleet import Machine
from router.simulation.run import GAP_RESOLUTION_S, End, Life, Observed
from router.simulation.trace import Call

# The objective every policy is judged by, whatever the fleet's file sets for placement: the gateway's defaults.
TTFT_S: Final = 1.0
TTFT_S_PER_TOKEN: Final = 0.001  # for each prompt token beyond
TTFT_BASE_TOKENS: Final = 1000
TPOT_S: Final = 0.1
_DIGITS: Final = 6  # of seconds, ratios and dollars; microseconds are beyond what a simulation knows


def figures(observed: Observed, calls: Sequence[Call], machines: Sequence[Machine]) -> dict[str, object]:
    """All figures of a run; a percentile of nothing is None."""
    lives = observed.lives
    ends = Counter(life.end for life in lives)
    completed = [life for life in lives if life.end is End.COMPLETED]
    good = sum(meets(life, call) for life, call in zip(lives, calls, strict=True))
    duration_s = observed.end_s
    trace_s = max(calls[-1].arrival_s, 1.0)
    engines = [told for machine in machines for told in machine.statistics()]
    tokens = sum(life.tokens for life in lives)
    return {
        "requests": len(lives),
        "completed": ends[End.COMPLETED],
        "rejected": ends[End.REJECTED],
        "failed": ends[End.FAILED],
        "reasons": dict(sorted(Counter(life.reason for life in lives if life.reason).items())),
        "duration_s": round(duration_s, _DIGITS),
        "slo_attainment": round(good / len(lives), _DIGITS),
        "goodput_rps": _ratio(good, trace_s),
        **_latencies(observed, completed),
        **_engines(engines),
        "kv_usage_p50": _counted_percentile(observed.kv_usage, 0.5, 0.01),
        "recomputed_tokens": observed.recomputed_tokens + sum(told.recomputed_tokens_total for told in engines),
        "output_tokens": tokens,
        **_money(machines, duration_s, tokens),
        "by_service_tier": _groups(observed, calls, lambda call: call.service_tier.label),
        "by_cost_tier": _by_cost_tier(machines, duration_s),
        "by_tenant": _groups(observed, calls, lambda call: call.tenant),
        "decisions_per_s": _ratio(observed.decisions, duration_s),
    }


def meets(life: Life, call: Call) -> bool:
    """Whether a request met both objectives; one that did not complete did not."""
    if life.end is not End.COMPLETED or life.first_s is None:
        return False
    ttft_s = TTFT_S + TTFT_S_PER_TOKEN * max(0, call.prompt_tokens - TTFT_BASE_TOKENS)
    return life.first_s - life.arrival_s <= ttft_s and (_tpot_s(life) or 0.0) <= TPOT_S


def _tpot_s(life: Life) -> float | None:
    if life.first_s is None or life.tokens < 2:
        return None
    return (life.last_s - life.first_s) / (life.tokens - 1)


def _latencies(observed: Observed, completed: Sequence[Life]) -> dict[str, object]:
    ttft = sorted(life.first_s - life.arrival_s for life in completed if life.first_s is not None)
    e2e = sorted(life.last_s - life.arrival_s for life in completed)
    tpot = sorted(value for life in completed if (value := _tpot_s(life)) is not None)
    queued = sorted(life.placed_s - life.arrival_s for life in observed.lives if life.placed_s is not None)
    return {
        "ttft_p50_s": percentile(ttft, 0.5),
        "ttft_p95_s": percentile(ttft, 0.95),
        "ttft_p99_s": percentile(ttft, 0.99),
        "itl_p50_s": _counted_percentile(observed.gaps, 0.5, GAP_RESOLUTION_S),
        "itl_p99_s": _counted_percentile(observed.gaps, 0.99, GAP_RESOLUTION_S),
        "tpot_p99_s": percentile(tpot, 0.99),
        "e2e_p50_s": percentile(e2e, 0.5),
        "e2e_p99_s": percentile(e2e, 0.99),
        "queue_p99_s": percentile(queued, 0.99),
    }


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Nearest rank."""
    if not ordered:
        return None
    return round(ordered[math.ceil(share * len(ordered)) - 1], _DIGITS)


def _counted_percentile(counts: Counter[int], share: float, unit: float) -> float | None:
    wanted = math.ceil(share * counts.total())
    for gap in sorted(counts):
        wanted -= counts[gap]
        if wanted <= 0:
            return round(gap * unit, _DIGITS)
    return None


def _engines(engines: Sequence[Statistics]) -> dict[str, object]:
    return {
        "engine_queue_mean_s": _ratio(
            sum(t.queue_time_s_total for t in engines), sum(t.admissions_total for t in engines)
        ),
        "engine_preemptions": sum(t.preemptions_total for t in engines),
        "prefix_hit_ratio": _ratio(
            sum(t.prefix_hits_total for t in engines), sum(t.prefix_queries_total for t in engines)
        ),
    }


def _money(machines: Iterable[Machine], duration_s: float, output_tokens: int) -> dict[str, object]:
    """`usd_total`: reserved machines for the whole run, others while in use (`fleet.LINGER_S`).

    `usd_fleet` pays every machine while it is there, `usd_busy` each only while it steps: the ceiling and the floor.
    """
    machines = list(machines)
    total = sum(machine.billed_usd(duration_s) for machine in machines)
    return {
        "usd_total": round(total, _DIGITS),
        "usd_per_million_output_tokens": _ratio(total * 1e6, output_tokens),
        "usd_fleet": round(sum(machine.there_usd(duration_s) for machine in machines), _DIGITS),
        "usd_busy": round(sum(machine.busy_usd for machine in machines), _DIGITS),
    }


def _by_cost_tier(machines: Iterable[Machine], duration_s: float) -> dict[str, dict[str, object]]:
    """By tier: requests that its engines took, machine-seconds stepping, dollars."""
    tiers: dict[str, dict[str, float]] = {}
    for machine in machines:
        row = tiers.setdefault(machine.profile.cost_tier.value, {"requests": 0, "busy_s": 0.0, "usd": 0.0})
        row["requests"] += machine.requests
        row["busy_s"] += machine.busy_s
        row["usd"] += machine.billed_usd(duration_s)
    return {tier: {name: round(value, _DIGITS) for name, value in row.items()} for tier, row in sorted(tiers.items())}


def _groups(observed: Observed, calls: Sequence[Call], key: Callable[[Call], str]) -> dict[str, dict[str, object]]:
    """Of each group: how many, how many completed, attainment, TTFT, when its last answer ended, its output."""
    groups: dict[str, list[tuple[Life, Call]]] = {}
    for life, call in zip(observed.lives, calls, strict=True):
        groups.setdefault(key(call), []).append((life, call))
    return {name: _group(members) for name, members in sorted(groups.items())}


def _group(members: Sequence[tuple[Life, Call]]) -> dict[str, object]:
    done = [life for life, _ in members if life.end is End.COMPLETED]
    ttft = sorted(life.first_s - life.arrival_s for life in done if life.first_s is not None)
    return {
        "requests": len(members),
        "completed": len(done),
        "slo_attainment": round(sum(meets(life, call) for life, call in members) / len(members), _DIGITS),
        "ttft_p50_s": percentile(ttft, 0.5),
        "ttft_p95_s": percentile(ttft, 0.95),
        "ttft_p99_s": percentile(ttft, 0.99),
        "output_tokens": sum(life.tokens for life, _ in members),
        "last_s": round(max((life.last_s for life in done), default=0.0), _DIGITS),
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, _DIGITS) if whole else None


def show(values: Mapping[str, object]) -> str:
    """Two aligned columns; groups have a line for each member, and a member that is the whole is left out."""
    rows: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value and all(isinstance(inner, Mapping) for inner in value.values()):
            members = {f"  {member}": shown(inner) for member, inner in value.items()} if len(value) > 1 else {}
            rows |= {name: "", **members} if members else {}
        else:
            rows[name] = shown(value)
    width = max(map(len, rows), default=0)
    return "\n".join(f"{name:<{width}}  {cell}".rstrip() for name, cell in rows.items())


def shown(value: object) -> str:
    """One figure for people."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, Mapping):
        said = {name: inner for name, inner in value.items() if inner not in (None, [])}
        return "; ".join(f"{name} {shown(inner)}" for name, inner in said.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)
