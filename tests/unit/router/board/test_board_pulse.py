"""Seconds from counters and histograms: differences, quantiles, rates, and those of several workers together."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from batching.ledger import Counts
from batching.request import ReplicaId
from metrics.buckets import ITL_BUCKETS_S, TTFT_BUCKETS_S
from metrics.catalog import Metrics
from router.board.pulse import (
    KEPT_S,
    Rate,
    Recorder,
    Second,
    Totals,
    joined,
    pulse,
    quantile,
    second_of,
    totals,
    until_next,
)

A, B = ReplicaId("a"), ReplicaId("b")
STREAM = ("m", "default", "a", "H100-80G", "spot")


class Source:
    """A gateway's figures as a test sets them."""

    def __init__(self) -> None:
        self.metrics = Metrics.create(CollectorRegistry())
        self.replicas: dict[ReplicaId, Counts] = {A: Counts(0, 0, 0)}
        self.queued = 0

    def read(self) -> Totals:
        return totals(self.metrics, self.replicas, self.queued)

    def ended(self, status: str, error_code: str = "none") -> None:
        self.metrics.requests_total.labels("chat", "m", "default", status, error_code).inc()


def test_a_second_has_what_was_counted_in_it():
    """Not what was counted before, and nothing twice."""
    source = Source()
    source.ended("200")
    source.replicas = {A: Counts(1000, 500, 3)}
    recorder = Recorder(source.read, 10.2)
    source.metrics.time_to_first_token_seconds.labels(*STREAM).observe(0.03)
    source.metrics.inter_token_latency_seconds.labels(*STREAM).observe(0.007)
    source.metrics.inter_token_latency_seconds.labels("other", *STREAM[1:]).observe(0.007)
    source.replicas, source.queued = {A: Counts(1030, 600, 7), B: Counts(5, 0, 1)}, 4
    source.ended("200")
    assert recorder.tick(10.9) is False
    assert recorder.tick(10.995) is True  # a loop may be a little early
    assert recorder.tick(11.0) is False
    (second,) = recorder.seconds()
    assert (second.at_s, sum(second.ttft), sum(second.itl)) == (11, 1, 2)
    assert second.itl[ITL_BUCKETS_S.index(0.01)] == 2
    assert (second.output_tokens, second.requests, second.errors) == (35, 1, 0)
    assert (second.queue_depth, second.held_blocks) == (4, 8)
    recorder.tick(12.0)
    assert recorder.seconds(11) == (Second(12, queue_depth=4, held_blocks=8),)


def test_a_late_second_covers_those_it_missed():
    """A loop that was held up loses none of what was counted."""
    source = Source()
    recorder = Recorder(source.read, 0.0)
    source.replicas = {A: Counts(90, 0, 0)}
    assert recorder.tick(3.4)
    assert [(second.at_s, second.output_tokens) for second in recorder.seconds()] == [(3, 90)]


def test_errors_are_what_the_caller_could_not_help():
    """Refused for want of room, failed, or broken off after a 200; not his own mistakes, and not that he left."""
    source = Source()
    recorder = Recorder(source.read, 0.0)
    for status, code in (
        ("429", "rate_limit_exceeded"),
        ("503", "engine_overloaded"),
        ("502", "upstream_error"),
        ("200", "upstream_error"),
    ):
        source.ended(status, code)
    for status, code in (
        ("200", "none"),
        ("400", "invalid_request_error"),
        ("404", "model_not_found"),
        ("499", "none"),
    ):
        source.ended(status, code)
    recorder.tick(1.0)
    (second,) = recorder.seconds()
    assert (second.requests, second.errors) == (8, 4)


@given(st.floats(0, 1e7))
def test_the_next_second_is_neither_now_nor_skipped(now: float):
    """A loop that wakes somebody a little early does not wake it again for the same second."""
    pause_s = until_next(now)
    assert 0.98 < pause_s <= 1.01 or pause_s + now % 1 == pytest.approx(1)
    assert second_of(now + pause_s) == second_of(now) + 1


def test_two_minutes_are_kept():
    """And no more."""
    recorder = Recorder(Source().read, 0.0)
    for now in range(1, 200):
        recorder.tick(float(now))
    assert [second.at_s for second in recorder.seconds()] == list(range(200 - KEPT_S, 200))


