"""Ten times what a fleet can do, for thirty seconds, and what becomes of it: `python -m benchmarks.overload`.

Three rules over the same arrivals: ours, ours without early refusal (`scheduling.without: [early_refusal]`), and first come first
served with nothing but the queue's bounds. Clients either give up when they are refused, or come back when they are told to, once. Two
A100s with 8B models, half of what they can do before and after the burst. In virtual time: a function of the seed.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from batching.request import Reason
from batching.scheduler import Scheduler
from benchmarks.runs import Figures, columns, each, write
from config.schema import Config, Mechanism
from router.simulation.fleet import build_machines, model_of
from router.simulation.report import meets, percentile
from router.simulation.run import End, Life, Simulation
from router.simulation.trace import Call

FCFS: Final = frozenset(
    {
        Mechanism.DEADLINES,
        Mechanism.LATE_LAST,
        Mechanism.HOLD,
        Mechanism.PREFIX_HOLD,
        Mechanism.FLOORS,
        Mechanism.EARLY_REFUSAL,
    }
)
RULES: Final = {"penstock": frozenset[Mechanism](), "without": frozenset({Mechanism.EARLY_REFUSAL}), "fcfs": FCFS}
WARM_S: Final = 20.0  # of the usual load before the burst: the estimators learn, the batches fill
AFTER_S: Final = 60.0  # of the usual load behind it
ENOUGH_RATIO: Final = 0.99  # in time: that is what a fleet can do
USUAL_RATIO: Final = 0.5  # of capacity
RECOVERED_S: Final = 2.0  # after the burst all is to be as it was
SEED: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One run."""

    rule: str = "penstock"
    rate: float = 8.0  # requests a second that the fleet can answer in time (`capacity`)
    times: float = 10.0
    burst_s: float = 30.0
    obeys: bool = False  # who is refused comes back when told to, once
    machines: int = 2
    seed: int = SEED
    after_s: float = AFTER_S


class Clients(Simulation):
    """The trace's, of whom those that are refused may come again: `told` and `came` say how that went."""

    obeys = False

    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self.first_told: dict[int, float] = {}  # when each was to come back
        self.refusals: list[tuple[int, float, Reason, float | None]] = []  # (who, after how long, why, told)

    def _turned_away(self, number: int, now: float, reason: Reason, retry_after_s: float | None) -> None:
        self.refusals.append((number, now - self.observed.lives[number].arrival_s, reason, retry_after_s))
        if not self.obeys or retry_after_s is None or number in self.first_told:
            super()._turned_away(number, now, reason, retry_after_s)
            return
        self.first_told[number] = now + retry_after_s
        self.at(now + retry_after_s, self._again, number)

    def _again(self, number: int, now: float) -> None:
        self.observed.lives[number].arrival_s = now
        self._submit(number, now, frozenset())
        self.advance(None, now)


def calls_at(rates: Sequence[tuple[float, float]], seed: int) -> list[Call]:
    """Poisson arrivals, each (rate, until) in turn; lengths as `router.simulation.trace` has them, without its longest tails."""
    return list(_calls(rates, Random(seed)))


def _calls(rates: Sequence[tuple[float, float]], random: Random) -> Iterator[Call]:
    now_s = 0.0
    for rate, until_s in rates:
        while (now_s := now_s + random.expovariate(rate)) < until_s:
            yield Call(
                arrival_s=now_s,
                prompt_tokens=max(16, min(8192, round(random.lognormvariate(6.5, 0.9)))),
                output_tokens=max(1, min(1024, round(random.lognormvariate(4.8, 0.8)))),
            )
        now_s = until_s


def config_of(scene: Scene) -> Config:
    replicas = [
        {
            "name": f"a{number}",
            "backend": "simulated",
            "models": ["m"],
            "gpu": {"type": "A100-80G"},
            "capacity": {"max_num_batched_tokens": 2048, "max_model_len": 16384, "max_num_seqs": 64},
        }
        for number in range(scene.machines)
    ]
    return Config.model_validate({"replicas": replicas, "scheduling": {"without": list(RULES[scene.rule])}})


def simulate(scene: Scene, calls: Sequence[Call]) -> Clients:
    config = config_of(scene)
    machines = build_machines(config.replicas, scene.seed)
    clients = Clients(
        calls,
        machines,
        Scheduler(config.scheduling, config.queue),
        model=model_of(machines),
        max_wait_s=config.queue.max_wait_s,
    )
    clients.obeys = scene.obeys
    clients.run()
    return clients


