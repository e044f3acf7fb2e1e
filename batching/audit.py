"""Whether what is learned is worth believing: predictions against what happened, beside what would have been said without learning.

Per replica and signal, the mean error of both, lately. A signal that does worse than its baseline loses weight by itself, and
gains it again when it does better: whoever predicts says `believed(learned, baseline, weight)`. Judged is what was learned alone,
never that blend, or a signal without weight could not earn any.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

_WEIGHT: Final = 0.05  # of a new sample: a change shows within some twenty answers
_PLAIN_MEAN: Final = 20  # samples: below it the mean of all
_SAMPLES_NEEDED: Final = 20  # before a signal is doubted
_WORTHLESS_RATIO: Final = 2.0  # errors so many times its baseline's: nothing is left of the weight
_LEAST_ERROR: Final = 0.02  # below it two errors are equally good: no timing is known better
_LARGEST_ERROR: Final = 0.9  # of predictions: ten times what was predicted is waited for, no more


class Signal(StrEnum):
    """What is predicted, and against which baseline it must hold its own."""

    TTFT = "ttft"  # from placement to first token; without the learned factor
    TPOT = "tpot"  # per output token; without the learned factor
    OUTPUT = "output_tokens"  # per sequence; the client's own bound
    CACHED = "cached_tokens"  # of the prompt; that nothing is cached
    FINISH = "finish"  # from placement to the end; of the three baselines above
    KV_USAGE = (
        "kv_usage"  # blocks in use at an engine's report, by our ledger; that nothing has changed since the last report
    )
    KV_FORECAST = "kv_forecast"  # tokens that running streams hold some steps later; that none of them ends


class Forecast(NamedTuple):
    """What was said of one request when it was placed: by what was learned alone, and (`prior`) without it. Tokens per sequence."""

    ttft_s: float
    ttft_prior_s: float
    tpot_s: float
    tpot_prior_s: float
    output_tokens: int
    output_prior_tokens: int
    cached_tokens: int


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
    """Mean errors lately, 0 to 1, and what the signal has earned by them."""

    learned: float
    baseline: float
    samples: int
    weight: float


def error_ratio(predicted: float, actual: float) -> float:
    """The difference over the greater of both: 0 is right, 0.5 off by a factor of two, 1 beyond all measure.

    Symmetric and bounded, so that one stalled stream does not outweigh a hundred others.
    """
    return 0.0 if predicted == actual else 1 - min(predicted, actual) / max(predicted, actual)


def at_worst(predicted_s: float, error: float) -> float:
    """An error is the difference over the greater: what was predicted, if it errs to the short side as it usually does."""
    return predicted_s / (1 - min(error, _LARGEST_ERROR))


def believed(learned: float, baseline: float, weight: float) -> float:
    """What to go by; exactly what was learned at full weight."""
    return learned if weight == 1.0 else baseline + weight * (learned - baseline)


# The signal's place in `Signal`, then as in Judged: bare, as five are made for every request that ends.
Sample = tuple[int, float, float, float]
_TTFT, _TPOT, _OUTPUT, _CACHED, _FINISH, _KV_USAGE, _KV_FORECAST = range(len(Signal))
_SIGNALS: Final = tuple(Signal)
SIGNAL_NAMES: Final = tuple(signal.value for signal in Signal)  # by the place in a Sample


def judge(
    forecast: Forecast,
    *,
    placed_s: float,
    first_token_s: float | None,
    last_token_s: float | None,
    finished_s: float,
    tokens: int,
    cached_tokens: int | None,
) -> list[Sample]:
    """What can be said after a whole answer. `tokens`: of a sequence. Each signal alone: the others are as they were used."""
    ttft_s, ttft_prior_s, tpot_s, tpot_prior_s, expected, prior, cached = forecast
    found: list[Sample] = []
    if first_token_s is not None:
        found.append((_TTFT, ttft_s, ttft_prior_s, first_token_s - placed_s))
        if last_token_s is not None and tokens > 1:  # one token has no pace
            found.append((_TPOT, tpot_s, tpot_prior_s, (last_token_s - first_token_s) / (tokens - 1)))
    if expected and tokens:
        found.append((_OUTPUT, expected, prior, tokens))
    if cached_tokens is not None and (cached_tokens or cached):
        found.append((_CACHED, cached, 0, cached_tokens))
    finish_s = ttft_s + tpot_s * (expected - 1) if expected else ttft_s
    finish_prior_s = ttft_prior_s + tpot_prior_s * (prior - 1) if prior else ttft_prior_s
    found.append((_FINISH, finish_s, finish_prior_s, finished_s - placed_s))
    return found


def named(samples: Iterable[Sample]) -> list[Judged]:
    """For people."""
    return [Judged(_SIGNALS[place], *values) for place, *values in samples]


class Tally:
    """The errors of one signal. `weight`: how far to believe what was learned, 1 to 0.

    1 as long as it does no worse than its baseline, or too little was seen; 0 where its errors are twice as large.
    """

    __slots__ = ("_doubted", "baseline", "learned", "samples", "weight")

    def __init__(self, *, doubted: bool = True) -> None:
        """`doubted` False: errors are kept, and the weight is always 1."""
        self._doubted = doubted
        self.learned = 0.0
        self.baseline = 0.0
        self.samples = 0
        self.weight = 1.0

    def add(self, predicted: float, baseline: float, actual: float) -> None:
        """One prediction came true, or did not. O(1), and spelled out: it is done five times for every request that ends."""
        samples = self.samples = self.samples + 1
        share = _WEIGHT if samples > _PLAIN_MEAN else 1 / samples
        error = 0.0 if predicted == actual else 1 - (predicted / actual if predicted < actual else actual / predicted)
        learned = self.learned = self.learned + share * (error - self.learned)
        error = 0.0 if baseline == actual else 1 - (baseline / actual if baseline < actual else actual / baseline)
        by_baseline = self.baseline = self.baseline + share * (error - self.baseline)
        if samples < _SAMPLES_NEEDED or not self._doubted:
            return
        if learned <= by_baseline or learned <= _LEAST_ERROR:
            self.weight = 1.0
        else:
            times = learned / max(_LEAST_ERROR, by_baseline)
            left = (_WORTHLESS_RATIO - times) / (_WORTHLESS_RATIO - 1)
            self.weight = left if left > 0 else 0.0

    @property
    def known(self) -> bool:
        """Whether enough was seen to say anything."""
        return self.samples >= _SAMPLES_NEEDED

    @property
    def error(self) -> float:
        """Of what `believed` says, about; 0 to 1."""
        return believed(self.learned, self.baseline, self.weight)


class Audit:
    """One replica's signals."""

    __slots__ = ("_tallies",)

    def __init__(self, *, doubting: bool = True) -> None:
        """`doubting` False: the mechanism is off, every weight stays 1."""
        self._tallies = [Tally(doubted=doubting) for _ in _SIGNALS]

    def observe(self, samples: Iterable[Sample]) -> None:
        """What was said of a request, after its end."""
        tallies = self._tallies
        for place, predicted, baseline, actual in samples:
            tallies[place].add(predicted, baseline, actual)

    @property
    def ttft(self) -> Tally:
        return self._tallies[_TTFT]

    @property
    def tpot(self) -> Tally:
        return self._tallies[_TPOT]

    @property
    def cached(self) -> Tally:
        return self._tallies[_CACHED]

    @property
    def finish(self) -> Tally:
        return self._tallies[_FINISH]

    @property
    def kv_usage(self) -> Tally:
        return self._tallies[_KV_USAGE]

    @property
    def kv_forecast(self) -> Tally:
        return self._tallies[_KV_FORECAST]

    def errors(self) -> dict[Signal, Errors]:
        """Of the signals that were seen at all."""
        return {
            signal: Errors(tally.learned, tally.baseline, tally.samples, tally.weight)
            for signal, tally in zip(_SIGNALS, self._tallies, strict=True)
            if tally.samples
        }

    def __repr__(self) -> str:
        return f"<Audit {', '.join(f'{signal} {errors.weight:.2f}' for signal, errors in self.errors().items())}>"
