"""The stages of what the gateway adds, and which reads of a stream are timed."""

from prometheus_client import CollectorRegistry

from metrics.catalog import Metrics
from metrics.overhead import EVERY, Overhead


def test_all_stages_are_there_from_the_beginning():
    """A dashboard of a gateway that has served nobody shows zeros, not holes."""
    registry = CollectorRegistry()
    Overhead(Metrics.create(registry))
    found = {
        sample.labels["stage"] for family in registry.collect() for sample in family.samples if "stage" in sample.labels
    }
    assert found == {"ingress", "route", "relay"}


def test_streams_take_turns():
    """One in so many of the first reads is timed, and as many of the second ones."""
    subject = Overhead(Metrics.create(CollectorRegistry()))
    begin = [subject.phase() for _ in range(3 * EVERY)]
    for read in range(1, 20):
        timed = [(phase + read) % EVERY == 0 for phase in begin]
        assert sum(timed) == 3