def capacity(machines: int = 2, seed: int = SEED, *, seconds: float = 100.0) -> float:
    """Requests a second of which 99 of 100 are answered within both objectives, by the state before."""
    best = 0.0
    for rate in range(5 * machines, 12 * machines):
        calls = calls_at([(rate, seconds)], seed)
        lives = simulate(Scene(rule="without", machines=machines, seed=seed), calls).observed.lives
        if sum(meets(life, call) for life, call in zip(lives, calls, strict=True)) < ENOUGH_RATIO * len(calls):
            break
        best = rate
    return best


def _in_time(life: Life, call: Call, since_s: float, until_s: float) -> bool:
    return life.first_s is not None and since_s <= life.first_s < until_s and meets(life, call)


def figures(scene: Scene) -> Figures:
    """Of one run; seconds and ratios."""
    burst_s, over_s = WARM_S, WARM_S + scene.burst_s
    usual = USUAL_RATIO * scene.rate
    rates = [(usual, burst_s), (scene.times * scene.rate, over_s), (usual, over_s + scene.after_s)]
    calls = calls_at(rates, scene.seed)
    clients = simulate(scene, calls)
    lives = clients.observed.lives
    pairs = list(zip(lives, calls, strict=True))
    good = sum(_in_time(life, call, burst_s, over_s) for life, call in pairs)
    in_burst = [(life, call) for life, call in pairs if burst_s <= call.arrival_s < over_s]
    answered = [(life, call) for life, call in in_burst if life.end is End.COMPLETED]
    late = sorted(_over(life, call) for life, call in answered)
    before = sorted(_ttft(life) for life, call in pairs if 5.0 <= call.arrival_s < burst_s and life.first_s is not None)
    after = [
        life
        for life, call in pairs
        if call.arrival_s >= over_s + RECOVERED_S and life.first_s is not None and life.arrival_s == call.arrival_s
    ]
    waited = sorted(waited_s for _, waited_s, *_ in clients.refusals)
    told = list(clients.first_told)
    again = sum(lives[number].end is End.COMPLETED for number in told)
    return {
        "requests": len(calls),
        "refused_first": len({number for number, *_ in clients.refusals}),
        "reasons": dict(sorted(_tally(clients).items())),
        "goodput_ratio": round(good / scene.burst_s / scene.rate, 3),
        "ttft_p99_over_objective_s": percentile(late, 0.99),
        "answered_in_time_ratio": round(sum(meets(life, call) for life, call in answered) / max(1, len(answered)), 4),
        "refusal_waited_p50_s": percentile(waited, 0.5),
        "refusal_waited_p99_s": percentile(waited, 0.99),
        "told_to_return": len(told),
        "return_succeeded_ratio": round(again / len(told), 3) if told else None,
        "ttft_p99_before_s": percentile(before, 0.99),
        "ttft_p99_2s_after_s": percentile(sorted(map(_ttft, after)), 0.99),
        "after_in_objective_ratio": _share_in_time(pairs, over_s + RECOVERED_S),
    }


def _share_in_time(pairs: Sequence[tuple[Life, Call]], since_s: float) -> float:
    """Of those that come anew from then on."""
    later = [meets(life, call) for life, call in pairs if call.arrival_s >= since_s]
    return round(sum(later) / max(1, len(later)), 4)


def _tally(clients: Clients) -> dict[str, int]:
    tally: dict[str, int] = {}
    for _, _, reason, retry_s in clients.refusals:
        name = reason.value if retry_s is not None else f"{reason.value}_for_good"
        tally[name] = tally.get(name, 0) + 1
    return tally


def _ttft(life: Life) -> float:
    assert life.first_s is not None
    return life.first_s - life.arrival_s


def _over(life: Life, call: Call) -> float:
    """Beyond its objective; negative: within it."""
    return _ttft(life) - (1.0 + 0.001 * max(0, call.prompt_tokens - 1000))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--burst", type=float, default=30.0)
    parser.add_argument("--rate", type=float, help="the fleet's capacity, requests a second  [default: found]")
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    said = parser.parse_args(arguments)
    rate = said.rate or capacity(said.machines, said.seed)
    print(f"capacity: {rate:.1f} requests a second in time")
    jobs = {
        f"{rule} {'obey' if obeys else 'give up'}": Scene(
            rule=rule,
            rate=rate,
            times=said.times,
            burst_s=said.burst,
            obeys=obeys,
            machines=said.machines,
            seed=said.seed,
        )
        for obeys in (False, True)
        for rule in said.rules.split(",")
    }
    played = each(figures, jobs, said.jobs)
    print(columns(played))
    if said.json:
        run = f"times={said.times:g}/burst={said.burst:g}/machines={said.machines}/seed={said.seed}"
        write(said.json, "overload", run, arguments, played, capacity_rps=rate)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
