"""What the system says of our process, under the names that every process has."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from metrics.catalog import Metrics
from metrics.process import ProcessFigures


def test_figures_are_the_system_s():
    """Memory and descriptors as /proc has them; the CPU time only rises, and what was counted is not counted again."""
    registry = CollectorRegistry()
    subject = ProcessFigures(Metrics.create(registry))

    def figure(name: str) -> float:
        subject.refresh()
        return registry.get_sample_value(f"process_{name}") or 0.0

    before = figure("cpu_seconds_total")
    while figure("cpu_seconds_total") < before + 0.05:
        sum(range(100_000))
    after = figure("cpu_seconds_total")
    assert before + 0.05 <= after < before + 60
    assert figure("resident_memory_bytes") > 10_000_000
    with Path("/dev/null").open() as _:
        more = figure("open_fds")
    assert more == figure("open_fds") + 1
    assert figure("start_time_seconds") > 1.7e9
    assert figure("max_fds") >= figure("open_fds")
