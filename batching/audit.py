"""Whether what is learned is worth believing: predictions against what happened, beside what would have been said without learning.

Per replica and signal, the mean error of both, lately. A signal that does worse than its baseline loses weight by itself, and
gains it again when it does better. Decides nothing: who predicts may ask for the weight.
"""

from collections import OrderedDict
from enum import StrEnum
from typing import Final, NamedTuple

from batching.decision_record import OFFER_FIELDS, DecisionRecord, Ended, Values
from batching.estimators import OutputLengths
from batching.request import Outcome, ReplicaId

_WEIGHT: Final = 0.05  # of a new sample: a change shows within some twenty answers
_SAMPLES_NEEDED: Final = 20  # before a signal is doubted
_WORTHLESS_RATIO: Final = 2.0  # errors so many times its baseline's: nothing is left of the weight
_LEAST_ERROR: Final = 0.02  # below it two errors are equally good: no timing is known better
_MAX_REPLICAS: Final = 4096  # replicas come and go under new names; whoever is not heard of any more goes first

_REPLICA, _PRICE_FACTOR, _PRICE_DECODE, _DECODE = (
    OFFER_FIELDS.index(name) for name in ("replica", "price_factor", "price_decode_s", "decode_s")
)
_UNLEARNED: Final = OutputLengths(1.0)  # never taught: what is said of a length before any was seen


class Signal(StrEnum):
    """What is predicted, and against which baseline it must hold its own."""

    TTFT = "ttft"  # from placement to first token; without the learned factor
    TPOT = "tpot"  # per output token; without the learned factor
    OUTPUT = "output_tokens"  # per sequence; the client's own bound
    CACHED = "cached_tokens"  # of the prompt; that nothing is cached
    FINISH = "finish"  # from placement to the end; of the three baselines above


class Judged(NamedTuple):
    """One prediction and what happened, in the signal's own unit."""

    signal: Signal
    predicted: float
    baseline: float
    actual: float

    @property
    def error_ratio(self) -> float:
        return error_ratio(self.predicted, self.actual)


class Errors(NamedTuple):
    """Mean errors lately, 0 to 1."""

    learned: float
    baseline: float
    samples: int


def error_ratio(predicted: float, actual: float) -> float:
    """The difference over the greater of both: 0 is right, 0.5 off by a factor of two, 1 beyond all measure.

    Symmetric and bounded, so that one stalled stream does not outweigh a hundred others.
    """
    greater = max(predicted, actual)
    return abs(predicted - actual) / greater if greater > 0 else 0.0


def judged(record: DecisionRecord) -> list[Judged]:
    """What can be said of a request that was answered in full; nothing of others, or where another rule decided."""
    end = record.ended
    if end is None or end.outcome is not Outcome.COMPLETED or record.by_policy or end.finished_s is None:
        return []
    score, chosen = record.placement.score, _chosen(record)
    ttft_prior_s = score.ttft_s * chosen[_PRICE_FACTOR]
    tpot_prior_s = score.tpot_s * (chosen[_PRICE_DECODE] / chosen[_DECODE] if chosen[_DECODE] > 0 else 1.0)
    expected, bound = record.needed("expected_tokens"), _bound(record)
    found: list[Judged] = []
    if end.first_token_s is not None:
        found.append(Judged(Signal.TTFT, score.ttft_s, ttft_prior_s, end.first_token_s - record.placed_s))
    per_sequence = -(-end.tokens // record.asked("sequences"))
    if (tpot_s := actual_tpot_s(end, per_sequence)) is not None:
        found.append(Judged(Signal.TPOT, score.tpot_s, tpot_prior_s, tpot_s))
    if expected and per_sequence:
        found.append(Judged(Signal.OUTPUT, expected, bound, per_sequence))
    if end.cached_tokens is not None and (end.cached_tokens or score.cached_tokens):
        found.append(Judged(Signal.CACHED, score.cached_tokens, 0, end.cached_tokens))
    finish_s = score.ttft_s + score.tpot_s * max(expected - 1, 0)
    finish_prior_s = ttft_prior_s + tpot_prior_s * max(bound - 1, 0)
    found.append(Judged(Signal.FINISH, finish_s, finish_prior_s, end.finished_s - record.placed_s))
    return found


def actual_tpot_s(end: Ended, tokens: int) -> float | None:
    """Mean time per token after the first; None below two tokens, or where the first was not seen."""
    if end.first_token_s is None or end.last_token_s is None or tokens < 2:
        return None
    return (end.last_token_s - end.first_token_s) / (tokens - 1)


class Audit:
    """O(1) a sample; bounded."""

    def __init__(self) -> None:
        self._errors: OrderedDict[ReplicaId, dict[Signal, Errors]] = OrderedDict()

    def observe(self, replica: ReplicaId, one: Judged) -> None:
        """One prediction of this replica came true, or did not."""
        signals = self._errors.setdefault(replica, {})
        self._errors.move_to_end(replica)
        if len(self._errors) > _MAX_REPLICAS:
            self._errors.popitem(last=False)
        learned, baseline = one.error_ratio, error_ratio(one.baseline, one.actual)
        before = signals.get(one.signal)
        if before is None:
            signals[one.signal] = Errors(learned, baseline, 1)
            return
        samples = before.samples + 1
        share = max(_WEIGHT, 1 / samples)  # the plain mean until there are enough
        signals[one.signal] = Errors(
            before.learned + share * (learned - before.learned),
            before.baseline + share * (baseline - before.baseline),
            samples,
        )

    def errors(self, replica: ReplicaId, signal: Signal) -> Errors | None:
        """None: it was never seen."""
        return self._errors.get(replica, {}).get(signal)

    def weight(self, replica: ReplicaId, signal: Signal) -> float:
        """How far to believe what was learned, 1 to 0: `weight * learned + (1 - weight) * baseline`.

        1 as long as it does no worse than its baseline, or too little was seen; 0 where its errors are twice as large.
        """
        errors = self.errors(replica, signal)
        if errors is None or errors.samples < _SAMPLES_NEEDED:
            return 1.0
        times = max(errors.learned, _LEAST_ERROR) / max(errors.baseline, _LEAST_ERROR)
        return min(1.0, max(0.0, (_WORTHLESS_RATIO - times) / (_WORTHLESS_RATIO - 1)))

    def forget(self, replica: ReplicaId) -> None:
        """It is gone, or became another machine."""
        self._errors.pop(replica, None)

    def __repr__(self) -> str:
        return f"<Audit of {len(self._errors)} replicas>"


def _chosen(record: DecisionRecord) -> Values:
    return next(values for values in record.offers if values[_REPLICA] == record.replica)


def _bound(record: DecisionRecord) -> int:
    return _UNLEARNED.forecast(record.asked("model"), record.asked("max_output_tokens"))[0]
