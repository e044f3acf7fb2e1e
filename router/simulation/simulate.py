"""One run from its options to its figures: reads trace, fleet and spot traces, builds the scheduler, plays it all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batching.policies import BASELINES
from batching.scheduler import Scheduler
from config.schema import Mechanism
from router.simulation.fleet import Machine, build_machines, model_of, read_fleet
from router.simulation.freeze import Freeze
from router.simulation.recorder import Recorder
from router.simulation.report import figures
from router.simulation.run import PROBE_INTERVAL_S, Simulation, Watcher
from router.simulation.spot import SpotTrace, read_spot, schedule, spot_replicas
from router.simulation.trace import Call, faster, synthetic_trace
from router.simulation.trace_files import read_trace

OURS: Final = "penstock"
ORACLE: Final = "oracle"  # ours, told the length of every answer beforehand: what knowing more could gain
SYNTHETIC_REQUESTS: Final = 2000  # seconds of work; without a limit
SPOT_NOTICE_S: Final = 30.0  # the shortest of the large clouds' (GCP, Azure); AWS gives two minutes


def policies() -> tuple[str, ...]:
    """Every name that `Options.policy` may be; ours first."""
    return (OURS, *BASELINES, ORACLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One run; together they name it."""

    fleet: Path | None = None  # None: what the gateway runs without a configuration
    trace: Path | None = None  # None: synthetic
    policy: str = OURS
    rate_scale: float = 1.0
    seed: int = 1
    limit: int | None = None
    max_output_tokens: int | None = None
    without: tuple[Mechanism, ...] = ()  # of ours, switched off
    spot: tuple[Path, ...] = ()
    spot_scale: float | None = None  # None: as rate_scale
    spot_notice_s: float = SPOT_NOTICE_S
    freeze_metrics: Freeze | None = None
    decisions: Path | None = None  # where to write every placement; no part of what ran

    def named(self) -> dict[str, object]:
        """For the result: files by name alone, as folders are nobody's business."""
        return {
            "policy": self.policy,
            "fleet": "embedded" if self.fleet is None else self.fleet.name,
            "trace": "synthetic" if self.trace is None else self.trace.name,
            "rate_scale": self.rate_scale,
            "seed": self.seed,
            "limit": self.limit,
            "max_output_tokens": self.max_output_tokens,
            "without": sorted(self.without),
            "spot": [path.name for path in self.spot],
            "spot_scale": self._spot_scale if self.spot else None,
            "spot_notice_s": self.spot_notice_s if self.spot else None,
            "freeze_metrics": None if self.freeze_metrics is None else str(self.freeze_metrics),
        }

    @property
    def _spot_scale(self) -> float:
        return self.rate_scale if self.spot_scale is None else self.spot_scale

    def spot_traces(self) -> list[SpotTrace]:
        return [read_spot(path).faster(self._spot_scale) for path in self.spot]


class Run:
    """Everything read and built, to be played once. Raises ConfigError, OSError or ValueError for what cannot be."""

    def __init__(self, options: Options) -> None:
        self.options = options
        config = read_fleet(options.fleet)
        self.machines: Sequence[Machine] = build_machines(config.replicas, options.seed)
        self.calls: Sequence[Call] = _calls(options)
        policy = None if options.policy in {OURS, ORACLE} else BASELINES[options.policy](options.seed)
        off = frozenset(options.without) | config.scheduling.without
        config = config.model_copy(update={"scheduling": config.scheduling.model_copy(update={"without": off})})
        self._recorder = None
        if options.decisions is not None:
            self._recorder = Recorder(options.decisions, config, self.machines, options.policy)
        self._scheduler = Scheduler(
            config.scheduling,
            config.queue,
            stale_after_s=config.probe.stale_after_s,
            policy=policy,
            decisions=None if self._recorder is None else self._recorder.ledger,
        )
        self._model = model_of(self.machines)
        self._max_wait_s = config.queue.max_wait_s
        self._probe_interval_s = (policy and policy.scrape_interval_s) or PROBE_INTERVAL_S
        self._spot = options.spot_traces()
        spot_replicas(self.machines, self._spot)

    def play(self, watcher: Watcher | None = None) -> dict[str, object]:
        """What ran and its figures, a function of the options alone."""
        simulation = Simulation(
            self.calls,
            self.machines,
            self._scheduler,
            model=self._model,
            max_wait_s=self._max_wait_s,
            max_output_tokens=self.options.max_output_tokens,
            clairvoyant=self.options.policy == ORACLE,
            probe_interval_s=self._probe_interval_s,
            ours=self.options.policy in {OURS, ORACLE},
            freeze=self.options.freeze_metrics,
            watcher=watcher,
        )
        schedule(simulation, self._spot, notice_s=self.options.spot_notice_s)
        observed = simulation.run()
        if self._recorder is not None:
            self._recorder.close()
        return {"run": self.options.named(), **figures(observed, self.calls, self.machines)}


def _calls(options: Options) -> list[Call]:
    if options.trace is not None:
        return faster(read_trace(options.trace, options.limit), options.rate_scale)
    return faster(synthetic_trace(options.seed, options.limit or SYNTHETIC_REQUESTS), options.rate_scale)
