"""One page from several: sums are exact, whatever was counted where, and every gauge has its rule."""

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from metrics.catalog import Metrics
from metrics.exposition import render
from metrics.pages import GAUGES, Page, forget, merged, of_crew, packed, read, unpacked, write

MODELS = ("m", "n")
EVENTS = st.tuples(
    st.integers(0, 2),  # the worker
    st.sampled_from(("count", "observe", "set")),
    st.sampled_from(MODELS),
    st.integers(0, 300).map(lambda n: n / 4),  # sums of quarters are exact
)


def blank() -> tuple[CollectorRegistry, Metrics]:
    registry = CollectorRegistry()
    return registry, Metrics.create(registry)


def happen(metrics: Metrics, what: str, model: str, value: float) -> None:
    if what == "count":
        metrics.client_disconnects_total.labels(model, "queued").inc(value)
    elif what == "observe":
        metrics.request_duration_seconds.labels(model, "default", "true", "a", "H100", "spot").observe(value)
        metrics.routing_duration_seconds.labels("penstock").observe(value)
    else:
        metrics.queue_depth.labels(model, "default").inc(value)


@settings(deadline=None, max_examples=40)
@given(events=st.lists(EVENTS, max_size=30))
def test_all_workers_together_are_one_registry(events: list[tuple[int, str, str, float]]):
    """The merged page is byte for byte what one process would have said that did it all."""
    workers = [blank()[1] for _ in range(3)]
    registry, one = blank()
    for worker, what, model, value in sorted(events, key=lambda event: event[2]):
        happen(workers[worker], what, model, value)
        happen(one, what, model, value)
    together = merged(unpacked(packed(read(metrics))) for metrics in workers)
    into, written = blank()
    write(together, written)
    assert sorted(render(into)[0].splitlines()) == sorted(render(registry)[0].splitlines())


def test_every_gauge_has_a_rule():
    """A gauge without one would make the page fail."""
    assert read(blank()[1]).gauges.keys() == GAUGES.keys()


def test_gauges_by_their_rules():
    """Parts are added, what all see alike is said once, the ledger's error is that of all ledgers together."""
    workers = [blank()[1] for _ in range(2)]
    machine = ("a", "H100", "spot")
    for number, metrics in enumerate(workers):
        metrics.build_info.labels("1").set(1)
        metrics.replica_kv_usage_ratio.labels(*machine).set(0.5 + number / 100)
        metrics.replica_kv_held_ratio.labels(*machine).set(0.25)
        metrics.replica_kv_error_ratio.labels(*machine).set(-0.25)
        metrics.signal_weight_ratio.labels("a", "ttft").set(number)
        metrics.workers.set(1)
    gauges = merged(map(read, workers)).gauges
    assert gauges["build_info"] == {("1",): 1}
    assert gauges["replica_kv_usage_ratio"] == {machine: 0.51}
    assert gauges["replica_kv_held_ratio"] == {machine: 0.5}
    assert gauges["replica_kv_error_ratio"] == {machine: 0.5 - 0.51}
    assert gauges["signal_weight_ratio"] == {("a", "ttft"): 0.5}
    assert gauges["workers"] == {(): 2}


def test_replicas_come_whole():
    """Four workers that each need a third of a replica need two together; the least bit needs one, nothing none."""
    workers = [blank()[1] for _ in range(4)]
    for metrics in workers:
        for model, parts in (("third", 1 / 3), ("quarter", 0.25), ("bit", 1e-6), ("none", 0.0)):
            metrics.desired_replicas.labels(model, "spot").set(parts)
    found = {model: value for (model, _), value in merged(map(read, workers)).gauges["desired_replicas"].items()}
    assert found == {"third": 2, "quarter": 1, "bit": 1, "none": 0}


def test_what_was_counted_outlives_its_worker():
    """Counters and histograms stay, gauges go."""
    metrics = blank()[1]
    for what in ("count", "observe", "set"):
        happen(metrics, what, "m", 2)
    kept = read(metrics).counted()
    assert kept.gauges == {}
    assert merged([kept, Page({}, {}, {})]).counters["client_disconnects_total"] == {("m", "queued"): 2}
    assert merged([kept, kept]).histograms["routing_duration_seconds"][("penstock",)].total == 4


def test_the_departed_tell_of_no_replica_that_nobody_knows():
    """What a worker had counted before it ended stays, but for replicas that every worker that lives has let go of."""
    alive, dead = blank()[1], blank()[1]
    alive.replica_up.labels("here", "H100", "spot").set(1)
    alive.upstream_attempts_total.labels("left lately", "ok").inc(5)
    for replica in ("here", "left lately", "long gone"):
        dead.upstream_attempts_total.labels(replica, "ok").inc(2)
        dead.batch_fill_ratio.labels(replica).observe(0.5)
    dead.client_disconnects_total.labels("m", "queued").inc()
    page = of_crew([read(alive), read(dead).counted()])
    assert page.counters["upstream_attempts_total"] == {("here", "ok"): 2, ("left lately", "ok"): 7}
    assert set(page.histograms["batch_fill_ratio"]) == {("here",), ("left lately",)}
    assert page.counters["client_disconnects_total"] == {("m", "queued"): 1}


def test_forgetting_a_replica():
    """Every series with its name, of every kind, and nobody else's."""
    registry, metrics = blank()
    for name in ("a", "b"):
        metrics.replica_up.labels(name, "H100", "spot").set(1)
        metrics.tokens_total.labels("m", "default", name, "H100", "spot", "input", "reported").inc()
        metrics.time_to_first_token_seconds.labels("m", "default", name, "H100", "spot").observe(1)
    forget(metrics, "a")
    text = render(registry)[0].decode()
    assert 'replica="a"' not in text
    assert text.count('replica="b"') == 1 + 1 + 23 + 2  # and one bucket more for +Inf
