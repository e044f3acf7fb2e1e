"""From what was observed to the figures of a run: latency, goodput under a stated objective, money.

Every figure but those of `wall_figures` is a function of trace, fleet, policy and seed.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from benchmarks.simulate.fleet import Machine
from benchmarks.simulate.run import GAP_RESOLUTION_S, End, Life, Observed

# The objective every policy is judged by, whatever the fleet's file sets for placement: the gateway's defaults.
TTFT_S: Final = 1.0
TTFT_S_PER_TOKEN: Final = 0.001  # for each prompt token beyond
TTFT_BASE_TOKENS: Final = 1000
TPOT_S: Final = 0.1
_DIGITS: Final = 6  # of seconds, ratios and dollars; microseconds are beyond what a simulation knows


def figures(observed: Observed, prompts: Sequence[int], machines: Sequence[Machine]) -> dict[str, object]:
    """All figures of a run; a percentile of nothing is None. `prompts`: prompt tokens by request."""
    lives = observed.lives
    ends = Counter(life.end for life in lives)
    completed = [life for life in lives if life.end is End.COMPLETED]
    good = sum(_meets(life, prompt) for life, prompt in zip(lives, prompts, strict=True))
    duration_s = observed.end_s
    return {
        "requests": len(lives),
        "completed": ends[End.COMPLETED],
        "rejected": ends[End.REJECTED],
        "failed": ends[End.FAILED],
        "reasons": dict(sorted(Counter(life.reason for life in lives if life.reason).items())),
        "duration_s": round(duration_s, _DIGITS),
        "slo_attainment": round(good / len(lives), _DIGITS),
        "goodput_rps": _ratio(good, duration_s),
        **_latencies(observed, completed),
        **_engines(machines),
        "output_tokens": sum(life.tokens for life in lives),
        **_money(machines, duration_s, sum(life.tokens for life in lives)),
        "by_cost_tier": _by_cost_tier(machines),
    }


def wall_figures(observed: Observed, wall_s: float) -> dict[str, object]:
    """What the run cost this machine; differs from run to run."""
    return {
        "seconds": round(wall_s, 3),
        "requests_per_min": round(len(observed.lives) / wall_s * 60),
        "decisions_per_s": round(observed.decisions / observed.deciding_wall_s),
    }


def show(figures: Mapping[str, object]) -> str:
    """Two aligned columns."""
    width = max(map(len, figures), default=0)
    return "\n".join(f"{name:<{width}}  {_cell(value)}" for name, value in figures.items())


def _meets(life: Life, prompt_tokens: int) -> bool:
    if life.end is not End.COMPLETED or life.first_s is None:
        return False
    ttft_s = TTFT_S + TTFT_S_PER_TOKEN * max(0, prompt_tokens - TTFT_BASE_TOKENS)
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
        "ttft_p99_s": percentile(ttft, 0.99),
        "itl_p50_s": _counted_percentile(observed.gaps, 0.5),
        "itl_p99_s": _counted_percentile(observed.gaps, 0.99),
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


def _counted_percentile(counts: Counter[int], share: float) -> float | None:
    wanted = math.ceil(share * counts.total())
    for gap in sorted(counts):
        wanted -= counts[gap]
        if wanted <= 0:
            return round(gap * GAP_RESOLUTION_S, _DIGITS)
    return None


def _engines(machines: Iterable[Machine]) -> dict[str, object]:
    told = [machine.engine.statistics() for machine in machines]
    return {
        "engine_queue_mean_s": _ratio(sum(t.queue_time_s_total for t in told), sum(t.admissions_total for t in told)),
        "engine_preemptions": sum(t.preemptions_total for t in told),
        "prefix_hit_ratio": _ratio(sum(t.prefix_hits_total for t in told), sum(t.prefix_queries_total for t in told)),
    }


def _money(machines: Iterable[Machine], duration_s: float, output_tokens: int) -> dict[str, object]:
    """`usd_total` pays every machine for the whole run; `usd_busy` only while it stepped, what perfect scaling would leave."""
    total = sum(machine.profile.usd_per_hour for machine in machines) * duration_s / 3600
    busy = sum(machine.profile.usd_per_hour * machine.busy_s for machine in machines) / 3600
    return {
        "usd_total": round(total, _DIGITS),
        "usd_per_million_output_tokens": _ratio(total * 1e6, output_tokens),
        "usd_busy": round(busy, _DIGITS),
    }


def _by_cost_tier(machines: Iterable[Machine]) -> dict[str, int]:
    requests: dict[str, int] = {}
    for machine in machines:
        tier = machine.profile.cost_tier.value
        requests[tier] = requests.get(tier, 0) + machine.requests
    return requests


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, _DIGITS) if whole else None


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    return "-" if value is None else str(value)
