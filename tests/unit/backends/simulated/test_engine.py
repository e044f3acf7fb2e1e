"""The pure engine: one token budget per step, chunked prefill, preemption by recompute, prefix hits, priorities, sleep."""

from collections.abc import Callable

import pytest

from backends.simulated.engine import Emission, Engine, EngineBusy, StepResult, TooLarge
from backends.simulated.options import EngineOptions
from backends.simulated.sequence import EngineSequence


def sequence(seq_id: int, prompt: int, limit: int, *, family: int | None = None, priority: int = 0) -> EngineSequence:
    """Sequences of one family share their prompt's blocks."""
    hashed: Callable[[int], int | None] = (lambda _: None) if family is None else (lambda block: hash((family, block)))
    return EngineSequence(
        seq_id=seq_id,
        prompt_tokens=prompt,
        limit_tokens=limit,
        finish_reason="length",
        block_hash=hashed,
        priority=priority,
    )


def engine(**options: object) -> Engine:
    defaults: dict[str, object] = {"kv_blocks": 100, "block_size": 4, "max_num_batched_tokens": 32, "max_num_seqs": 8}
    return Engine(EngineOptions(**(defaults | options)))  # type: ignore[arg-type]


def run(subject: Engine) -> list[StepResult]:
    """All steps until the engine rests, on its own clock."""
    now, steps = 0.0, []
    while (step := subject.step(now)) is not None:
        now += step.duration_s
        steps.append(step)
        assert len(steps) < 100_000
    return steps


def tokens(steps: list[StepResult], seq_id: int) -> list[int]:
    return [emission.token for step in steps for emission in step.emissions if emission.seq_id == seq_id]


def test_a_sequence_gets_its_tokens_in_order_and_ends_once():
    """Prefill emits token 0, each further step one more, the last with the finish reason."""
    subject = engine()
    subject.add(sequence(1, 10, 5), 0.0)
    steps = run(subject)
    assert [step.emissions for step in steps] == [[(1, token, "length" if token == 4 else None)] for token in range(5)]
    assert subject.statistics().finished_total == {"length": 1}


def test_a_long_prompt_is_prefilled_in_chunks_beside_decodes():
    """No step takes more than the budget, and a running sequence gets a token in every step of another's prefill."""
    subject = engine(max_num_batched_tokens=8)
    subject.add(sequence(1, 4, 20), 0.0)
    assert subject.step(0.0) is not None
    subject.add(sequence(2, 30, 1), 0.0)
    steps = run(subject)
    first = next(i for i, step in enumerate(steps) if any(e.seq_id == 2 for e in step.emissions))
    assert first == 4  # 30 tokens at 7 a step beside one decode
    assert all(any(e.seq_id == 1 for e in step.emissions) for step in steps[:first])


def test_a_step_never_exceeds_its_budgets():
    """Tokens per step and sequences per batch stay within their limits, and everybody is served."""
    subject = engine(max_num_batched_tokens=16, max_num_seqs=3)
    for seq_id in range(10):
        subject.add(sequence(seq_id, 5 + seq_id, 6), 0.0)
    total = 0
    while (step := subject.step(0.0)) is not None:
        figures = subject.statistics()
        assert figures.running <= 3
        assert figures.iteration_tokens_total - total <= 16
        assert len(step.emissions) <= 3
        total = figures.iteration_tokens_total
    assert subject.statistics().finished_total == {"length": 10}


def test_step_time_follows_the_roofline():
    """A decode costs the weights' reading, a long prefill its matrix work and the quadratic term; speed divides both."""
    model = EngineOptions().step_model()
    subject = Engine(EngineOptions(max_num_batched_tokens=8192))
    subject.add(sequence(1, 8000, 2), 0.0)
    prefill, decode = run(subject)
    assert prefill.duration_s == pytest.approx(model.step_s(prefill_tokens=8000, prefill_context=8000))
    assert decode.duration_s == pytest.approx(model.step_s(decode_seqs=1, kv_tokens=8001))
    fast = Engine(EngineOptions(max_num_batched_tokens=8192, speed=4))
    fast.add(sequence(1, 8000, 2), 0.0)
    assert run(fast)[0].duration_s == pytest.approx(prefill.duration_s / 4)


