"""What the scheduler learns online, each with a prior: characters per token, output lengths, speeds, the drain rate.

Every estimate is O(1) in memory per key, and keys are models and replicas of the fleet. Decides nothing.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from math import ceil, exp, log2
from typing import Final, NamedTuple

from batching.audit import Tally, believed
from batching.kv_forecast import HORIZONS
from batching.life_table import outliving

_CHARS_PRIOR: Final = 4.0  # English under BPE vocabularies of 32k-128k
_CHARS_RANGE = (0.25, 32.0)  # CJK byte fallback .. runs of spaces; outside it somebody miscounted
_CHARS_WEIGHT: Final = 0.05  # of a new sample: a model's mix of languages changes over tens of requests
_OUTPUT_PRIOR: Final = 512  # tokens, where the client sets no bound; above the mean of published chat traces (200-400)
_SAMPLES_NEEDED: Final = 20  # before a learned quantile replaces the prior
_BINS_PER_OCTAVE: Final = 4  # a quantile is at most 2^(1/4) = 19 % too long
_BINS: Final = 24 * _BINS_PER_OCTAVE  # up to 16M tokens
_FORGET_AT: Final = 512  # samples: then all are halved, so that a shift of traffic shows within a few hundred requests
_SURVIVAL_EVERY: Final = 32  # answers after which the chances to go on are reckoned anew
_INHERITED: Final = 64  # others' answers count as so many at most: three times what is needed
_LEAST_QUANTILE: Final = 0.01  # of lengths: the short answers, whose time per token one long prompt can ruin
_LEAST_PRIOR: Final = 16
_SPEED_WEIGHT: Final = 0.1
_STEP_WEIGHT: Final = 0.02  # steps are many, and each sample is noisy
_SPEED_RANGE = (0.1, 10.0)  # a prior is not off by more; a broken stream is
_DRAIN_TAU_S: Final = 10.0
_CERTAIN: Final = (1.0,) * len(HORIZONS)


class CharsPerToken:
    """Prompt tokens from characters, per model."""

    __slots__ = ("_ratio", "_samples")

    def __init__(self) -> None:
        self._ratio: dict[str, float] = {}
        self._samples: dict[str, int] = {}

    def prompt_tokens(self, model: str, chars: int) -> int:
        """At least 1."""
        return max(1, ceil(chars / self._ratio.get(model, _CHARS_PRIOR)))

    def learn(self, model: str, *, chars: int, tokens: int) -> None:
        if chars <= 0 or tokens <= 0:
            return
        sample = min(max(chars / tokens, _CHARS_RANGE[0]), _CHARS_RANGE[1])
        ratio = self._ratio.get(model, _CHARS_PRIOR)
        self._ratio[model] = ratio + _CHARS_WEIGHT * (sample - ratio)
        self._samples[model] = self._samples.get(model, 0) + 1

    def known(self) -> dict[str, tuple[float, int]]:
        """By model: what was learned, and from how many answers."""
        return {model: (ratio, self._samples[model]) for model, ratio in self._ratio.items()}

    def inherit(self, model: str, ratio: float, samples: int) -> None:
        """What others have learned, where nothing is known."""
        if samples > 0 and model not in self._ratio:
            self._ratio[model] = min(max(ratio, _CHARS_RANGE[0]), _CHARS_RANGE[1])
            self._samples[model] = samples


class Lengths:
    """Output lengths of one kind of request, as seen lately: quantiles, mean and the chance to go on."""

    __slots__ = (
        "_below",
        "_counts",
        "_cut",
        "_inherited",
        "_quantiles",
        "_sum",
        "_survivals",
        "_tails",
        "_total",
        "_used",
        "audit",
        "samples",
    )

    def __init__(self, *, doubted: bool = True) -> None:
        self.audit = Tally(doubted=doubted)  # of the mean, against the client's own bound
        self._counts = [0.0] * _BINS
        self._cut = [0.0] * _BINS  # of them, those that their bound ended
        # Counts, those cut and sum of others', and answers until they are gone.
        self._inherited: tuple[list[float], list[float], float, int] | None = None
        self._used = 1  # bins up to the longest answer's
        self._below: list[float] = []  # answers in each of them and those before it
        self._quantiles: dict[float, int] = {}
        self._tails: list[float] = []
        self._survivals: dict[int, tuple[float, ...]] = {}
        self._total = 0.0
        self._sum = 0.0
        self.samples = 0

    def inherit(self, counts: Mapping[int, float], mean: float, cut: Mapping[int, float]) -> None:
        """Others' answers, where none were seen: they count as few, and are gone when as many were seen here. `cut`: of them, by their bound."""
        total = sum(counts.values())
        if self.samples or total < 1 or mean < 1:
            return
        scale = min(1.0, _INHERITED / total)
        self._counts = [scale * counts.get(index, 0.0) for index in range(_BINS)]
        self._cut = [min(scale * cut.get(index, 0.0), count) for index, count in enumerate(self._counts)]
        self._used = 1 + max(index for index, count in counts.items() if count)
        self._total = scale * total
        self._sum = self._total * mean
        self.samples = int(self._total)
        self._inherited = list(self._counts), list(self._cut), self._sum, _INHERITED

    def histogram(self) -> tuple[dict[int, float], float, dict[int, float]]:
        """({bin: answers}, their mean, {bin: of them, those that their bound ended}), with what is left of others'."""
        counts, cut = (
            {index: round(count, 2) for index, count in enumerate(each[: self._used]) if count >= 0.01}
            for each in (self._counts, self._cut)
        )
        return counts, self._sum / self._total if self._total > 0 else 0.0, cut

    def _fade(self) -> None:
        """One answer's part of what is left of others'."""
        if self._inherited is None:
            return
        counts, cut, total, left = self._inherited
        self._counts, self._cut = (
            [max(0.0, count - other / _INHERITED) for count, other in zip(own, others, strict=True)]
            for own, others in ((self._counts, counts), (self._cut, cut))
        )
        self._total = max(0.0, self._total - sum(counts) / _INHERITED)
        self._sum = max(0.0, self._sum - total / _INHERITED)
        self._below.clear()
        self._inherited = (counts, cut, total, left - 1) if left > 1 else None

    def add(self, tokens: int, *, cut: bool = False) -> None:
        """`cut`: its bound ended it; how long it would have become nobody knows."""
        self._fade()
        place = min(_BINS - 1, ceil(_BINS_PER_OCTAVE * log2(tokens)))
        self._counts[place] += 1
        self._cut[place] += cut
        self._used = max(self._used, place + 1)
        self._total += 1
        self._sum += tokens
        self.samples += 1
        if self._total >= _FORGET_AT:
            self._counts = [count / 2 for count in self._counts]
            self._cut = [count / 2 for count in self._cut]
            self._total /= 2
            self._sum /= 2
            self._below.clear()
        self._count_below(place)
        self._quantiles.clear()
        if self.samples % _SURVIVAL_EVERY == 0:
            self._tails.clear()
            self._survivals.clear()

    def _count_below(self, place: int) -> None:
        """One answer more in a bin; where sums are known."""
        below = self._below
        if below:
            while len(below) < self._used:
                below.append(below[-1])
            for index in range(place, self._used):
                below[index] += 1

    def mean(self) -> int:
        return ceil(self._sum / self._total)

    def quantile(self, q: float) -> int:
        """The upper edge of the bin it falls in."""
        known = self._quantiles.get(q)
        if known is None:
            if not self._below:
                self._below = list(accumulate(self._counts[: self._used]))
            index = min(bisect_left(self._below, q * self._total - 1e-9), self._used - 1)
            known = self._quantiles[q] = ceil(2 ** (index / _BINS_PER_OCTAVE))
        return known

    def least(self) -> int:
        """Tokens that nearly every answer reaches; few until it is known."""
        return _LEAST_PRIOR if self.samples < _SAMPLES_NEEDED else self.quantile(_LEAST_QUANTILE)

    def survival(self, emitted: int, bound: int) -> tuple[float, ...]:
        """The chance that an answer of `emitted` tokens still holds its tokens at each of `HORIZONS` tokens further on.

        Certain up to `bound` until enough answers were seen; nothing goes beyond it.
        """
        if self.samples < _SAMPLES_NEEDED:
            return _until(bound - emitted, _CERTAIN)
        step = emitted >> 3
        known = self._survivals.get(step)
        if known is None:
            known = self._survivals[step] = self._surviving(step << 3)
        if emitted + HORIZONS[-1] < bound:
            return known
        return _until(bound - emitted, known)

    def _surviving(self, emitted: int) -> tuple[float, ...]:
        now = self._tail(emitted)
        if (
            now < 1 / self._total
        ):  # longer than what was seen: the older, the longer it will go on (Pareto with exponent 1)
            return tuple(emitted / (emitted + ahead) if emitted else 1.0 for ahead in HORIZONS)
        return tuple(min(1.0, self._tail(emitted + ahead) / now) for ahead in HORIZONS)

    def _tail(self, tokens: int) -> float:
        """The share of answers that would get longer, if there were no bounds."""
        if not self._tails:
            self._tails = outliving(self._counts, self._cut, self._total)
        if tokens < 1:
            return 1.0
        place = _BINS_PER_OCTAVE * log2(tokens)  # bin i reaches from 2^((i-1)/4), exclusive, to 2^(i/4)
        index = int(place)
        if index >= _BINS - 1:
            return self._tails[-1]
        lower = self._tails[index]
        return lower + (place - index) * (self._tails[index + 1] - lower)


