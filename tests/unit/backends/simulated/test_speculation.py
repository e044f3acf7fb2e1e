"""Speculative decoding: several tokens a step, drawn by the seed, paid for whether they are right or not."""

import pytest

from backends.simulated.engine import Emission, Engine, StepResult
from backends.simulated.exposition import exposition
from backends.simulated.options import EngineOptions
from backends.simulated.sequence import EngineSequence
from backends.simulated.speculation import DRAFT_RATIO


def engine(**options: object) -> Engine:
    defaults: dict[str, object] = {"kv_blocks": 100, "block_size": 4, "speculative_tokens": 3}
    return Engine(EngineOptions(**(defaults | options)))  # type: ignore[arg-type]


def add(subject: Engine, sequences: int, limit: int = 40) -> None:
    for seq_id in range(sequences):
        subject.add(
            EngineSequence(
                seq_id=seq_id,
                prompt_tokens=8,
                limit_tokens=limit,
                finish_reason="length",
                block_hash=lambda block, seq_id=seq_id: hash((seq_id, block)),  # type: ignore[misc]
            ),
            0.0,
        )


def run(subject: Engine, sequences: int = 1, limit: int = 40) -> list[StepResult]:
    add(subject, sequences, limit)
    steps = []
    while (step := subject.step(0.0)) is not None:
        steps.append(step)
    return steps


def emissions(steps: list[StepResult]) -> list[list[Emission]]:
    return [step.emissions for step in steps]


@pytest.mark.parametrize("acceptance", [0.0, 0.6, 1.0])
def test_every_token_comes_once_and_in_order(acceptance: float):
    """Each step of a sequence brings one token and as many more as drafts were right, never beyond its limit."""
    subject = engine(speculative_acceptance=acceptance)
    steps = run(subject, sequences=3)
    for seq_id in range(3):
        said = [emission for step in steps for emission in step.emissions if emission.seq_id == seq_id]
        assert [emission.token for emission in said] == list(range(40))
        assert [emission.finish_reason for emission in said] == [None] * 39 + ["length"]
        assert all(1 <= sum(e.seq_id == seq_id for e in step.emissions) <= 4 for step in steps[:5])
    figures = subject.statistics()
    assert figures.generation_tokens_total == 120
    assert figures.accepted_tokens_total == 120 - sum(step.decoded for step in steps) - 3
    assert subject.kv.used_blocks == 0


def test_right_drafts_save_steps():
    """All right: four tokens a step after the first; none right: one, as without drafts."""
    assert len(run(engine(speculative_acceptance=1.0))) == 1 + 10  # 39 tokens, four at a time
    none_right = run(engine(speculative_acceptance=0.0))
    assert emissions(none_right) == emissions(run(engine(speculative_tokens=0)))


def test_acceptance_is_a_chance_per_token():
    """A draft counts only behind right ones: k drafts at rate a bring a + a^2 + ... + a^k tokens on average."""
    subject = engine(speculative_acceptance=0.5, kv_blocks=100_000, max_num_seqs=64)
    steps = run(subject, sequences=64, limit=1000)
    rounds = sum(step.decoded for step in steps)
    assert subject.statistics().accepted_tokens_total / rounds == pytest.approx(0.5 + 0.25 + 0.125, rel=0.02)


def test_the_seed_draws_what_is_right():
    """The same seed gives the same steps, another one others."""

    def steps(seed: int) -> list[list[Emission]]:
        return emissions(run(engine(seed=seed), sequences=3))

    assert steps(1) == steps(1)
    assert steps(1) != steps(2)


def test_drafts_are_paid_for():
    """A step computes all tokens it verifies and reads a share of the weights for each round of drafting, right or not."""
    subject = engine(speculative_acceptance=0.0, kv_blocks=1000)
    model = subject.options.step_model()
    decode = run(subject, sequences=2)[1]
    verified = model.step_s(decode_seqs=2 * 4, kv_tokens=2 * (8 + 4))
    assert decode.duration_s == pytest.approx(verified + 3 * DRAFT_RATIO * model.weights_s)


def test_drafts_take_what_the_budget_leaves():
    """A step verifies no more tokens than its budget has, and everybody is served all the same."""
    subject = engine(max_num_batched_tokens=10)
    add(subject, sequences=6)
    before = 0
    while subject.step(0.0) is not None:
        computed = subject.statistics().iteration_tokens_total
        assert 0 < computed - before <= 10
        before = computed
    assert subject.statistics().finished_total == {"length": 6}


def test_the_figures_have_vllm_s_names():
    """Drafts and accepted tokens are told where there are any, as vLLM does."""
    subject = engine()
    run(subject)
    told = exposition(subject, subject.options)
    figures = subject.statistics()
    assert (
        f'vllm:spec_decode_num_draft_tokens_total{{engine="0",model_name="sim-8b"}} {figures.draft_tokens_total}.0'
        in told
    )
    assert "spec_decode_num_accepted_tokens_total" in told
    plain = engine(speculative_tokens=0)
    assert "spec_decode" not in exposition(plain, plain.options)
