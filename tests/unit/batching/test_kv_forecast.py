"""How full a KV cache gets: the forecast against dice, and the margin that the engine's own reports teach."""

from random import Random
from statistics import fmean, pvariance
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.estimators import KnownLength, Lengths
from batching.kv_forecast import (
    _LARGEST_MARGIN,
    _LEAST_MARGIN,
    _STEP_DOWN,
    _STEP_UP,
    HORIZONS,
    Holder,
    KvRisk,
    fits,
    free_tokens,
)
from batching.replica import EngineLoad
from batching.request import Outcome
from tests.support.scheduling import leases, placed, profile, request, scheduler

TRIALS = 4000


def lognormal(dice: Random, bound: int = 10**9):
    """Output lengths as chats have them: half are below 150 tokens, one in ten is beyond 400."""
    return min(bound, max(1, int(dice.lognormvariate(5.0, 0.8))))


def learned(dice: Random):
    lengths = Lengths()
    for _ in range(480):
        lengths.add(lognormal(dice))
    return lengths


def moments(holders: list[Holder], index: int):
    """Mean and variance of the tokens held at one horizon, as `free_tokens` has them."""
    mean = -free_tokens(0, holders, 0.0)[index]
    return mean, (-free_tokens(0, holders, 1.0)[index] - mean) ** 2


@pytest.mark.parametrize("index", range(len(HORIZONS)))
def test_mean_and_variance_are_those_of_dice(index: int):
    """Each lease holds all its tokens while it runs and none afterwards; the sum's moments are within a few percent of dice."""
    dice = Random(index)
    holders = [
        Holder(dice.randrange(20, 900), dice.choice((1, 1, 3)), [dice.uniform(0.05, 1) for _ in HORIZONS])
        for _ in range(20)
    ]
    ahead = HORIZONS[index]
    sums = [
        sum(h.tokens + h.sequences * ahead for h in holders if dice.random() < h.survival[index]) for _ in range(TRIALS)
    ]
    mean, variance = moments(holders, index)
    assert mean == pytest.approx(fmean(sums), rel=0.02)
    assert variance == pytest.approx(pvariance(sums), rel=0.08)


def test_learned_lengths_foretell_the_sum():
    """A running batch, each somewhere in its answer, by 480 answers seen: the mean at every horizon within 8 % of dice."""
    dice = Random(1)
    lengths, running = learned(dice), []
    while len(running) < 40:
        tokens = lognormal(dice)
        running.append((tokens, dice.randrange(tokens)))
    holders = [Holder(200 + emitted, 1, lengths.survival(emitted, 10**9)) for _, emitted in running]

    def going_on(emitted: int):
        while (tokens := lognormal(dice)) <= emitted:
            pass
        return tokens

    totals = [0.0] * len(HORIZONS)
    for _ in range(400):
        ends = [(emitted, going_on(emitted)) for _, emitted in running]
        for index, ahead in enumerate(HORIZONS):
            totals[index] += sum(200 + emitted + ahead for emitted, end in ends if end > emitted + ahead) / 400
    for index in range(5):  # at 1,024 tokens ahead hardly anything is left to compare
        assert moments(holders, index)[0] == pytest.approx(totals[index], rel=0.08)


def test_the_margin_covers_what_the_mean_does_not():
    """At 1.64 standard deviations a batch in full swing outgrows its forecast in fewer than one of twenty cases."""
    dice = Random(2)
    lengths = learned(dice)
    outgrown = 0
    for _ in range(120):
        running = [(tokens, dice.randrange(tokens)) for tokens in (lognormal(dice) for _ in range(64))]
        holders = [Holder(200 + emitted, 1, lengths.survival(emitted, 10**9)) for _, emitted in running]
        forecast = -min(free_tokens(0, holders, 1.64))
        peak = max(
            sum(200 + emitted + ahead for tokens, emitted in running if tokens >= emitted + ahead)
            for ahead in range(0, 1500, 48)
        )
        outgrown += peak > forecast
    assert outgrown < 6


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 1024), st.integers(0, 1024)), min_size=1, max_size=10))
def test_what_is_known_is_never_more_than_foretold(answers: list[tuple[int, int, int]]):
    """Ends between two horizons count as held at the later: no known batch ever holds more than its forecast.

    As far as the last horizon reaches, that is.
    """
    running = [(prompt, end, min(emitted, end)) for prompt, end, emitted in answers]
    holders = [
        Holder(prompt + emitted, 1, KnownLength(end).survival(emitted, end), end - emitted)
        for prompt, end, emitted in running
    ]
    forecast = -min(free_tokens(0, holders, 0.0))
    for _, ends, begun in running:
        ahead = ends - begun  # the sum peaks where one of them ends
        assert sum(prompt + e + ahead for prompt, end, e in running if end >= e + ahead) <= forecast


def test_one_more_fits_where_every_horizon_has_room():
    """A newcomer's mean must fit at each horizon; what it cannot reach needs no room."""
    survival = KnownLength(100).survival(0, 100)
    newcomer = Holder(50, 1, survival, 100)
    free = (50.0, 66.0, 114.0, 150.0, 0.0, 0.0)
    assert fits(free, newcomer)
    for index in range(4):
        assert not fits((*free[:index], free[index] - 1, *free[index + 1 :]), newcomer)