class KnownLength:
    """An answer whose length is known beforehand: for a clairvoyant scheduler to measure ours against."""

    __slots__ = ("tokens",)

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def survival(self, emitted: int, bound: int) -> tuple[float, ...]:
        return _until(min(self.tokens, bound) - emitted, _CERTAIN)


def _until(rest: int, lives: tuple[float, ...]) -> tuple[float, ...]:
    """Of chances to live: nothing gets more than `rest` tokens; what ends between two horizons is held at the later one, too."""
    ended = (lives[0], *(then if ahead < rest else 0.0 for then, ahead in zip(lives, HORIZONS, strict=True)))
    return tuple(now if ahead < rest else end for now, end, ahead in zip(lives, ended, HORIZONS, strict=False))


class LengthForecast(NamedTuple):
    """Output tokens per sequence."""

    reserve: int
    average: int
    learned: int  # the average as it was learned, whatever the audit thinks of it
    prior: int  # what would be said without learning: the client's own bound


class OutputLengths:
    """Output tokens per sequence, by model and the octave of `max_output_tokens`."""

    __slots__ = ("_doubting", "_lengths", "_quantile")

    def __init__(self, quantile: float, *, doubting: bool = True) -> None:
        """`doubting` False: what was learned is believed, however wrong it has been."""
        self._quantile = quantile
        self._doubting = doubting
        self._lengths: dict[tuple[str, int], Lengths] = {}

    def forecast(self, model: str, max_output_tokens: int | None) -> LengthForecast:
        """All within the client's bound; the prior until enough was seen, and as far as learning has done worse than it."""
        return self.known(model, max_output_tokens)[0]

    def known(self, model: str, max_output_tokens: int | None) -> tuple[LengthForecast, Lengths]:
        """The forecast, and what it is made from."""
        bound = max_output_tokens or _OUTPUT_PRIOR
        lengths = self.lengths(model, max_output_tokens)
        return self._forecast(lengths, bound, max_output_tokens), lengths

    def _forecast(self, lengths: Lengths, bound: int, max_output_tokens: int | None) -> LengthForecast:
        if lengths.samples < _SAMPLES_NEEDED:
            average = min(bound, _OUTPUT_PRIOR)
            return LengthForecast(bound, average, average, bound)
        reserve, average = lengths.quantile(self._quantile), lengths.mean()
        if max_output_tokens is not None:
            reserve, average = min(reserve, max_output_tokens), min(average, max_output_tokens)
        # The mean is judged, so the mean is doubted; what a quantile is worth, the engine's preemptions tell (KvRisk).
        return LengthForecast(reserve, ceil(believed(average, bound, lengths.audit.weight)), average, bound)

    def lengths(self, model: str, max_output_tokens: int | None) -> Lengths:
        """What was seen of such requests; it goes on learning."""
        kind = (model, -1 if max_output_tokens is None else min(max_output_tokens.bit_length(), 24))  # by the octave
        known = self._lengths.get(kind)
        if known is None:
            known = self._lengths[kind] = Lengths(doubted=self._doubting)
        return known

    def least(self, model: str, max_output_tokens: int | None) -> int:
        """Tokens that nearly every answer reaches; few until it is known."""
        return self.lengths(model, max_output_tokens).least()

    def kinds(self) -> Iterable[tuple[tuple[str, int], Lengths]]:
        """By model and octave of the client's bound."""
        return self._lengths.items()

    def inherit(
        self, model: str, octave: int, counts: Mapping[int, float], mean: float, cut: Mapping[int, float]
    ) -> None:
        """What others have seen of such answers."""
        known = self._lengths.get((model, octave))
        if known is None:
            known = self._lengths[model, octave] = Lengths(doubted=self._doubting)
        known.inherit(counts, mean, cut)

    def learn(self, model: str, max_output_tokens: int | None, output_tokens: int) -> None:
        if output_tokens <= 0:
            return
        lengths = self.lengths(model, max_output_tokens)
        if lengths.samples >= _SAMPLES_NEEDED:
            bound = max_output_tokens or _OUTPUT_PRIOR
            mean = lengths.mean()
            lengths.audit.add(mean if max_output_tokens is None else min(mean, bound), bound, output_tokens)
        lengths.add(output_tokens, cut=max_output_tokens is not None and output_tokens >= max_output_tokens)


