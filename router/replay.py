"""Decisions decided again, and priced: the recorded candidates under the present code, the recorded requests in the simulator.

Three columns answer three questions: what happened; what the simulator makes of the same, by which it can be trusted or not; and
what it makes of the alternative.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from batching.decision_record import DecisionRecord, decide_again
from batching.policies import BASELINES
from batching.scheduler import Scheduler
from config.schema import Queue, ReplicaConfig, Scheduling
from router.decision_file import Recording, read_decisions
from router.recorded import Trace, bill, observed, replicas_of, trace_of
from router.simulation.fleet import Machine, build_machines, model_of, read_fleet
from router.simulation.report import figures, shown
from router.simulation.run import PROBE_INTERVAL_S, Simulation
from router.simulation.simulate import OURS
from router.simulation.trace import Call

ROWS: Final = {
    "completed": "completed",
    "slo_attainment": "SLO attainment",
    "ttft_p50_s": "TTFT p50, s",
    "ttft_p99_s": "TTFT p99, s",
    "tpot_p99_s": "TPOT p99, s",
    "e2e_p99_s": "end to end p99, s",
    "queue_p99_s": "gateway queue p99, s",
    "usd_total": "dollars",
    "usd_per_million_output_tokens": "dollars per million output tokens",
}

Figures = Mapping[str, object]


@dataclass(slots=True)
class Fidelity:
    """How many choices come out as they were."""

    same: int = 0
    different: list[tuple[DecisionRecord, str]] = field(default_factory=list)  # and whom the present code chooses
    others: int = 0  # of another router's rule, which no record can repeat

    @property
    def ratio(self) -> float | None:
        """None: nothing could be decided again."""
        total = self.same + len(self.different)
        return self.same / total if total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be replayed."""

    file: Path
    policy: str | None = None  # None: the recorded one
    fleet: Path | None = None  # None: the recorded one
    model: str | None = None
    seed: int = 1

    @property
    def alternative(self) -> bool:
        return self.policy is not None or self.fleet is not None


@dataclass(slots=True, kw_only=True)
class Replay:
    """The answer."""

    fidelity: Fidelity
    policy: str
    trace: Trace
    columns: dict[str, Figures]  # by heading, in order


def fidelity(records: Sequence[DecisionRecord]) -> Fidelity:
    """The same `place` over the same values."""
    found = Fidelity()
    for record in records:
        if record.by_policy:
            found.others += 1
            continue
        again = decide_again(record)
        if again is not None and again.replica == record.replica:
            found.same += 1
        else:
            found.different.append((record, "nobody" if again is None else again.replica))
    return found


def replay(asked: Asked) -> Replay:
    """Raises OSError, ValueError or ConfigError for what cannot be read or played."""
    recording = read_decisions(asked.file)
    trace = trace_of(recording, asked.model)
    replicas = replicas_of(recording, trace.model)
    if not replicas:
        raise ValueError(f"{asked.file.name} tells of no machine that serves {trace.model}; was its beginning cut off?")
    policy = recording.policy or OURS
    for name in (policy, asked.policy or policy):
        if name != OURS and name not in BASELINES:
            raise ValueError(f"{name} cannot be replayed; there are {', '.join((OURS, *BASELINES))}")
    setting = _Setting(replicas, recording.scheduling, recording.queue)
    columns = {
        "recorded": _recorded(trace, replicas),
        f"{policy}, simulated": _simulated(trace, setting, policy, asked.seed),
    }
    if asked.alternative:
        other = asked.policy or policy
        where = "" if asked.fleet is None else f" on {asked.fleet.name}"
        columns[f"{other}{where}, simulated"] = _simulated(trace, _setting(asked, setting), other, asked.seed)
    return Replay(fidelity=fidelity(recording.records), policy=policy, trace=trace, columns=columns)


def table(columns: Mapping[str, Figures]) -> str:
    """A row a figure, a column a run."""
    rows = [["", *columns]]
    rows += [[heading, *(shown(run[name]) for run in columns.values())] for name, heading in ROWS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


@dataclass(frozen=True, slots=True)
class _Setting:
    replicas: Sequence[ReplicaConfig]
    scheduling: Scheduling
    queue: Queue


def _setting(asked: Asked, recorded: _Setting) -> _Setting:
    if asked.fleet is None:
        return recorded
    config = read_fleet(asked.fleet)
    return _Setting(config.replicas, config.scheduling, config.queue)


def _recorded(trace: Trace, replicas: Sequence[ReplicaConfig]) -> Figures:
    machines = build_machines(replicas, 0)
    bill(trace, {machine.id: machine for machine in machines})
    return figures(observed(trace), _judged_calls(trace), machines)


def _simulated(trace: Trace, setting: _Setting, policy: str, seed: int) -> Figures:
    machines: Sequence[Machine] = build_machines(setting.replicas, seed)
    rule = None if policy == OURS else BASELINES[policy](seed)
    simulation = Simulation(
        trace.calls,
        machines,
        Scheduler(setting.scheduling, setting.queue, policy=rule),
        model=model_of(machines),
        max_wait_s=setting.queue.max_wait_s,
        probe_interval_s=(rule and rule.scrape_interval_s) or PROBE_INTERVAL_S,
    )
    seen = simulation.run()
    seen.lives = [life for life, one in zip(seen.lives, trace.played, strict=True) if one.judged]
    return figures(seen, _judged_calls(trace), machines)


def _judged_calls(trace: Trace) -> list[Call]:
    return [one.call for one in trace.played if one.judged]


__all__ = ["ROWS", "Asked", "Fidelity", "Recording", "Replay", "fidelity", "replay", "table"]