def test_a_preemption_is_worth_many_quiet_reports():
    """Up by each new preemption, down as far by no fewer than 20 full reports without one; bounded both ways."""
    risk = KvRisk(2.0)
    risk.observe(7, None)
    assert risk.margin == 2.0  # preemptions from before we looked
    risk.observe(8, 0.95)
    assert risk.margin == 2.0 + _STEP_UP
    quiet = round(_STEP_UP / _STEP_DOWN)
    assert quiet >= 20
    for _ in range(quiet):
        risk.observe(8, 0.95)
    assert risk.margin == pytest.approx(2.0)
    for total in range(9, 99):
        risk.observe(total, 0.95)
    assert risk.margin == _LARGEST_MARGIN
    for _ in range(99 * quiet):
        risk.observe(98, 0.95)
    assert risk.margin == _LEAST_MARGIN


@pytest.mark.parametrize(("preemptions", "usage"), [(8, 0.5), (8, None), (None, 0.95)])
def test_what_says_nothing_teaches_nothing(preemptions: Any, usage: Any):
    """A cache with room left, or an engine that does not tell, moves the margin neither way."""
    risk = KvRisk(2.0)
    risk.observe(8, 0.5)
    risk.observe(preemptions, usage)
    assert risk.margin == 2.0


def test_unknown_lengths_reserve_the_worst():
    """Before answers were seen the forecast lets nothing in that the bound would not."""
    built = scheduler(profile(kv_blocks=41))
    for number in range(8):
        built.submit(request(f"r{number}"), 0.0)  # 10 blocks each
    assert len(placed(built.advance(0.0))) == 4


def test_learned_lengths_let_more_in():
    """One long answer in twelve makes a high quantile of 500 tokens; the sum of many is far below as many times that."""
    fitted = []
    for without in (frozenset(), frozenset({"kv_forecast"})):
        built = scheduler(profile(kv_blocks=400, max_num_seqs=64), scheduling={"without": without})
        for number in range(480):
            built._estimators.outputs.learn("m", 600, 500 if number % 12 == 0 else 20)
        for number in range(40):
            built.submit(request(f"r{number}", max_output_tokens=600), 0.0)
        fitted.append(len(placed(built.advance(0.0))))
    assert fitted[1] == 10  # 6 + 33 blocks each of 392: 500 lies below the edge at 512
    assert fitted[0] > 2 * fitted[1]


def crowd(*, foreign_ratio: float = 0.0, preemptions: int = 0):
    """How many of 200 fit where lengths are known to vary, beside what is not ours and after so many preemptions."""
    built = scheduler(
        profile(kv_blocks=1000, max_num_seqs=256, max_num_batched_tokens=65_536),
        scheduling={"without": ["itl_guard"]},  # nothing but the cache binds
    )
    for number in range(480):
        built._estimators.outputs.learn("m", 600, 500 if number % 4 == 0 else 20)
    for total in (0, preemptions):
        load = EngineLoad(observed_s=0.0, kv_usage_ratio=foreign_ratio, preemptions_total=total)
        built.observe(profile().id, load, 0.0)
    for number in range(200):
        built.submit(request(f"r{number}", prompt_tokens=10, max_output_tokens=600), 0.0)
    return len(placed(built.advance(0.0)))


def test_what_is_not_ours_is_not_to_give():
    """Half of the cache in foreign hands, and half as many fit by the forecast."""
    assert crowd(foreign_ratio=0.5) == pytest.approx(crowd() / 2, rel=0.2)


def test_a_preemption_makes_room():
    """The margin it adds is kept free from then on: fewer fit, at the same mean."""
    assert crowd(preemptions=1) < crowd()


def test_the_forecast_is_of_this_moment():
    """What ends gives its share back, and nothing else does."""
    built = scheduler(profile(kv_blocks=41))
    for number in range(8):
        built.submit(request(f"r{number}"), 0.0)
    running = leases(built.advance(0.0))
    for lease in running:
        built.on_first_token(lease.id, 0.1)
        built.on_tokens(lease.id, 60, 0.1)  # all that the client allows, and still there
    assert placed(built.advance(0.1)) == []
    for number, lease in enumerate(running):
        built.finish(lease.id, 0.2, outcome=Outcome.CANCELLED)
        assert placed(built.advance(0.2)) == [f"r{4 + number}"]


def test_answers_that_always_reach_their_bound_never_outgrow_the_cache():
    """Known to run to their bound, they are let in as far as they fit there: however far those that run have got."""
    for emitted in range(0, 600, 25):
        built = scheduler(profile(kv_blocks=400, max_num_seqs=64), scheduling={"without": ["itl_guard"]})
        for _ in range(64):
            built._estimators.outputs.learn("m", 600, 600)
        running = 0
        for number in range(64):
            built.submit(request(f"r{number}", prompt_tokens=80, max_output_tokens=600), 0.0)
            for lease in leases(built.advance(0.0)):
                running += 1
                built.on_first_token(lease.id, 0.1)
                built.on_tokens(lease.id, max(1, emitted), 0.1)
        assert running * (80 + 600) <= 400 * 16
        assert (running + 1) * (80 + 600) > 0.95 * 400 * 16