def test_a_cached_prefix_is_not_computed_again():
    """The second prompt of a family hits all full blocks but recomputes at least its last token."""
    subject = engine()
    subject.add(sequence(1, 16, 1, family=1), 0.0)
    run(subject)
    second = sequence(2, 16, 1, family=1)
    subject.add(second, 0.0)
    run(subject)
    assert second.cached_tokens == 12
    figures = subject.statistics()
    assert (figures.prefix_queries_total, figures.prefix_hits_total) == (32, 12)
    assert figures.iteration_tokens_total == 16 + 4


def test_sequences_of_one_family_share_blocks_while_they_run():
    """Running at once, a shared prefix is held once."""
    subject = engine()
    for seq_id in range(4):
        subject.add(sequence(seq_id, 17, 3, family=1), 0.0)
    subject.step(0.0)
    subject.step(0.0)
    assert subject.statistics().kv_usage_ratio == (4 + 4) / 100  # four shared blocks, one of its own each


def test_preemption_recomputes_the_latest_and_loses_no_token():
    """When blocks run out the latest-arrived waits; it comes back and goes on with its next token."""
    subject = engine(kv_blocks=8)
    for seq_id in (1, 2, 3):
        subject.add(sequence(seq_id, 8, 16), 0.0)
    steps = run(subject)
    figures = subject.statistics()
    assert figures.preemptions_total > 0
    assert all(tokens(steps, seq_id) == list(range(16)) for seq_id in (1, 2, 3))
    assert figures.kv_usage_ratio == 0
    ends = [e.seq_id for step in steps for e in step.emissions if e.finish_reason]
    assert ends[0] == 1  # the oldest is never the victim
    assert figures.prompt_tokens_total == 24  # a recomputed prompt is not counted again
    assert figures.generation_tokens_total == 48


def test_a_preempted_sequence_finds_its_own_blocks():
    """Recomputation starts from what is left in the prefix cache: less work, the same tokens."""

    def work(families: tuple[int | None, int | None]) -> int:
        subject = engine(kv_blocks=10)
        for seq_id, family in enumerate(families):
            subject.add(sequence(seq_id, 15, 20, family=family), 0.0)
        assert tokens(run(subject), 1) == list(range(20))
        assert subject.statistics().preemptions_total > 0
        return subject.statistics().iteration_tokens_total

    assert work((1, 2)) < work((None, None))


def test_a_sequence_that_could_never_fit_is_refused():
    """A request larger than the whole cache is an error at once, not a wait for ever."""
    subject = engine(kv_blocks=4)
    subject.add(sequence(1, 10, 6), 0.0)
    with pytest.raises(TooLarge):
        subject.add(sequence(2, 10, 7), 0.0)


def test_the_engine_queue_is_bounded():
    """Beyond max_queued the engine says that it is busy."""
    subject = engine(max_queued=2)
    subject.add(sequence(1, 4, 1), 0.0)
    subject.add(sequence(2, 4, 1), 0.0)
    with pytest.raises(EngineBusy):
        subject.add(sequence(3, 4, 1), 0.0)


def test_abort_frees_at_once_wherever_the_sequence_is():
    """Waiting, running or in its last step: an aborted sequence holds nothing and says nothing more."""
    subject = engine(max_num_seqs=1)
    for seq_id, limit in ((1, 1), (2, 9), (3, 9)):
        subject.add(sequence(seq_id, 8, limit), 0.0)
    subject.step(0.0)
    subject.abort(1)  # in the step that ends it
    assert subject.statistics().kv_usage_ratio == 0
    subject.step(0.0)
    subject.abort(3)  # waiting
    subject.abort(2)  # running
    subject.abort(2)
    subject.abort(77)
    assert subject.step(0.0) is None
    figures = subject.statistics()
    assert (figures.running, figures.waiting, figures.kv_usage_ratio) == (0, 0, 0)
    assert figures.finished_total == {"abort": 3}


