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
    assert outputs.forecast("m", 4000) == (4000, 512)
    assert outputs.forecast("m", None) == (512, 512)
    for _ in range(19):
        outputs.learn("m", 4000, 100)
    assert outputs.forecast("m", 4000) == (4000, 512)
    outputs.learn("m", 4000, 100)
    reserve, average = outputs.forecast("m", 4000)
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
    reserve, _ = outputs.forecast("m", None)
    assert 400 * quantile <= reserve <= 400 * quantile * 2**0.25 + 1


def test_output_lengths_forget():
    """When traffic changes, a few hundred requests change the forecast."""
    outputs = OutputLengths(0.95)
    for tokens in [1000] * 600 + [10] * 6000:
        outputs.learn("m", None, tokens)
    assert outputs.forecast("m", None)[0] <= 12


@pytest.mark.parametrize(("observed", "limit"), [(100.0, 10.0), (0.0001, 0.1), (2.0, 2.0)])
def test_speed_factor_is_bounded(observed: float, limit: Any):
    """The ratio of observed to predicted, within [0.1, 10]."""
    speed = ReplicaSpeed()
    for _ in range(300):
        speed.learn_ttft(observed_s=observed, predicted_s=1.0)
        speed.learn_tpot(observed_s=observed, predicted_s=1.0)
    assert speed.ttft_factor == pytest.approx(limit, rel=0.01)
    assert speed.tpot_factor == pytest.approx(limit, rel=0.01)


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
    """Usage teaches characters, output lengths and trust in the prefix cache; the stream's times teach speed."""
    built = scheduler(profile())
    for number in range(60):
        now = float(number)
        built.submit(request(prompt_chars=200, max_output_tokens=60, prefix_hashes=(1,), prefix_chunk_tokens=64), now)
        lease = leases(built.advance(now))[0]
        built.on_first_token(lease.id, now + 0.1)
        built.on_tokens(lease.id, 1, now + 0.1)
        built.on_tokens(lease.id, 11, now + 0.3)  # 20 ms a token
        assert built.finish(
            lease.id, now + 0.3, outcome=Outcome.COMPLETED, prompt_tokens=100, cached_tokens=0, output_tokens=11
        )
    assert built.prompt_tokens("m", 200) == pytest.approx(100, abs=5)
    extras = built.states(60.0)[0].extras
    assert extras["prefix_trust_ratio"] < 0.01
    assert extras["ttft_factor"] > 5
    assert 2 < extras["tpot_factor"] < 3
    built.submit(request(), 61.0)
    built.advance(61.0)
    assert built.states(61.0)[0].reserved_blocks == 7  # 100 + 12 tokens, no longer 160


def test_embeddings_reserve_no_output():
    """An embedding holds its prompt and nothing else."""
    built = scheduler(profile(models={"m": ModelKind.EMBEDDING}))
    built.submit(request(kind=ModelKind.EMBEDDING), 0.0)
    built.advance(0.0)
    assert built.states(0.0)[0].reserved_blocks == 7
    assert built.states(0.0)[0].profile.id == ReplicaId("a")
