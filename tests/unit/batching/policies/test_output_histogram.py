"""AIBrix's output predictor: a draw from recent answers to prompts of about the same length."""

from collections import Counter
from random import Random

import pytest

from batching.policies.output_histogram import OutputHistogram, bucket


@pytest.mark.parametrize(
    ("tokens", "exponent"), [(0, 0), (1, 0), (2, 1), (5, 2), (6, 3), (90, 6), (91, 7), (1024, 10), (2**30, 19)]
)
def test_tokens_round_to_powers_of_two(tokens: int, exponent: int):
    """log2(5) = 2.32 -> 2, log2(6) = 2.58 -> 3; log2(90) = 6.49, log2(91) = 6.51; the last bucket takes the rest."""
    assert bucket(tokens) == exponent


def test_nothing_known_predicts_one_token():
    """The original's optimistic cold prediction; also for a prompt unlike all seen."""
    histogram = OutputHistogram(Random(1))
    assert histogram.predict(100) == 1
    histogram.add(100, 300, 0.0)
    assert histogram.predict(100) == 256
    assert histogram.predict(5000) == 1


def test_draws_with_the_frequencies_seen():
    """Three answers of about 16 to one of about 512."""
    histogram = OutputHistogram(Random(1))
    for output in (16, 15, 17, 500):
        histogram.add(1000, output, 0.0)
    drawn = Counter(histogram.predict(1000) for _ in range(4000))
    assert set(drawn) == {16, 512}
    assert 2850 <= drawn[16] <= 3150  # 3000 expected, deviation 27


def test_forgets_after_four_minutes():
    """24 slots of 10 s: what came in [0, 10) is in at 239.9 s and out at 240 s."""
    histogram = OutputHistogram(Random(1))
    histogram.add(1000, 16, 5.0)
    histogram.add(10, 1, 239.9)
    assert histogram.predict(1000) == 16
    histogram.add(10, 1, 240.0)
    assert histogram.predict(1000) == 1


def test_is_bounded():
    """A day of traffic keeps 24 slots and their cells."""
    histogram = OutputHistogram(Random(1))
    for second in range(0, 86_400, 7):
        histogram.add(second % 5000, second % 900, float(second))
    assert len(histogram._slots) <= 24
    assert len(histogram._counts) <= 400
    assert sum(histogram._counts.values()) == sum(sum(counts.values()) for _, counts in histogram._slots)