def test_priority_runs_first_only_under_priority_scheduling():
    """A lower number overtakes waiting requests under the priority policy and is ignored under FCFS."""

    def order(**options: bool) -> list[int]:
        subject = engine(max_num_seqs=1, **options)
        for seq_id, priority in ((1, 0), (2, 5), (3, -5)):
            subject.add(sequence(seq_id, 4, 1, priority=priority), 0.0)
        return [e.seq_id for step in run(subject) for e in step.emissions]

    assert order(priority_scheduling=True) == [3, 1, 2]
    assert order() == [1, 2, 3]


def test_priority_preempts_the_least_important():
    """Under pressure the victim is the highest number, not the latest arrival."""
    subject = engine(kv_blocks=8, priority_scheduling=True)
    subject.add(sequence(1, 8, 16, priority=9), 0.0)
    subject.add(sequence(2, 8, 16, priority=0), 0.0)
    ends = [e.seq_id for step in run(subject) for e in step.emissions if e.finish_reason]
    assert ends == [2, 1]
    assert subject.statistics().preemptions_total > 0


def test_a_prompt_that_is_only_read_ends_without_a_token():
    """Embeddings: one emission when the prompt is computed, nothing generated."""
    subject = engine()
    subject.add(sequence(1, 40, 0), 0.0)
    steps = run(subject)
    assert [step.emissions for step in steps] == [[], [(1, -1, "length")]]
    assert subject.statistics().generation_tokens_total == 0


def test_sleep_gives_up_memory_and_wake_goes_on():
    """Asleep nothing is computed or held; awake the sequence is recomputed and goes on with its next token."""
    subject = engine()
    subject.add(sequence(1, 8, 6, family=1), 0.0)
    before = [step for _ in range(3) if (step := subject.step(0.0))]
    subject.sleep()
    assert subject.step(0.0) is None
    assert (subject.kv.used_blocks, subject.kv.cached_blocks) == (0, 0)
    subject.wake()
    assert tokens(before + run(subject), 1) == list(range(6))


def test_figures_show_a_sequence_until_its_last_step_is_over():
    """A one-token request with a long prefill is seen running while it is computed."""
    subject = engine()
    subject.add(sequence(1, 20, 1), 0.0)
    subject.step(0.0)
    assert subject.statistics().running == 1
    assert subject.step(0.0) is None
    assert subject.statistics().running == 0


def test_queue_time_is_measured_on_the_given_clock():
    """Time from add to first admission is summed, once a request."""
    subject = engine(max_num_seqs=1)
    subject.add(sequence(1, 4, 1), 10.0)
    subject.add(sequence(2, 4, 1), 10.0)
    subject.step(11.0)
    subject.step(15.0)
    figures = subject.statistics()
    assert (figures.queue_time_s_total, figures.admissions_total) == (6.0, 2)


@pytest.mark.parametrize("seed", [0, 7])
def test_same_inputs_give_the_same_steps(seed: int):
    """Two engines with one seed agree in every duration and emission; another seed changes times only."""

    def steps(seed: int) -> list[tuple[float, list[Emission]]]:
        subject = engine(kv_blocks=12, seed=seed)
        for seq_id in range(6):
            subject.add(sequence(seq_id, 6 + seq_id, 9, family=seq_id % 2), 0.0)
        return [(step.duration_s, step.emissions) for step in run(subject)]

    durations, emissions = zip(*steps(seed), strict=True)
    other_durations, other_emissions = zip(*steps(seed + 1), strict=True)
    assert steps(seed) == list(zip(durations, emissions, strict=True))
    assert durations != other_durations
    assert emissions == other_emissions