class ReplicaSpeed:
    """How one replica differs from its GPU type's prior, as ratios; and how far its prefix cache can be believed."""

    __slots__ = ("prefix_trust_ratio", "tpot_factor", "ttft_factor")

    def __init__(self) -> None:
        self.ttft_factor = 1.0
        self.tpot_factor = 1.0
        self.prefix_trust_ratio = 1.0

    def learn_ttft(self, *, observed_s: float, predicted_s: float) -> None:
        """Of one first token; the prediction had the factor in it."""
        self.ttft_factor = _corrected(self.ttft_factor, observed_s, predicted_s, _SPEED_WEIGHT)

    def learn_step(self, *, observed_s: float, predicted_s: float) -> None:
        """Of a decode step without prefill in it; the prediction had the factor in it."""
        if predicted_s <= 0:  # as `_corrected`, spelled out: every step of every replica teaches
            return
        least, most = _SPEED_RANGE
        ratio = observed_s / predicted_s
        ratio = least if ratio < least else most if ratio > most else ratio
        factor = self.tpot_factor * (1 + _STEP_WEIGHT * (ratio - 1))
        self.tpot_factor = least if factor < least else most if factor > most else factor

    def learn_cached(self, *, reported_tokens: int, expected_tokens: int) -> None:
        """More than expected says nothing against the belief."""
        if expected_tokens > 0:
            sample = min(reported_tokens / expected_tokens, 1.0)
            self.prefix_trust_ratio += _SPEED_WEIGHT * (sample - self.prefix_trust_ratio)


