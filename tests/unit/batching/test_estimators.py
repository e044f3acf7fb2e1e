"""What is learned, from which prior, and how far it may go."""

from typing import Any

import pytest

from batching.capacity import LearnedSequences, prior_sequences
from batching.estimators import CharsPerToken, DrainRate, OutputLengths, ReplicaSpeed
from batching.replica import EngineLoad
from batching.request import Outcome, ReplicaId
from config.schema import ModelKind
from tests.support.scheduling import leases, profile, request, scheduler


def test_characters_per_token_start_at_four_and_follow_usage():
    """Per model: a model that needs two characters a token is learned, another keeps the prior."""
    chars = CharsPerToken()
    assert chars.prompt_tokens("m", 400) == 100
    for _ in range(200):
        chars.learn("m", chars=400, tokens=200)
    assert chars.prompt_tokens("m", 400) == pytest.approx(200, abs=2)
    assert chars.prompt_tokens("n", 400) == 100
    assert chars.prompt_tokens("n", 0) == 1


def test_output_forecast_is_the_bound_until_twenty_samples():
    """The client's max_tokens, else 512; then the learned quantile, at most a fifth too long, never beyond the bound."""
    outputs = OutputLengths(0.95)
    assert outputs.forecast("m", 4000)[:2] == (4000, 512)
    assert outputs.forecast("m", None)[:2] == (512, 512)
    for _ in range(19):
        outputs.learn("m", 4000, 100)
    assert outputs.forecast("m", 4000)[:2] == (4000, 512)
    outputs.learn("m", 4000, 100)
    reserve, average, *_ = outputs.forecast("m", 4000)
    assert 100 <= reserve <= 119
    assert average == 100
    assert outputs.forecast("m", 2050)[0] == reserve  # the same octave
    assert outputs.forecast("m", 300)[0] == 300  # another one: still the prior


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 1.0])
def test_output_quantile_covers_its_share(quantile: float):
    """At least the wanted share of what was seen is no longer than the forecast."""
    outputs = OutputLengths(quantile)
    for tokens in range(1, 401):
        outputs.learn("m", None, tokens)
    reserve, *_ = outputs.forecast("m", None)
    assert 400 * quantile <= reserve <= 400 * quantile * 2**0.25 + 1


def test_output_lengths_forget():
    """When traffic changes, a few hundred requests change the forecast."""
    outputs = OutputLengths(0.95)
    for tokens in [1000] * 600 + [10] * 6000:
        outputs.learn("m", None, tokens)
    assert outputs.forecast("m", None)[0] <= 12


def test_output_forecast_that_is_worse_than_the_bound_gives_way_to_it():
    """Nearly every answer reaches its bound, a few end at once: the mean misses nearly all, so the bound is expected again."""
    outputs, trusting = OutputLengths(0.5), OutputLengths(0.5, doubting=False)
    for number in range(400):
        for one in (outputs, trusting):
            one.learn("m", 64, 64 if number % 8 else 40)
    told, trusted = outputs.forecast("m", 64), trusting.forecast("m", 64)
    assert told.average == told.prior == 64
    assert trusted.average == trusted.learned == told.learned == 61  # what is judged is the mean, doubted or not


def test_doubt_changes_no_reservation():
    """The audit judges the mean; a quantile is worth what it was, whatever became of the mean."""
    outputs, trusting = OutputLengths(0.95), OutputLengths(0.95, doubting=False)
    for number in range(400):
        for one in (outputs, trusting):
            one.learn("m", None, 520 if number % 10 else 8000)
    told, trusted = outputs.forecast("m", None), trusting.forecast("m", None)
    assert told.average < told.learned  # it is doubted
    assert told.reserve == trusted.reserve


@pytest.mark.parametrize(("observed", "limit"), [(100.0, 10.0), (0.0001, 0.1), (2.0, 2.0)])
def test_speed_factor_is_bounded(observed: float, limit: Any):
    """What is observed over what the prior says, within [0.1, 10]; a prediction has the factor in it."""
    speed = ReplicaSpeed()
    for _ in range(600):
        speed.learn_ttft(observed_s=observed, predicted_s=speed.ttft_factor)
        speed.learn_step(observed_s=observed, predicted_s=speed.tpot_factor)
    assert speed.ttft_factor == pytest.approx(limit, rel=0.01)
    assert speed.tpot_factor == pytest.approx(limit, rel=0.01)


def test_one_odd_sample_moves_little():
    """A first token a hundred times late at most doubles the factor, a step moves it by a fifth; no prediction teaches nothing."""
    speed = ReplicaSpeed()
    speed.learn_ttft(observed_s=1.0, predicted_s=0.0)
    assert speed.ttft_factor == 1.0
    speed.learn_ttft(observed_s=100.0, predicted_s=1.0)
    speed.learn_step(observed_s=100.0, predicted_s=1.0)
    assert 1 < speed.ttft_factor <= 2
    assert 1 < speed.tpot_factor <= 1.2


def test_drain_rate_is_unknown_then_measured_then_fades():
    """Two a second is two a second; silence lets it fall."""
    drain = DrainRate()
    assert drain.per_s(0.0) is None
    for half in range(100):
        drain.note(half / 2)
    assert drain.per_s(49.5) == pytest.approx(2.0, rel=0.1)
    assert (drain.per_s(80.0) or 1) < 0.2


def test_priors_of_sequences_follow_the_gpu():
    """A machine nobody described holds what its memory suggests; an unknown one 32."""
    assert prior_sequences("unknown", 1) == 32
    assert prior_sequences("L4-24G", 1) < prior_sequences("H100-80G", 1) == 64


