"""The chance that an answer goes on, as the KV forecast asks for it."""

from collections import Counter
from itertools import pairwise
from math import ceil, floor, log2
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.blocks import UNBOUNDED
from batching.estimators import KnownLength, Lengths
from batching.kv_forecast import HORIZONS

ANSWERS = st.lists(st.integers(1, 3000), min_size=20, max_size=300)


def seen(answers: list[int]):
    lengths = Lengths()
    for tokens in answers:
        lengths.add(tokens)
    return lengths


def longer(answers: list[int], tokens: float):
    return sum(answer > tokens for answer in answers) / len(answers)


@settings(deadline=None)
@given(ANSWERS, st.integers(0, 4000), st.integers(1, 4000))
def test_survival_falls_from_certainty_and_ends_at_the_bound(answers: list[int], emitted: int, bound: int):
    """What runs holds its tokens now; the chance only falls; at horizons behind the one that the bound falls before, nothing."""
    survival = seen(answers).survival(emitted, bound)
    assert survival[0] == 1.0
    assert list(survival) == sorted(survival, reverse=True)
    assert all(0 <= chance <= 1 for chance in survival)
    for before, chance in zip(HORIZONS, survival[1:], strict=False):
        assert chance == 0 or emitted + before < bound


@settings(deadline=None)
@given(ANSWERS, st.integers(0, 4000))
def test_survival_is_that_of_the_answers_seen(answers: list[int], emitted: int):
    """P(longer than emitted + ahead) / P(longer than emitted), exact at the edges of the quarter octaves and between them in between."""
    survival = seen(answers).survival(emitted, UNBOUNDED)
    since = emitted >> 3 << 3  # reckoned every eighth token

    def around(tokens: int):
        if tokens < 1:
            return 1.0, 1.0
        index = int(4 * log2(tokens))
        return longer(answers, 2 ** ((index + 1) / 4)), longer(answers, 2 ** (index / 4))

    least, most = around(since)
    if least == 0:
        return  # beyond, or nearly beyond, what was seen: the next test's
    for ahead, chance in zip(HORIZONS, survival, strict=True):
        fewer, more = around(since + ahead)
        assert fewer / most - 1e-9 <= chance <= min(1.0, more / least) + 1e-9


def test_beyond_what_was_seen_the_older_the_longer():
    """No answer got so long: an answer of n tokens goes on for another n with a chance of one half (Pareto, exponent 1)."""
    survival = seen([10] * 64).survival(1024, UNBOUNDED)
    assert survival == tuple(1024 / (1024 + ahead) for ahead in HORIZONS)
    assert survival[-1] == 0.5


@settings(deadline=None)
@given(st.lists(st.integers(1, 3000), max_size=19), st.integers(0, 500), st.integers(1, 500))
def test_until_twenty_were_seen_the_worst_is_certain(answers: list[int], emitted: int, bound: int):
    """Unknown is not short: every answer is taken to run to its bound, and to hold its tokens until the next horizon."""
    survival = seen(answers).survival(emitted, bound)
    expected = [1.0, *(float(emitted + before < bound) for before in HORIZONS[:-1])]
    assert list(survival) == expected


@pytest.mark.parametrize(
    ("emitted", "bound", "horizons"),
    [
        (0, UNBOUNDED, 4),  # 100 tokens: alive at 0, 16 and 64, held at 160
        (40, UNBOUNDED, 3),  # 60 more: alive at 0 and 16, held at 64
        (0, 16, 2),  # the client allows 16
        (100, UNBOUNDED, 1),  # all out, not yet given back
        (150, UNBOUNDED, 1),  # longer than foretold: it still holds what it holds
    ],
)
def test_a_known_length_ends_when_it_ends(emitted: Any, bound: Any, horizons: Any):
    """The clairvoyant's answers are certain until their last token, and nothing afterwards."""
    survival = KnownLength(100).survival(emitted, bound)
    assert survival == (1.0,) * horizons + (0.0,) * (len(HORIZONS) - horizons)


