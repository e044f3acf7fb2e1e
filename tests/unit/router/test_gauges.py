"""What is exported per replica, and what vanishes when it is no longer known."""

from contextlib import suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from batching.replica import EngineLoad, Lifecycle, ReplicaProfile
from batching.request import Outcome, Rejected, ReplicaId, ServiceTier
from batching.scheduler import Scheduler
from metrics.catalog import Metrics
from router.body_budget import BodyBudget
from router.gauges import Gauges
from router.model_labels import ModelLabels
from tests.support.scheduling import leases, profile, request, scheduler, unknown_profile

A = ReplicaId("a")


class Scraped:
    def __init__(self, replica: ReplicaProfile, **changes: Any) -> None:
        self.scheduler: Scheduler = scheduler(replica, **changes)
        self._registry = CollectorRegistry()
        self._gauges = Gauges(Metrics.create(self._registry), self.scheduler, ModelLabels(self.scheduler.models))

    def figure(self, name: str, now: float, **changes: str | None) -> float | None:
        self._gauges.refresh(now, 100)
        labels = {label: value for label, value in {"replica": "a", **changes}.items() if value is not None}
        found = [
            sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if sample.name == f"penstock_{name}" and labels.items() <= sample.labels.items()
        ]
        return found[0] if found else None


def test_who_was_dropped_is_counted_once_and_why():
    """A refusal is in the counter from the next scrape on, by model, tier and reason; a flood is a 1."""
    scraped = Scraped(profile(max_num_seqs=1), queue={"max_requests": 1})
    for name in ("runs", "waits"):
        scraped.scheduler.submit(request(name), 0.0)
        scraped.scheduler.advance(0.0)
    for step in range(6):
        with pytest.raises(Rejected):
            scraped.scheduler.submit(request(f"r{step}"), 0.1 * step)
        dropped = {"replica": None, "model": "m", "service_tier": "default", "reason": "queue_full"}
        assert scraped.figure("requests_dropped_total", 0.1 * step, **dropped) == step + 1
    scraped.scheduler.submit(request("p", service_tier=ServiceTier.PRIORITY), 1.0)
    assert scraped.figure("requests_dropped_total", 1.0, **{**dropped, "reason": "shed"}) == 1


def test_a_flood_is_told():
    """1 from when more has come for two seconds than there is room for, where the backlog is being worked off."""
    scraped, told = Scraped(profile(max_num_seqs=1), queue={"max_requests": 5}), []
    built = scraped.scheduler
    built.submit(request("first"), 0.0)
    [lease] = leases(built.advance(0.0))
    for step in range(1, 80):
        now = 0.1 * step
        for number in range(3):
            with suppress(Rejected):
                built.submit(request(f"{step}-{number}"), now)
        built.finish(lease.id, now, outcome=Outcome.COMPLETED)
        [lease] = leases(built.advance(now))
        told.append(scraped.figure("overloaded", now, replica=None, model="m"))
    assert told == sorted(told)
    assert told[25] == 0  # the first two seconds tell nothing of how fast it drains, and a third little
    assert told[60] == 1


def test_bytes_of_bodies_are_told():
    """What is held now, and how many were refused for it."""
    registry, bodies = CollectorRegistry(), BodyBudget(100)
    built = scheduler()
    gauges = Gauges(Metrics.create(registry), built, ModelLabels(built.models), bodies)
    assert bodies.take(60)
    assert not bodies.take(50)
    assert [bodies.refusal().headers()[1][1] for _ in range(9)] == [*(b"%d" % n for n in range(1, 9)), b"1"]
    for _ in range(2):
        gauges.refresh(0.0, 100)
        assert registry.get_sample_value("penstock_bodies_bytes") == 60
        assert registry.get_sample_value("penstock_bodies_refused_total") == 9


def test_missing_and_stale_figures_are_said():
    """1 until the engine has told its KV usage, 0 while that is fresh, 1 again ten seconds later."""
    scraped = Scraped(profile())
    assert scraped.figure("replica_ledger_only", 0.0) == 1
    scraped.scheduler.observe(A, EngineLoad(observed_s=1.0, kv_usage_ratio=0.2), 1.0)
    assert scraped.figure("replica_ledger_only", 10.9) == 0
    assert scraped.figure("replica_ledger_only", 11.0) == 1
    assert scraped.figure("replica_metrics_age_seconds", 11.0) == 10


def test_a_usage_of_an_unknown_size_is_no_figure():
    """An engine that tells 20 % of nobody knows how many blocks has told nothing to reckon with."""
    scraped = Scraped(unknown_profile())
    scraped.scheduler.observe(A, EngineLoad(observed_s=1.0, kv_usage_ratio=0.2), 1.0)
    assert scraped.figure("replica_ledger_only", 2.0) == 1


def test_forecast_errors_are_exported_by_replica_and_signal():
    """Learned and baseline, and the weight; nothing of a signal that was never seen, nothing of a replica that is gone."""
    scraped = Scraped(profile())
    assert scraped.figure("signal_error_ratio", 0.0) is None
    scraped.scheduler.submit(request(), 0.0)
    (lease,) = leases(scraped.scheduler.advance(0.0))
    scraped.scheduler.on_first_token(lease.id, 0.5)
    scraped.scheduler.on_tokens(lease.id, 30, 0.9)
    scraped.scheduler.finish(lease.id, 1.0, outcome=Outcome.COMPLETED, output_tokens=30)
    for signal in ("ttft", "tpot", "output_tokens", "finish"):
        for source in ("learned", "baseline"):
            error = scraped.figure("signal_error_ratio", 1.0, signal=signal, source=source)
            assert error is not None
            assert 0 < error < 1
        assert scraped.figure("signal_weight_ratio", 1.0, signal=signal) == 1
    assert scraped.figure("signal_error_ratio", 1.0, signal="kv_usage") is None
    scraped.scheduler.remove_replica(A, 2.0)
    assert scraped.figure("signal_error_ratio", 2.0) is None


def test_the_kv_margin_is_exported():
    """It rises with each preemption that the engine reports."""
    scraped = Scraped(profile())
    before = scraped.figure("replica_kv_margin_deviations", 0.0)
    assert before is not None
    for at_s, preemptions in ((1.0, 0), (2.0, 3)):
        load = EngineLoad(observed_s=at_s, kv_usage_ratio=0.9, preemptions_total=preemptions)
        scraped.scheduler.observe(A, load, at_s)
    after = scraped.figure("replica_kv_margin_deviations", 2.0)
    assert after is not None
    assert after > before + 0.4


def test_a_model_without_a_ready_replica_is_told():
    """By model and cost tier, and still when the last replica is down, or gone from the fleet: an alert sees only what is told."""
    scraped = Scraped(profile())
    labels = {"replica": None, "model": "m", "cost_tier": "on_demand"}
    assert scraped.figure("ready_replicas", 0.0, **labels) == 1
    scraped.scheduler.set_lifecycle(A, Lifecycle.DOWN, 1.0)
    assert scraped.figure("ready_replicas", 1.0, **labels) == 0
    scraped.scheduler.remove_replica(A, 2.0)
    assert scraped.figure("ready_replicas", 2.0, **labels) == 0
