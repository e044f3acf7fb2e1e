"""A recording as a trace: the requests that were placed, as the simulator plays them, and what became of them in life.

One call for each request: by the placement that answered it, else its last. Whoever was refused was never placed, and is not in a recording.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from batching.decision_record import DecisionRecord, Ended
from batching.request import Outcome, ReplicaId, ServiceTier
from config.schema import ReplicaConfig
from router.decision_file import Recording
from router.simulation.fleet import Machine
from router.simulation.run import End, Life, Observed
from router.simulation.trace import Call


@dataclass(frozen=True, slots=True)
class Played:
    """One request of the recording; times from the first arrival."""

    call: Call
    life: Life  # in life
    judged: bool  # whether its latency says something: it was streamed and answered in full


@dataclass(slots=True, kw_only=True)
class Trace:
    """What can be played, and how many can't."""

    model: str
    played: list[Played]
    placements: list["_Stay"]  # every one of the model, attempts that failed too
    end_s: float
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def calls(self) -> list[Call]:
        return [one.call for one in self.played]


@dataclass(frozen=True, slots=True)
class _Stay:
    """A lease: who was where from when to when."""

    replica: ReplicaId
    from_s: float
    until_s: float


def trace_of(recording: Recording, model: str | None) -> Trace:
    """The requests for one model, in order of arrival; None: the one most were for. Raises ValueError where there are none."""
    found = Counter(record.asked("model") for record in recording.records)
    if not found:
        raise ValueError("no placement is recorded; a placement is written when its answer has ended")
    name = model or found.most_common(1)[0][0]
    if name not in found:
        raise ValueError(f"no placement is for the model {name}; there are some for {', '.join(sorted(found))}")
    left_out = Counter({f"for {other}": count for other, count in found.items() if other != name})
    last: dict[tuple[str, float], tuple[DecisionRecord, float]] = {}
    stays: list[_Stay] = []
    for record, offset_s in zip(recording.records, recording.offsets, strict=True):
        if record.asked("model") != name:
            continue
        key = record.request_id, offset_s + record.asked("arrived_s")  # an id is the client's, and may come twice
        if key not in last or _standing(last[key][0]) <= _standing(record):
            last[key] = record, offset_s
        finished_s = record.end().finished_s
        if finished_s is not None:
            stays.append(_Stay(record.replica, offset_s + record.placed_s, offset_s + finished_s))
    ended = [(record, offset_s) for record, offset_s in last.values() if record.end().finished_s is not None]
    left_out["still running"] = len(last) - len(ended)
    start_s = min((key[1] for key in last), default=0.0)
    played = sorted((_played(*one, start_s) for one in ended), key=lambda one: one.call.arrival_s)
    if not any(one.judged for one in played):
        raise ValueError("no recorded request was streamed and answered in full: there is no latency to compare")
    return Trace(
        model=name,
        played=played,
        placements=[_Stay(s.replica, s.from_s - start_s, s.until_s - start_s) for s in stays],
        end_s=max(stay.until_s for stay in stays) - start_s,
        left_out=+left_out,
    )


def _standing(record: DecisionRecord) -> tuple[bool, float]:
    """Of two placements at the same time one is cancelled when the other has won, whichever came last."""
    return record.end().outcome is Outcome.COMPLETED, record.placed_s


def replicas_of(recording: Recording, model: str) -> list[ReplicaConfig]:
    """The machines that served the model, each as it was last, for this model alone."""
    return [
        replica.model_copy(update={"models": tuple(spec for spec in replica.models if spec.name == model)})
        for replica in recording.replicas.values()
        if any(spec.name == model for spec in replica.models)
    ]


def observed(trace: Trace) -> Observed:
    """What the simulator would have observed in life, of those that are judged."""
    return Observed([one.life for one in trace.played if one.judged], end_s=trace.end_s)


def bill(trace: Trace, machines: Mapping[ReplicaId, Machine]) -> None:
    """Lets the machines be used as they were, so that they are paid by the simulator's own rule."""
    moments = [(stay.from_s, 1, number, stay) for number, stay in enumerate(trace.placements)]
    moments += [(stay.until_s, 0, number, stay) for number, stay in enumerate(trace.placements)]
    for now, begins, number, stay in sorted(moments, key=lambda moment: moment[:3]):
        machine = machines.get(stay.replica)
        if machine is None:
            continue
        if begins:
            machine.begin(number, now)
        else:
            machine.end(number, now)


def _played(record: DecisionRecord, offset_s: float, start_s: float) -> Played:
    end, from_s = record.end(), offset_s - start_s
    arrived_s, deadline_s = record.asked("arrived_s"), record.asked("deadline_s")
    call = Call(
        arrival_s=from_s + arrived_s,
        prompt_tokens=max(1, end.prompt_tokens or record.asked("prompt_tokens")),
        output_tokens=max(1, end.tokens),
        prefix_blocks=record.prefix,
        tenant=record.asked("tenant"),
        service_tier=ServiceTier(record.asked("service_tier")),
        max_wait_s=None if deadline_s is None else max(deadline_s - arrived_s, 1e-6),
    )
    judged = end.outcome is Outcome.COMPLETED and end.first_token_s is not None
    return Played(call, _life(record, end, from_s, call), judged)


def _life(record: DecisionRecord, end: Ended, from_s: float, call: Call) -> Life:
    assert end.finished_s is not None
    last_s = end.finished_s if end.last_token_s is None else end.last_token_s
    return Life(
        arrival_s=call.arrival_s,
        placed_s=from_s + record.placed_s,
        replica=record.replica,
        first_s=None if end.first_token_s is None else from_s + end.first_token_s,
        last_s=from_s + last_s,
        tokens=end.tokens,
        cached_tokens=end.cached_tokens or 0,
        attempts=1,
        end=End.COMPLETED if end.outcome is Outcome.COMPLETED else End.FAILED,
    )


def left_out(trace: Trace) -> Sequence[str]:
    """In words."""
    return [f"{count:,} {why}" for why, count in sorted(trace.left_out.items())]
