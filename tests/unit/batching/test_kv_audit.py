"""KV predictions of a replica held against what came: the ledger against the engine's reports, the forecast against the ledger."""

import pytest

from batching.audit import Errors, Signal
from batching.replica import EngineLoad
from batching.request import Outcome, ReplicaId
from batching.scheduler import Scheduler
from batching.ticket import Lease
from tests.support.scheduling import leases, profile, request, scheduler

A = ReplicaId("a")
BLOCKS = 1000


def built() -> Scheduler:
    return scheduler(profile(kv_blocks=BLOCKS, max_num_seqs=64))


def report(subject: Scheduler, now: float, blocks: int | None) -> None:
    usage = None if blocks is None else blocks / BLOCKS
    subject.observe(A, EngineLoad(observed_s=now, kv_usage_ratio=usage), now)


def place(subject: Scheduler, now: float, **changes: object) -> Lease:
    subject.submit(request(arrived_s=now, **changes), now)
    return leases(subject.advance(now))[0]


def errors(subject: Scheduler, signal: Signal) -> Errors | None:
    return subject.states(0.0)[0].audit.get(signal)


def test_the_ledger_is_measured_against_the_last_report():
    """What was placed between two reports the ledger knows and the last report does not."""
    subject = built()
    report(subject, 0.0, 0)
    assert errors(subject, Signal.KV_USAGE) is None  # nothing was expected, nothing came
    for number in range(5):
        place(subject, number + 0.5)  # 100 tokens: 7 blocks
        report(subject, number + 1.0, 7 * (number + 1))
    found = errors(subject, Signal.KV_USAGE)
    assert found is not None
    assert (found.learned, found.samples) == (0, 5)
    assert found.baseline == pytest.approx(sum(1 / n for n in range(1, 6)) / 5)


def test_a_ledger_that_errs_is_seen_to():
    """The engine holds twice what we think: half off, until what is foreign was learned from the report."""
    subject = built()
    report(subject, 0.0, 0)
    place(subject, 0.5)
    report(subject, 1.0, 14)
    found = errors(subject, Signal.KV_USAGE)
    assert found is not None
    assert found.learned == pytest.approx(0.5)
    report(subject, 2.0, 14)
    found = errors(subject, Signal.KV_USAGE)
    assert found is not None
    assert found.learned == pytest.approx(0.25)


def test_reports_without_a_figure_are_no_evidence():
    """An engine that tells no usage is not compared with, nor is the next report with that one."""
    subject = built()
    for now, blocks in ((0.0, 7), (1.0, None), (2.0, 7)):
        report(subject, now, blocks)
    assert errors(subject, Signal.KV_USAGE) is None


def taught(tokens: int) -> Scheduler:
    """Forty answers of one length were seen."""
    subject = built()
    for number in range(40):
        lease = place(subject, 0.1 * number, max_output_tokens=400)
        subject.on_first_token(lease.id, 0.1 * number)
        subject.finish(lease.id, 0.1 * number, outcome=Outcome.COMPLETED, output_tokens=tokens)
    return subject


def grow(subject: Scheduler, running: list[Lease], tokens: int, now: float) -> None:
    for lease in running:
        subject.on_tokens(lease.id, tokens, now)


@pytest.mark.parametrize("as_learned", [True, False])
def test_a_forecast_is_judged_by_what_those_streams_hold_later(as_learned: bool):
    """All end at 40 tokens, as learned: the forecast knows, and "nobody ends" does not. They go on: the other way round."""
    subject = taught(40)
    running = [place(subject, 10.0 + n / 100, max_output_tokens=400) for n in range(8)]
    for lease in running:
        subject.on_first_token(lease.id, 10.5)
    grow(subject, running, 8, 10.6)
    report(subject, 11.0, 0)
    grow(subject, running, 40, 12.0)
    if as_learned:
        for lease in running:
            subject.finish(lease.id, 12.0, outcome=Outcome.COMPLETED, output_tokens=40)
        later = place(subject, 12.1, max_output_tokens=400)  # whoever comes later is not the forecast's matter
        subject.on_first_token(later.id, 12.2)
        grow(subject, [later], 60, 13.0)
    else:
        grow(subject, running, 72, 13.0)
    report(subject, 16.5, 0)
    found = errors(subject, Signal.KV_FORECAST)
    assert found is not None
    assert found.samples == 1
    assert (found.learned < found.baseline) == as_learned


def test_a_forecast_is_not_judged_before_anything_happened():
    """Where no stream got on by a few tokens there is nothing to say."""
    subject = taught(40)
    lease = place(subject, 10.0)
    subject.on_first_token(lease.id, 10.1)
    for now in (11.0, 17.0, 23.0):
        report(subject, now, 0)
    assert errors(subject, Signal.KV_FORECAST) is None