def _corrected(factor: float, observed_s: float, predicted_s: float, weight: float) -> float:
    if predicted_s <= 0:
        return factor
    ratio = min(max(observed_s / predicted_s, _SPEED_RANGE[0]), _SPEED_RANGE[1])
    return min(max(factor * (1 + weight * (ratio - 1)), _SPEED_RANGE[0]), _SPEED_RANGE[1])


class DrainRate:
    """Requests that leave the queue for a replica, per second, over about the last ten seconds."""

    __slots__ = ("_count", "_last_s", "_start_s")

    def __init__(self) -> None:
        self._count = 0.0
        self._start_s: float | None = None
        self._last_s = 0.0

    def note(self, now: float) -> None:
        if self._start_s is None:
            self._start_s = self._last_s = now
        self._count = self._count * exp((self._last_s - now) / _DRAIN_TAU_S) + 1
        self._last_s = now

    def per_s(self, now: float) -> float | None:
        """None until something has left."""
        if self._start_s is None:
            return None
        # A young counter has not had ten seconds to fill; a second at least, or one placement would look like a flood.
        filled = 1 - exp(-max(now - self._start_s, 1.0) / _DRAIN_TAU_S)
        return self._count * exp((self._last_s - now) / _DRAIN_TAU_S) / (_DRAIN_TAU_S * filled)


class Estimators:
    """The estimates that outlive replicas."""

    __slots__ = ("chars", "drains", "outputs")

    def __init__(self, *, output_quantile: float, doubting: bool = True) -> None:
        self.chars = CharsPerToken()
        self.outputs = OutputLengths(output_quantile, doubting=doubting)
        self.drains: dict[str, DrainRate] = {}

    def note_placed(self, model: str, now: float) -> None:
        drain = self.drains.get(model)
        if drain is None:
            drain = self.drains[model] = DrainRate()
        drain.note(now)

    def drain_rate(self, model: str, now: float) -> float | None:
        drain = self.drains.get(model)
        return None if drain is None else drain.per_s(now)
