"""How a scheduler begins from what others have learned, and what it has learned itself to hand on (pure).

Confidence is bounded: lengths count as few answers, and those are gone when as many were seen here; factors are drawn towards 1 where little
stands behind them, and go on learning as fast as ever. Where a scheduler knows better already, nothing is taken.
"""

from collections import defaultdict
from typing import Final

from batching.estimators import Estimators
from batching.fleet import Fleet
from batching.learned import Figure, Learned, OfAnswers, OfModel, OfReplica, of_several
from batching.live_replica import LiveReplica
from batching.replica import ReplicaProfile
from batching.request import ReplicaId

_KNOWN: Final = (
    20  # samples: from then on an estimator goes by its own; also the most that is said on of what was not seen here
)
_DRAWN: Final = 5.0  # samples against which a factor has to prove itself
_FACTOR_RANGE: Final = (0.1, 10.0)  # as `batching.estimators` has it
_MARGIN_STEP: Final = 1.0  # deviations that a KV margin may begin from its prior: two preemptions' worth
_MARGIN_RANGE: Final = (1.0, 6.0)
_MOST_MODELS: Final = 4
_MOST_SEQUENCES: Final = 1024


class Experience:
    """Of one scheduler. `begin` once with what others know, `settle` when replicas may have come."""

    def __init__(self, fleet: Fleet, estimators: Estimators) -> None:
        self._fleet = fleet
        self._estimators = estimators
        self._of: dict[tuple[ReplicaId, str], OfReplica] = {}  # what was inherited
        self._like: dict[tuple[str, ...], OfReplica] = {}  # of all such machines, for one that nobody has seen
        self._met: dict[
            ReplicaId, LiveReplica
        ] = {}  # those that were looked at; one that left and came back is another

    def begin(self, learned: Learned) -> None:
        """From what others have learned, where nothing is known here."""
        for model in learned.models:
            self._estimators.chars.inherit(model.model, model.chars.value, int(min(model.chars.samples, _KNOWN)))
        for kind in learned.answers:
            self._estimators.outputs.inherit(kind.model, kind.octave, kind.counts, kind.mean, kind.cut)
        machines: defaultdict[tuple[str, ...], list[OfReplica]] = defaultdict(list)
        for replica in learned.replicas:
            self._of[replica.replica, replica.machine] = replica
            machines[replica.machine, *replica.models].append(replica)
        self._like = {machine: of_several(ReplicaId(""), each) for machine, each in machines.items()}
        self._met.clear()
        self.settle()

    def settle(self) -> None:
        """Replicas that were not met before begin from what is known of them, or of machines like them. O(replicas)."""
        if not self._of:
            return
        for live in self._fleet:
            name = live.profile.id
            if self._met.get(name) is not live and live.profile.models:  # else it has not said yet what it serves
                self._met[name] = live
                known = self._known(live.profile)
                if known is not None and _inherit(live, known) and not live.retired:
                    self._fleet.update(live.profile)
        if len(self._met) > len(self._fleet):
            self._met = {name: live for name, live in self._met.items() if name in self._fleet}

    def _known(self, profile: ReplicaProfile) -> OfReplica | None:
        machine, models = machine_of(profile), models_of(profile)
        known = self._of.get((profile.id, machine))
        if known is not None and set(known.models) & set(models):
            return known
        return self._like.get((machine, *models))

    def told(self) -> Learned:
        """What is known here; what was inherited, where nothing better is."""
        return Learned(
            [OfModel(model, Figure(*known)) for model, known in self._estimators.chars.known().items()],
            [
                OfAnswers(model, octave, *lengths.histogram())
                for (model, octave), lengths in self._estimators.outputs.kinds()
                if lengths.samples
            ],
            [self._of_replica(live) for live in self._fleet if live.profile.models and not live.retired],
        )

    def _of_replica(self, live: LiveReplica) -> OfReplica:
        audit, speed = live.audit, live.speed
        learns_sequences = live.profile.max_num_seqs is None
        figures = [
            Figure(speed.ttft_factor, audit.ttft.samples if speed.ttft_factor != 1.0 else 0),
            Figure(speed.tpot_factor, audit.tpot.samples if speed.tpot_factor != 1.0 else 0),
            Figure(speed.prefix_trust_ratio, audit.cached.samples),
            Figure(live.kv_risk.margin, audit.kv_usage.samples),
            Figure(live.learned.limit, audit.tpot.samples if learns_sequences else 0),
        ]
        before = self._of.get((live.profile.id, machine_of(live.profile)))  # of others like it nothing is said on
        if before is not None:
            figures = [
                own if own.samples >= _KNOWN or not old.samples else old._replace(samples=min(old.samples, _KNOWN))
                for own, old in zip(figures, before.figures, strict=True)
            ]
        return OfReplica(live.profile.id, machine_of(live.profile), models_of(live.profile), *figures)


def machine_of(profile: ReplicaProfile) -> str:
    """What it runs on; where that changes, nothing that was learned holds."""
    return f"{profile.gpu_count} {profile.gpu} in {profile.pipeline_parallel}, {profile.shape}, {profile.speed:g}"


def models_of(profile: ReplicaProfile) -> list[str]:
    """Enough of them to tell machines apart."""
    return sorted(profile.models)[:_MOST_MODELS]


def _inherit(live: LiveReplica, known: OfReplica) -> bool:
    """Whether anything was taken."""
    speed, audit, taken = live.speed, live.audit, False
    if known.ttft.samples and audit.ttft.samples < _KNOWN:
        speed.ttft_factor, taken = _drawn(known.ttft), True
    if known.tpot.samples and audit.tpot.samples < _KNOWN:
        speed.tpot_factor, taken = _drawn(known.tpot), True
    if known.cached.samples and audit.cached.samples < _KNOWN:
        worth = known.cached.samples / (known.cached.samples + _DRAWN)
        speed.prefix_trust_ratio, taken = 1.0 + worth * (min(known.cached.value, 1.0) - 1.0), True
    if known.kv_margin.samples >= _KNOWN and audit.kv_usage.samples < _KNOWN:
        margin = live.kv_risk.margin
        margin = min(max(known.kv_margin.value, margin - _MARGIN_STEP), margin + _MARGIN_STEP)
        live.kv_risk.margin, taken = min(max(margin, _MARGIN_RANGE[0]), _MARGIN_RANGE[1]), True
    if known.sequences.samples >= _KNOWN and audit.tpot.samples < _KNOWN and live.profile.max_num_seqs is None:
        live.learned.limit, taken = int(min(max(known.sequences.value, 1), _MOST_SEQUENCES)), True
    return taken


def _drawn(factor: Figure) -> float:
    """Towards 1, the less stands behind it."""
    least, most = _FACTOR_RANGE
    drawn: float = factor.value ** (factor.samples / (factor.samples + _DRAWN))
    return min(max(drawn, least), most)
