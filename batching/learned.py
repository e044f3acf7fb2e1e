"""What a scheduler has learned, as a value to hand on: compact, bounded, and checked before anybody goes by it (pure).

Several gateways' values become one by their evidence: answers and reports seen, worth half with every hour of age. Decides nothing about how
far it is believed; that is `batching.experience`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, isfinite, log
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from batching.request import ReplicaId

VERSION: Final = 1  # of all below; another one is not read
MAX_BYTES: Final = 256 * 1024  # several times what the bounds below come to
BINS: Final = 96  # of a histogram of lengths (`batching.estimators`)
_MOST_MODELS, _MOST_KINDS, _MOST_REPLICAS = 128, 128, 256  # those with the most evidence
_LONGEST_NAME: Final = 200
_HALF_LIFE_S: Final = 3600.0  # traffic and machines change within a day
_RANGE: Final = (0.01, 100.0)  # of any factor; estimators have narrower ones of their own
_HEADER: Final = f"penstock-learned/{VERSION}\n".encode()


class Figure(NamedTuple):
    """One learned number, and how many samples stand behind it."""

    value: float
    samples: float


class OfModel(msgspec.Struct, frozen=True, array_like=True):
    """Characters per token."""

    model: str
    chars: Figure

    @property
    def evidence(self) -> float:
        return self.chars.samples


class OfAnswers(msgspec.Struct, frozen=True, array_like=True):
    """Output lengths of one kind of request: a histogram by quarter octaves, as {bin: answers}."""

    model: str
    octave: int  # of the client's own bound; -1: it set none
    counts: dict[int, float]
    mean: float
    cut: dict[int, float] = {}  # of the counts, those that their bound ended

    @property
    def evidence(self) -> float:
        return sum(self.counts.values())


class OfReplica(msgspec.Struct, frozen=True, array_like=True):
    """How it differs from what its GPUs promise; no evidence: nothing is known."""

    replica: ReplicaId
    machine: str  # what it is: figures of another machine under its name say nothing
    models: list[str]  # that it serves; some of them, where they are many
    ttft: Figure  # factor of the prior's seconds
    tpot: Figure  # likewise
    cached: Figure  # how far its prefix cache can be believed
    kv_margin: Figure  # deviations kept free
    sequences: Figure  # at once, where nobody tells

    @property
    def figures(self) -> tuple[Figure, ...]:
        return self.ttft, self.tpot, self.cached, self.kv_margin, self.sequences

    @property
    def evidence(self) -> float:
        return max(figure.samples for figure in self.figures)


class Learned(msgspec.Struct, frozen=True, array_like=True):
    """All that one gateway, or several, have learned."""

    models: list[OfModel] = []
    answers: list[OfAnswers] = []
    replicas: list[OfReplica] = []


class Unusable(ValueError):
    """It cannot be gone by; says why, in a few words."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Learned).decode
_Part = TypeVar("_Part", OfModel, OfAnswers, OfReplica)