@settings(deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=32, max_size=32), st.integers(0, 2000))
def test_survival_goes_on_learning(answers: list[int], emitted: int):
    """Every 32nd answer the chances are reckoned anew, as if nothing had been asked before."""
    lengths = seen([5] * 32)
    lengths.survival(emitted, UNBOUNDED)
    for tokens in answers:
        lengths.add(tokens)
    assert lengths.survival(emitted, UNBOUNDED) == seen([5] * 32 + answers).survival(emitted, UNBOUNDED)


@settings(deadline=None)
@given(ANSWERS)
def test_quantiles_and_chances_agree(answers: list[int]):
    """At most a twentieth of what was seen is longer than the 0.95 quantile, and the bin below leaves more than that."""
    quantile = seen(answers).quantile(0.95)
    assert longer(answers, quantile) <= 0.05
    assert quantile == 1 or longer(answers, floor((quantile - 1) / 2**0.25) - 1) > 0.05


def test_what_its_bound_ends_says_nothing_of_where_it_would_end():
    """All so far were as long as they might be: another is certain to be, too, and not likely to end somewhere in the same bin before."""
    lengths = Lengths()
    for _ in range(64):
        lengths.add(600, cut=True)
    for emitted in range(0, 600, 8):
        assert lengths.survival(emitted, 600) == seen([]).survival(emitted, 600)  # the worst, as of unknown ones
    assert lengths.survival(590, 900)[HORIZONS.index(64)] == 1.0  # nobody was ever seen to end by itself


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=20, max_size=300))
def test_the_life_table_counts_half_of_what_is_cut_as_at_risk(answers: list[tuple[int, int]]):
    """By quarter octaves: of those that reach one the share that end in it, half of what is cut there being at risk; multiplied up."""
    lengths, bins = Lengths(), Counter[tuple[int, bool]]()
    for tokens, bound in answers:
        lengths.add(min(tokens, bound), cut=tokens >= bound)
        bins[ceil(4 * log2(min(tokens, bound))), tokens >= bound] += 1
    lives, at_risk = 1.0, float(len(answers))
    for index in range(60):
        ended, cut = bins[index, False], bins[index, True]
        if at_risk > 0:
            lives *= 1 - ended / (at_risk - cut / 2)
        at_risk -= ended + cut
        assert lengths._tail(ceil(2 ** (index / 4))) <= lives + 1e-9 or index == 0
        assert lengths._tail(floor(2 ** (index / 4))) >= lives - 1e-9


def test_cut_or_not_is_forgotten_alike():
    """After hundreds of answers that end by themselves where others were cut, those that were cut weigh little."""
    lengths = Lengths()
    for _ in range(200):
        lengths.add(600, cut=True)
    for _ in range(2000):
        lengths.add(600)
    assert lengths.survival(400, UNBOUNDED)[HORIZONS.index(384)] < 0.05


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3000), st.booleans()), min_size=1, max_size=60), st.integers(0, 2000))
def test_chances_only_fall_whatever_was_inherited_halved_or_cut(answers: list[tuple[int, bool]], more: int):
    """Shares, and falling ones, after fading and forgetting, too; of what was only ever cut all goes on, to the last digit."""
    lengths = Lengths()
    lengths.inherit(dict.fromkeys(range(20, 44), 7.3), 300.0, {21: 3.3, 43: 7.3})
    for tokens, cut in answers * (1 + more // len(answers)):
        lengths.add(tokens, cut=cut)
    tails = [lengths._tail(ceil(2 ** (index / 4))) for index in range(60)]
    assert all(after <= before + 1e-9 for before, after in pairwise(tails))
    assert all(0 <= tail <= 1 + 1e-9 for tail in tails)
    assert all(0 <= chance <= 1 for emitted in range(0, 3000, 100) for chance in lengths.survival(emitted, UNBOUNDED))
    if more > 200 and all(cut for _, cut in answers):
        assert min(tails) == pytest.approx(1.0, abs=1e-6)