def test_rates_are_of_the_last_seconds():
    """Of each replica on which something went on; one that began anew under its name is not counted below zero."""
    source = Source()
    recorder = Recorder(source.read, 0.0)
    assert recorder.rates() == {}
    for now, tokens in ((1.0, 30), (2.0, 60), (3.0, 90), (4.0, 150)):
        source.replicas = {A: Counts(tokens, 2 * tokens, 0), B: Counts(7, 7, 0)}
        recorder.tick(now)
    assert recorder.rates() == {A: Rate(40.0, 80.0)}  # of three seconds, from 1.0 on
    source.replicas = {A: Counts(10, 10, 0), B: Counts(7, 7, 0)}
    recorder.tick(5.0)
    assert recorder.rates() == {A: Rate(0.0, 0.0)}
    assert recorder.seconds(4)[0].output_tokens == 0


COUNTS = st.lists(st.integers(0, 50), min_size=len(ITL_BUCKETS_S) + 1, max_size=len(ITL_BUCKETS_S) + 1)


@given(COUNTS, st.floats(0.01, 0.99))
def test_quantile_lies_in_the_bucket_that_holds_it(counts: list[int], share: float):
    """At least so many values are not above its bucket's end, and fewer are below its beginning; None of nothing."""
    found = quantile(ITL_BUCKETS_S, counts, share)
    total = sum(counts)
    if not total:
        assert found is None
        return
    assert found is not None
    bounds = (*ITL_BUCKETS_S, inf)
    bucket = next(place for place, bound in enumerate(bounds) if found <= bound + 1e-6)
    wanted = share * total
    reached = next(place for place in range(len(bounds)) if sum(counts[: place + 1]) >= wanted - 1e-9)
    assert bucket in {reached, reached - 1} or (reached == len(bounds) - 1 and found == ITL_BUCKETS_S[-1])


def test_quantile_is_straight_within_a_bucket():
    """As a reader of Prometheus is used to."""
    assert quantile((1.0, 2.0), (0, 10, 0), 0.5) == 1.5
    assert quantile((1.0, 2.0), (10, 10, 0), 0.25) == 0.5
    assert quantile((1.0, 2.0), (0, 0, 3), 0.5) == 2.0
    assert quantile((1.0, 2.0), (), 0.5) is None


SECONDS = st.builds(
    Second,
    st.integers(1, 5),
    st.sampled_from([(), tuple(range(len(TTFT_BUCKETS_S) + 1))]),
    st.sampled_from([(), tuple(range(len(ITL_BUCKETS_S) + 1))]),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 9),
)
PARTS = st.lists(st.lists(SECONDS, max_size=5, unique_by=lambda second: second.at_s), max_size=4)


@given(PARTS)
def test_workers_seconds_add_up(parts: list[list[Second]]):
    """Every figure of every second, whichever workers were there, in whatever order; seconds in their own."""
    whole = joined(parts)
    assert whole == joined(reversed(parts))
    assert [second.at_s for second in whole] == sorted({second.at_s for part in parts for second in part})
    for second in whole:
        same = [one for part in parts for one in part if one.at_s == second.at_s]
        assert sum(second.itl) == sum(sum(one.itl) for one in same)
        assert sum(second.ttft) == sum(sum(one.ttft) for one in same)
        assert second.output_tokens == sum(one.output_tokens for one in same)
        assert (second.requests, second.errors) == (sum(o.requests for o in same), sum(o.errors for o in same))
        assert second.queue_depth == sum(one.queue_depth for one in same)
        assert second.held_blocks == sum(one.held_blocks for one in same)


def test_quantiles_of_workers_are_of_their_values_together():
    """Not the mean of theirs: one has a thousand fast tokens, the other ten slow ones."""
    fast, slow = [0] * (len(ITL_BUCKETS_S) + 1), [0] * (len(ITL_BUCKETS_S) + 1)
    fast[1], slow[-2] = 1000, 10
    (second,) = joined([[Second(1, itl=tuple(fast))], [Second(1, itl=tuple(slow))]])
    seen = pulse(second, unix_at_zero=100.0, kv_blocks=0)
    assert seen.itl_p50_s is not None
    assert seen.itl_p50_s < ITL_BUCKETS_S[1]
    assert seen.itl_p95_s is not None
    assert seen.itl_p95_s < ITL_BUCKETS_S[1]
    assert (seen.unix_s, seen.ttft_p50_s, seen.kv_used_ratio) == (101.0, None, None)
