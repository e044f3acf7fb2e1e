"""Predictions held against what happened, and what is left of a signal that does worse than its baseline."""

from collections.abc import Mapping

import pytest

from batching.audit import Audit, Errors, Judged, Signal, believed, error_ratio
from batching.decision_record import judged
from batching.decisions import Decisions
from batching.request import Outcome
from batching.scheduler import Scheduler
from tests.support.decisions import Kept
from tests.support.scheduling import profile, request


def audited(scheduler: Scheduler) -> Mapping[Signal, Errors]:
    """Of the one replica."""
    return scheduler.states(0.0)[0].audit


@pytest.mark.parametrize(
    ("predicted", "actual", "error"), [(1, 1, 0), (1, 2, 0.5), (2, 1, 0.5), (0, 5, 1), (5, 0, 1), (0, 0, 0)]
)
def test_an_error_is_a_share_of_the_greater(predicted: float, actual: float, error: float):
    """Symmetric, within 0 and 1, and nothing divides by nothing."""
    assert error_ratio(predicted, actual) == error


def fed(audit: Audit, *, predicted: float, baseline: float, times: int) -> Audit:
    audit.observe([(list(Signal).index(Signal.TTFT), predicted, baseline, 1.0)] * times)
    return audit


def test_a_signal_is_believed_until_there_is_evidence():
    """Never seen, or seen too seldom: as if there were no audit."""
    audit = Audit()
    assert audit.ttft.weight == 1.0
    assert audit.errors() == {}
    assert fed(audit, predicted=9.0, baseline=1.0, times=19).ttft.weight == 1.0
    assert fed(audit, predicted=9.0, baseline=1.0, times=1).ttft.weight == 0.0


def test_a_signal_that_does_better_keeps_its_weight():
    """However bad it is, if not learning is as bad or worse."""
    assert fed(Audit(), predicted=2.0, baseline=4.0, times=50).ttft.weight == 1.0
    assert fed(Audit(), predicted=1.001, baseline=1.0, times=50).ttft.weight == 1.0  # as good as any


def test_a_signal_that_does_worse_loses_weight_by_itself():
    """Less the worse it does; nothing is left at twice its baseline's error."""
    half = fed(Audit(), predicted=1 / 0.7, baseline=1.25, times=50)  # errors 0.3 and 0.2
    assert half.ttft.weight == pytest.approx(0.5)
    assert half.ttft.error == pytest.approx(0.25)
    assert fed(Audit(), predicted=5.0, baseline=1.25, times=50).ttft.weight == 0.0


def test_it_gains_it_back():
    """Errors are of lately: a signal that has become right is believed again."""
    audit = fed(Audit(), predicted=5.0, baseline=1.25, times=100)
    assert audit.ttft.weight == 0.0
    assert fed(audit, predicted=1.0, baseline=1.25, times=100).ttft.weight == 1.0


def test_signals_are_apart():
    """One signal's trouble is not another's."""
    assert fed(Audit(), predicted=5.0, baseline=1.0, times=50).tpot.weight == 1.0


def test_full_weight_changes_nothing_to_the_last_bit():
    """A blend at weight 1 is the learned value itself, so that a run is the same as without an audit until there is doubt."""
    learned = 0.1 + 0.2
    assert believed(learned, 0.7, 1.0) == learned
    assert believed(3.0, 1.0, 0.25) == 1.5


def test_every_signal_of_an_answer_is_judged():
    """TTFT from the placement, time per token after the first, tokens, cached tokens, the end; baselines know nothing learned."""
    kept = Kept(profile("a"))
    lease = kept.place(request("r", max_output_tokens=60))
    kept.answer(lease, first_s=0.5, last_s=2.5, tokens=41, cached_tokens=16)
    found = {one.signal: one for one in judged(kept.last)}
    assert {signal: one.actual for signal, one in found.items()} == {
        Signal.TTFT: 0.5, Signal.TPOT: 2.0 / 40, Signal.OUTPUT: 41, Signal.CACHED: 16, Signal.FINISH: 2.5,
    }  # fmt: skip
    score = kept.last.placement.score
    assert (found[Signal.TTFT].predicted, found[Signal.TPOT].predicted) == (score.ttft_s, score.tpot_s)
    assert (found[Signal.OUTPUT].baseline, found[Signal.CACHED].baseline) == (60, 0)


def test_a_baseline_is_the_prior():
    """Learned factors are divided out: of a machine three times as slow as its type, what was learned is right and the prior is not."""
    kept = Kept(profile("a"))
    prior_s = 0.0
    for number in range(60):
        now = number * 100.0
        lease = kept.place(request(str(number), prompt_tokens=8000, arrived_s=now), now)
        prior_s = prior_s or kept.last.placement.score.ttft_s  # before anything was learned
        kept.answer(lease, first_s=now + 3 * prior_s, last_s=now + 3 * prior_s + 1, tokens=10)
    errors = audited(kept.scheduler)[Signal.TTFT]
    assert errors.baseline == pytest.approx(2 / 3, abs=0.02)
    assert errors.learned < errors.baseline / 4
    assert errors.weight == 1.0


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.FAILED])
def test_only_whole_answers_are_judged(outcome: Outcome):
    """A client that left and an engine that failed say nothing of a prediction."""
    found: list[Judged] = []
    kept = Kept(profile("a"), decisions=Decisions(on_done=lambda _, judged: found.extend(judged)))
    lease = kept.place(request("r"))
    kept.scheduler.on_first_token(lease.id, 0.5)
    kept.scheduler.finish(lease.id, 1.0, outcome=outcome, output_tokens=3)
    kept.decisions.settle()
    assert found == []


def test_what_was_not_seen_is_not_judged():
    """Without a stream there is no first token, one token has no pace, and an engine that tells no cached tokens none."""
    kept = Kept(profile("a"))
    lease = kept.place(request("r", streaming=False))
    kept.scheduler.finish(lease.id, 1.0, outcome=Outcome.COMPLETED, output_tokens=1)
    assert [one.signal for one in judged(kept.last)] == [Signal.OUTPUT, Signal.FINISH]
