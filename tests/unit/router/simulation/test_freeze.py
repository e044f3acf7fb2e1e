"""Frozen engine metrics: who is told what, and what becomes of those who live by it."""

from typing import Any

import pytest
from typer.testing import CliRunner

from batching.replica import EngineLoad
from batching.request import ReplicaId
from router.cli import build_app
from router.simulation.freeze import Freeze, FreezeMode, Reports, parse
from router.simulation.simulate import Options, Run
from tests.support.simulation_files import FLEETS

A, B = ReplicaId("a"), ReplicaId("b")


def load(at: float, waiting: int) -> EngineLoad:
    return EngineLoad(observed_s=at, running=0, waiting=waiting, kv_usage_ratio=0.0)


def simulate(**options: Any) -> dict[str, Any]:
    return Run(Options(fleet=FLEETS / "homogeneous.yaml", limit=400, rate_scale=2.0, **options)).play()


@pytest.mark.parametrize("text", ["10:60", "0:0.5", "10:60:repeated"])
def test_a_freeze_reads_as_it_is_written(text: str):
    """What the result names can be given back to the flag."""
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "10", "10:", "a:1", "-1:5", "10:0", "nan:5", "1:inf", "10:60:broken", "10:60:silent:1"]
)
def test_what_is_no_freeze_is_refused(text: str):
    """A window must begin in the run, last, and be of a known kind."""
    with pytest.raises(ValueError, match=r"is not START:SECONDS|must start at|is no way"):
        parse(text)


def test_silence_brings_no_report_from_its_start_until_its_end():
    """The start belongs to it, the end does not."""
    reports = Reports(Freeze(10.0, 5.0))
    got = [reports.received(A, load(at, 1)) for at in (9.9, 10.0, 14.9, 15.0)]
    assert [report is not None for report in got] == [True, False, False, True]


def test_a_hanging_exporter_repeats_its_last_figures_as_new():
    """Old figures, fresh time; of a replica that had said nothing before, nothing comes."""
    reports = Reports(Freeze(10.0, 5.0, FreezeMode.REPEATED))
    reports.received(A, load(9.0, 3))
    assert reports.received(A, load(12.0, 7)) == load(12.0, 3)
    assert reports.received(B, load(12.0, 7)) is None
    assert reports.received(A, load(15.0, 7)) == load(15.0, 7)


def test_llm_d_halts_without_reports_and_goes_on_with_old_ones():
    """Its detector takes stale for full: nothing is placed for those seconds, and who waits longer than it may is lost."""
    fresh, silent, repeated = (
        simulate(policy="llm_d", freeze_metrics=freeze)
        for freeze in (None, Freeze(5.0, 20.0), Freeze(5.0, 20.0, FreezeMode.REPEATED))
    )
    assert fresh["queue_p99_s"] < 1.0
    assert 15.0 < silent["queue_p99_s"] < 20.5
    assert repeated["queue_p99_s"] < 1.0


def test_ours_counts_itself_and_hardly_notices():
    """The gateway's own ledger decides: attainment moves by 2 points at most."""
    fresh, silent = (simulate(freeze_metrics=freeze) for freeze in (None, Freeze(5.0, 20.0)))
    assert silent["run"]["freeze_metrics"] == "5:20"
    assert fresh["slo_attainment"] - silent["slo_attainment"] <= 0.02


def test_the_flag_reaches_the_run_and_a_wrong_one_is_a_usage_error():
    """`--freeze-metrics` stands in the result's name; what cannot be read is told with the flag's name."""
    ran = CliRunner().invoke(build_app(), ["simulate", "--limit", "3", "--freeze-metrics", "1:2:repeated"])
    assert "freeze_metrics 1:2:repeated" in ran.stdout
    wrong = CliRunner().invoke(build_app(), ["simulate", "--limit", "3", "--freeze-metrics", "1:2:quiet"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "--freeze-metrics: 'quiet' is no way to freeze; there are silent, repeated" in " ".join(wrong.stderr.split())