def test_learned_sequences_shrink_to_what_ran():
    """A queue in one report may be prompts on their way in; in two it is capacity. At most halved at a time."""
    learned = LearnedSequences(32)
    learned.observe(EngineLoad(observed_s=0, running=20, waiting=3), ours=23)
    assert learned.limit == 32
    learned.observe(EngineLoad(observed_s=1, running=20, waiting=3), ours=23)
    assert learned.limit == 20
    learned.observe(EngineLoad(observed_s=2, running=1, waiting=9), ours=10)
    learned.observe(EngineLoad(observed_s=3, running=1, waiting=9), ours=10)
    assert learned.limit >= 5


def test_learned_sequences_shrink_on_preemption_and_grow_when_full():
    """A new preemption is capacity at once; full with nothing waiting grows by four; unknown waiting never does."""
    learned = LearnedSequences(32)
    learned.observe(EngineLoad(observed_s=0, running=30, preemptions_total=5), ours=32)
    assert learned.limit == 32
    learned.observe(EngineLoad(observed_s=1, running=30, preemptions_total=6), ours=32)
    assert learned.limit == 30
    learned.observe(EngineLoad(observed_s=2, running=30, waiting=0, preemptions_total=6), ours=30)
    assert learned.limit == 34
    learned.observe(EngineLoad(observed_s=3, running=30, waiting=0), ours=20)
    assert learned.limit == 34


def test_the_scheduler_learns_from_what_finishes():
    """Usage teaches characters, output lengths and trust in the prefix cache."""
    built = scheduler(profile())
    for number in range(60):
        now = float(number)
        built.submit(request(prompt_chars=200, max_output_tokens=60, prefix_hashes=(1,), prefix_chunk_tokens=64), now)
        lease = leases(built.advance(now))[0]
        assert built.finish(
            lease.id, now + 0.3, outcome=Outcome.COMPLETED, prompt_tokens=100, cached_tokens=0, output_tokens=11
        )
    assert built.prompt_tokens("m", 200) == pytest.approx(100, abs=5)
    assert built.states(60.0)[0].extras["prefix_trust_ratio"] < 0.01
    built.submit(request(), 61.0)
    built.advance(61.0)
    assert built.states(61.0)[0].reserved_blocks == 7  # 100 + 12 tokens, no longer 160


def factors(built: Any, now: float):
    extras = built.states(now)[0].extras
    return extras["ttft_factor"], extras["tpot_factor"]


@pytest.mark.parametrize(("prompt", "learns"), [(6000, True), (100, False)])
def test_long_prompts_alone_teach_the_speed_of_prefill(prompt: Any, learns: Any):
    """A first token tells the machine's speed if its prompt is 50 ms of work or more; a shorter one tells of the step under way."""
    built = scheduler(profile())
    for number in range(60):
        now = 10.0 * number
        built.submit(request(prompt_tokens=prompt, arrived_s=now), now)
        decisions = built.advance(now)
        predicted_s = decisions[0].placement.score.ttft_s
        built.on_first_token(leases(decisions)[0].id, now + (0.5 if learns else predicted_s * 9))
        built.finish(leases(decisions)[0].id, now + 1, outcome=Outcome.CANCELLED)
    prefill, decode = factors(built, 600.0)
    assert decode == 1.0
    if learns:
        assert predicted_s == pytest.approx(0.5, rel=0.02)  # 0.2 by the prior
        assert prefill == pytest.approx(0.5 / 0.213, rel=0.05)
    else:
        assert prefill == 1.0


def test_prompts_behind_others_teach_nothing():
    """Of two prompts placed together the second's first token tells of both, so only the first's counts."""
    built = scheduler(profile(max_num_batched_tokens=8192))
    for name in ("r0", "r1"):
        built.submit(request(name, prompt_tokens=6000), 0.0)
    first, second = leases(built.advance(0.0))
    built.on_first_token(second.id, 9.0)
    assert factors(built, 9.0) == (1.0, 1.0)
    built.on_first_token(first.id, 9.0)
    assert factors(built, 9.0)[0] > 1


def test_clean_decode_steps_teach_the_speed_of_decoding():
    """Time a token while nothing is prefilled and the batch stays as it is; what lies around a prompt or an end does not count."""
    built = scheduler(profile())
    for name in ("r0", "r1"):
        built.submit(request(name, max_output_tokens=4000), 0.0)
    first, second = leases(built.advance(0.0))
    for lease in (first, second):
        built.on_first_token(lease.id, 0.0)
    for step in range(2, 400):
        built.on_tokens(first.id, step, 0.02 * step)
    prefill, decode = factors(built, 8.0)
    assert prefill == 1.0
    assert decode == pytest.approx(0.02 / 0.0081, rel=0.05)  # 8.1 ms: a step's overhead, the weights, two sequences' KV
    # A prompt comes: steps grow long, and nothing is learned of that until it is prefilled and two reports have come since.
    built.submit(request("r2", arrived_s=8.0), 8.0)
    third = leases(built.advance(8.0))[0]
    built.on_tokens(first.id, 400, 9.0)
    built.on_tokens(first.id, 401, 10.0)
    built.on_first_token(third.id, 11.0)
    built.on_tokens(first.id, 402, 12.0)
    built.finish(third.id, 12.5, outcome=Outcome.CANCELLED)
    built.on_tokens(first.id, 403, 13.0)
    assert factors(built, 13.0)[1] == decode
    built.on_tokens(first.id, 404, 14.0)
    assert factors(built, 14.0)[1] > decode


def test_embeddings_reserve_no_output():
    """An embedding holds its prompt and nothing else."""
    built = scheduler(profile(models={"m": ModelKind.EMBEDDING}))
    built.submit(request(kind=ModelKind.EMBEDDING), 0.0)
    built.advance(0.0)
    assert built.states(0.0)[0].reserved_blocks == 7
    assert built.states(0.0)[0].profile.id == ReplicaId("a")
