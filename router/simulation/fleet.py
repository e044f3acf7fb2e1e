"""The machines of a run, from a file in the gateway's own `replicas:` form: each an engine and what the scheduler knows of it.

Every replica is simulated, whatever `backend` it names: its GPU type and declared capacity say what it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from backends.backend import ProbeResult, ServedModel
from backends.simulated.engine import Engine
from backends.simulated.options import EngineOptions
from backends.simulated.sequence import EngineSequence
from backends.simulated.statistics import Statistics
from batching.replica import EngineLoad, ReplicaProfile
from batching.request import ReplicaId
from config.load import load
from config.schema import Config, CostTier, ReplicaConfig
from router.engines import engine_options
from router.profiles import profile_of

# A machine that is not reserved is paid from the first request it takes until it has been idle for so long: clouds bill by the
# second, a minute at least. Whoever spreads work thinly keeps every machine paid; whoever packs it lets some go.
LINGER_S: Final = 60.0


@dataclass(slots=True, eq=False, kw_only=True)
class Machine:
    """One replica of the run."""

    profile: ReplicaProfile
    options: EngineOptions
    engine: Engine | None  # None while it is taken away
    stepping: bool = False  # a step is under way: what is added joins the next one
    last_tokens_s: float = 0.0
    leader: EngineSequence | None = None  # whose tokens the gateway is told of at every step
    busy_s: float = 0.0
    requests: int = 0
    busy_usd: float = 0.0  # what its steps cost, at the price of their moment
    in_flight: set[int] = field(default_factory=set)
    told: list[Statistics] = field(default_factory=list)  # last words of engines that were taken away
    _prices: list[tuple[float, float]] = field(default_factory=list)  # (since, dollars an hour) after the first
    _used: list[tuple[float, float]] = field(default_factory=list)  # closed spans of use
    _used_from_s: float | None = None
    _idle_from_s: float = 0.0
    _there: list[tuple[float, float]] = field(default_factory=list)  # closed spans of being there
    _there_from_s: float | None = 0.0

    @property
    def id(self) -> ReplicaId:
        return self.profile.id

    def begin(self, number: int, now: float) -> None:
        """A request has reached the engine."""
        self.requests += 1
        if not self.in_flight and self._used_from_s is not None and now - self._idle_from_s > LINGER_S:
            self._close_use(now)
        if self._used_from_s is None:
            self._used_from_s = now
        self.in_flight.add(number)

    def end(self, number: int, now: float) -> None:
        """The engine is done with it."""
        self.in_flight.discard(number)
        self._idle_from_s = now

    def step(self, duration_s: float) -> None:
        """A step begins."""
        self.busy_s += duration_s
        self.busy_usd += duration_s * self.profile.usd_per_hour / 3600

    def clear(self) -> set[int]:
        """Everything it held is nobody's now."""
        held, self.in_flight = self.in_flight, set()
        return held

    def vanish(self, now: float) -> None:
        """Taken away: nothing is paid from now on."""
        if self.engine is not None:
            self.told.append(self.engine.statistics())
        self.engine = self.leader = None
        self.stepping = False
        self._close_use(now)
        if self._there_from_s is not None:
            self._there.append((self._there_from_s, now))
            self._there_from_s = None

    def appear(self, now: float) -> None:
        """Back, with an empty cache."""
        self.engine = Engine(self.options)
        self._idle_from_s = self._there_from_s = now

    def reprice(self, usd_per_hour: float, now: float) -> None:
        """What it costs from now on."""
        if not self._prices:
            self._prices.append((0.0, self.profile.usd_per_hour))
        self._prices.append((now, usd_per_hour))
        self.profile = replace(self.profile, usd_per_hour=usd_per_hour)

    def load(self, now: float) -> EngineLoad:
        """What a probe finds; only while it is there."""
        assert self.engine is not None
        told = self.engine.statistics()
        return EngineLoad(
            observed_s=now,
            running=told.running,
            waiting=told.waiting,
            kv_usage_ratio=told.kv_usage_ratio,
            preemptions_total=told.preemptions_total,
            prefix_queries_total=told.prefix_queries_total,
            prefix_hits_total=told.prefix_hits_total,
        )

    def statistics(self) -> list[Statistics]:
        """Of every engine that this machine has been."""
        return [*self.told, *([self.engine.statistics()] if self.engine is not None else [])]

    def billed_usd(self, end_s: float) -> float:
        """In a run of `end_s`: all of it where reserved, else only while in use and `LINGER_S` beyond."""
        if self.profile.cost_tier is CostTier.RESERVED:
            return self.there_usd(end_s)
        spans = self._used
        if self._used_from_s is not None:
            spans = [*spans, (self._used_from_s, self._use_ends_s(end_s))]
        return self._usd(spans)

    def there_usd(self, end_s: float) -> float:
        """In a run of `end_s`, if it is paid whenever it is there."""
        spans = self._there
        if self._there_from_s is not None:
            spans = [*spans, (self._there_from_s, end_s)]
        return self._usd(spans)

    def _close_use(self, now: float) -> None:
        if self._used_from_s is not None:
            self._used.append((self._used_from_s, self._use_ends_s(now)))
            self._used_from_s = None

    def _use_ends_s(self, now: float) -> float:
        return now if self.in_flight else min(now, self._idle_from_s + LINGER_S)

    def _usd(self, spans: Iterable[tuple[float, float]]) -> float:
        prices = self._prices or [(0.0, self.profile.usd_per_hour)]
        ends = [*(since for since, _ in prices[1:]), float("inf")]
        return sum(
            max(0.0, min(end_s, until_s) - max(start_s, since_s)) * usd / 3600
            for start_s, end_s in spans
            for (since_s, usd), until_s in zip(prices, ends, strict=True)
        )


def read_fleet(path: Path | None) -> Config:
    """The file as the gateway would read it, but for the environment; its other sections count as well.

    None: what the gateway runs without a file. Raises ConfigError with every problem.
    """
    return load(path, environ={})


def build_machines(replicas: Iterable[ReplicaConfig], seed: int) -> list[Machine]:
    """Engines at rest. `seed` varies step times (0: exact), differently on each machine that has no seed of its own."""
    return [_machine(replica, seed and seed * 1_000_003 + number) for number, replica in enumerate(replicas)]


def model_of(machines: Iterable[Machine]) -> str:
    """The one model that all serve; raises ValueError where there is none, because a trace names none."""
    common = set.intersection(*(set(machine.profile.models) for machine in machines))
    if len(common) != 1:
        raise ValueError("the fleet must serve exactly one common model")
    return common.pop()


def _machine(replica: ReplicaConfig, seed: int) -> Machine:
    options = engine_options(replica)
    options = replace(options, seed=options.seed or seed)
    return Machine(profile=profile_of(replica, _probed(options)), options=options, engine=Engine(options))


def _probed(options: EngineOptions) -> ProbeResult:
    """What the gateway's first probe would find."""
    return ProbeResult(
        ready=True,
        detail="",
        models=(ServedModel(name=options.model, max_model_len=options.context_tokens),),
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        kv_blocks=options.total_blocks,
        block_size=options.block_size,
    )
