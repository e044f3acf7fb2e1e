"""What the pictures of a run show: TTFTs, queues and KV usage over time, dollars. Gathered while it runs; drawn elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from router.simulation.report import percentile
from router.simulation.run import End, Life, Simulation, Watcher
from router.simulation.simulate import Run

_SAMPLES: Final = 400  # at least, where the run is long enough; twice as many at most
_SHORTEST_SAMPLE_S: Final = 0.25
_POINTS: Final = 500  # of a distribution: finer than a line is drawn

Band = tuple[float, float, float]  # 10th, 50th and 90th percentile over replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Of one run. Everything by time is as long as `times_s`; a GPU type whose machines are all away has no band then."""

    policy: str
    requests: int
    ttft_s: tuple[float, ...]  # of completed requests, ascending, thinned to evenly spaced ranks
    completed: int
    times_s: tuple[float, ...]
    at_gateway: tuple[int, ...]  # requests waiting
    in_engines: tuple[int, ...]
    kv_usage: Mapping[str, tuple[Band | None, ...]]  # by GPU type
    usd_by_tier: Mapping[str, float]


def sampled(run: Run, also: Watcher | None = None) -> tuple[dict[str, object], Curves]:
    """Plays the run; its figures are what they are without being looked at."""
    sampler = _Sampler(max(_SHORTEST_SAMPLE_S, run.calls[-1].arrival_s / _SAMPLES), also or Watcher())
    result = run.play(sampler)
    ttft = sorted(sampler.ttft_s)
    by_tier = result["by_cost_tier"]
    assert isinstance(by_tier, dict)
    curves = Curves(
        policy=run.options.policy,
        requests=len(run.calls),
        ttft_s=tuple(_thinned(ttft)),
        completed=len(ttft),
        times_s=tuple(sampler.times_s),
        at_gateway=tuple(sampler.at_gateway),
        in_engines=tuple(sampler.in_engines),
        kv_usage={gpu: tuple(bands) for gpu, bands in sorted(sampler.kv_usage.items())},
        usd_by_tier={tier: row["usd"] for tier, row in by_tier.items()},
    )
    return result, curves


class _Sampler(Watcher):
    def __init__(self, every_s: float, also: Watcher) -> None:
        self.sample_every_s = every_s
        self._every = 1  # samples are kept one in so many
        self._seen = 0
        self._also = also
        self.ttft_s: list[float] = []
        self.times_s: list[float] = []
        self.at_gateway: list[int] = []
        self.in_engines: list[int] = []
        self.kv_usage: dict[str, list[Band | None]] = {}

    def ended(self, number: int, life: Life, now: float) -> None:
        if life.end is End.COMPLETED and life.first_s is not None:
            self.ttft_s.append(life.first_s - life.arrival_s)
        self._also.ended(number, life, now)

    def sample(self, simulation: Simulation, now: float) -> None:
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        usage: dict[str, list[float]] = {machine.profile.gpu: [] for machine in simulation.machines.values()}
        waiting = 0
        for machine in simulation.machines.values():
            if machine.engine is not None:
                told = machine.engine.statistics()
                usage[machine.profile.gpu].append(told.kv_usage_ratio)
                waiting += told.waiting
        self.times_s.append(now)
        self.at_gateway.append(sum(queue.depth for queue in simulation.scheduler.queue_statistics(now)))
        self.in_engines.append(waiting)
        for gpu, ratios in usage.items():
            self.kv_usage.setdefault(gpu, []).append(_band(ratios))
        if len(self.times_s) >= 2 * _SAMPLES:  # a backlog may last for hours: half as often, half as many
            self._every *= 2
            kept: list[list[Any]] = [self.times_s, self.at_gateway, self.in_engines, *self.kv_usage.values()]
            for values in kept:
                del values[1::2]


def _band(ratios: Sequence[float]) -> Band | None:
    ordered = sorted(ratios)
    low, middle, high = (percentile(ordered, share) for share in (0.1, 0.5, 0.9))
    return None if low is None or middle is None or high is None else (low, middle, high)


def _thinned(ordered: Sequence[float]) -> Sequence[float]:
    if len(ordered) <= _POINTS:
        return ordered
    return [ordered[round(rank * (len(ordered) - 1) / (_POINTS - 1))] for rank in range(_POINTS)]