def packed(learned: Learned) -> bytes:
    """Within bounds, whatever has been learned."""
    parts = 1
    while True:
        body = _HEADER + _encode(
            Learned(
                _foremost((one for one in learned.models if len(one.model) <= _LONGEST_NAME), _MOST_MODELS // parts),
                _foremost((one for one in learned.answers if len(one.model) <= _LONGEST_NAME), _MOST_KINDS // parts),
                _foremost((one for one in learned.replicas if _is_short(one)), _MOST_REPLICAS // parts),
            )
        )
        if len(body) <= MAX_BYTES:
            return body
        parts *= 2  # long names


def unpacked(body: bytes) -> Learned:
    """Raises Unusable."""
    if len(body) > MAX_BYTES:
        raise Unusable(f"{len(body)} bytes are too many")
    if not body.startswith(_HEADER):
        raise Unusable(f"not of this version, {VERSION}")
    try:
        learned = _decode(body[len(_HEADER) :])
    except msgspec.DecodeError as error:
        raise Unusable(f"garbled: {error}") from None
    _check(learned)
    return learned


def _check(learned: Learned) -> None:
    """That estimators can bear it: finite, in range, nothing negative. Raises Unusable."""
    figures = [one.chars for one in learned.models]
    for replica in learned.replicas:
        figures += replica.figures[:4]
        if not (isfinite(replica.sequences.value) and 0 <= replica.sequences.value <= 1e6):
            raise Unusable(f"{replica.sequences.value} sequences at once")
        if not (isfinite(replica.sequences.samples) and replica.sequences.samples >= 0):
            raise Unusable("evidence that is none")
    for value, samples in figures:
        if not (isfinite(value) and isfinite(samples) and samples >= 0):
            raise Unusable("figures that are none")
        if samples and not (value == 0 or _RANGE[0] <= value <= _RANGE[1]):
            raise Unusable(f"a factor of {value}")
    for kind in learned.answers:
        if not all(0 <= index < BINS for index in kind.counts):
            raise Unusable("lengths beyond all bounds")
        if not all(isfinite(count) and 0 <= count <= 1e6 for count in (*kind.counts.values(), *kind.cut.values())):
            raise Unusable("a count that is none")
        if not (isfinite(kind.mean) and 0 <= kind.mean <= 2 ** (BINS / 4)):
            raise Unusable(f"answers of {kind.mean} tokens")


def merged(found: Iterable[tuple[float, Learned]]) -> Learned:
    """Of several, each with its age in seconds: every figure by its evidence."""
    models: defaultdict[str, list[OfModel]] = defaultdict(list)
    answers: defaultdict[tuple[str, int], list[OfAnswers]] = defaultdict(list)
    replicas: defaultdict[tuple[ReplicaId, str], list[OfReplica]] = defaultdict(list)
    for age_s, learned in found:
        worth = 0.5 ** (max(0.0, age_s) / _HALF_LIFE_S)
        for model in learned.models:
            models[model.model].append(OfModel(model.model, _worth(model.chars, worth)))
        for kind in learned.answers:
            counts, cut = ({i: count * worth for i, count in each.items()} for each in (kind.counts, kind.cut))
            answers[kind.model, kind.octave].append(OfAnswers(kind.model, kind.octave, counts, kind.mean, cut))
        for replica in learned.replicas:
            figures = (_worth(figure, worth) for figure in replica.figures)
            one = OfReplica(replica.replica, replica.machine, replica.models, *figures)
            replicas[replica.replica, replica.machine].append(one)
    return Learned(
        [OfModel(model, joined([one.chars for one in each])) for model, each in models.items()],
        [_lengths(each) for each in answers.values()],
        [of_several(name, each) for (name, _), each in replicas.items()],
    )


def of_several(name: ReplicaId, found: Sequence[OfReplica]) -> OfReplica:
    """One replica's figures from several views of it, or of machines like it."""
    columns = zip(*(one.figures for one in found), strict=True)
    return OfReplica(name, found[0].machine, found[0].models, *(joined(column) for column in columns))


def joined(figures: Sequence[Figure]) -> Figure:
    """Their mean by evidence; a geometric one, as factors have."""
    samples = sum(figure.samples for figure in figures)
    if not samples:
        return Figure(0.0, 0.0)
    if any(figure.value <= 0 for figure in figures if figure.samples):
        return Figure(sum(figure.value * figure.samples for figure in figures) / samples, samples)
    return Figure(
        exp(sum(log(figure.value) * figure.samples for figure in figures if figure.samples) / samples), samples
    )


def _lengths(found: Sequence[OfAnswers]) -> OfAnswers:
    counts, cut = _summed(one.counts for one in found), _summed(one.cut for one in found)
    total = sum(counts.values())
    mean = sum(one.mean * one.evidence for one in found) / total if total else 0.0
    return OfAnswers(found[0].model, found[0].octave, counts, mean, cut)


def _summed(found: Iterable[Mapping[int, float]]) -> dict[int, float]:
    all_: defaultdict[int, float] = defaultdict(float)
    for one in found:
        for index, count in one.items():
            all_[index] += count
    return dict(all_)


def _worth(figure: Figure, worth: float) -> Figure:
    return Figure(figure.value, figure.samples * worth)


def _is_short(one: OfReplica) -> bool:
    return max(len(one.replica), len(one.machine), *map(len, one.models)) <= _LONGEST_NAME


def _foremost(found: Iterable[_Part], most: int) -> list[_Part]:
    by_evidence: Callable[[_Part], Any] = attrgetter("evidence")
    return sorted((one for one in found if one.evidence > 0), key=by_evidence, reverse=True)[:most]
