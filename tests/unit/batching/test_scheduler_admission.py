"""What `submit` refuses, and with what."""

from typing import Any

import pytest

from batching.replica import Lifecycle
from batching.request import Outcome, Reason, Rejected, ReplicaId, Request
from batching.scheduler import Scheduler
from config.schema import CostTier, ModelKind
from tests.support.scheduling import evicted, leases, placed, profile, request, scheduler, unknown_profile

A = ReplicaId("a")


def refusal(built: Scheduler, wanted: Request, now: float = 0.0):
    with pytest.raises(Rejected) as caught:
        built.submit(wanted, now)
    return caught.value


def test_model_nobody_ever_served_is_unknown():
    """A model that no replica was ever known for is refused as unknown."""
    assert refusal(scheduler(profile()), request(model="other")).reason is Reason.UNKNOWN_MODEL


def test_model_whose_replicas_were_removed_is_not_unknown():
    """Once known, a model without replicas is refused as having none, and what waits is evicted."""
    built = scheduler(profile(max_num_seqs=1))
    built.submit(request("r1"), 0.0)
    built.submit(request("r2"), 0.0)
    lease = leases(built.advance(0.0))[0]
    built.remove_replica(A, 1.0)
    assert evicted(built.advance(1.0)) == [("r2", "no_replica")]
    assert refusal(built, request()).reason is Reason.NO_REPLICA
    assert len(built.states(1.0)) == 1  # its lease still runs
    assert built.finish(lease.id, 2.0, outcome=Outcome.COMPLETED)
    assert built.states(2.0) == ()


@pytest.mark.parametrize(
    ("lifecycle", "queues"),
    [
        (Lifecycle.STARTING, True),
        (Lifecycle.WARMING, True),
        (Lifecycle.ASLEEP, True),
        (Lifecycle.WAKING, True),
        (Lifecycle.DOWN, False),
        (Lifecycle.DRAINING, False),
        (Lifecycle.RECLAIMING, False),
    ],
)
def test_requests_wait_only_for_replicas_that_may_become_ready(lifecycle: Lifecycle, queues: bool):
    """A model whose replicas are all down or leaving is refused with a time to come back; else the request waits."""
    built = scheduler()
    built.add_replica(profile(), lifecycle, 0.0)
    if queues:
        built.submit(request(), 0.0)
        assert built.advance(0.0) == []
    else:
        error = refusal(built, request())
        assert error.reason is Reason.NO_REPLICA
        assert error.retry_after_s is not None


@pytest.mark.parametrize(
    ("prompt", "kind", "limit"),
    [
        (8191, ModelKind.CHAT, None),
        (8192, ModelKind.CHAT, 8192),  # no room for a single output token
        (8192, ModelKind.EMBEDDING, None),  # needs none
        (8193, ModelKind.EMBEDDING, 8192),
    ],
)
def test_prompt_beyond_every_context_is_refused(prompt: int, kind: ModelKind, limit: Any):
    """The longest known context decides, and is told."""
    built = scheduler(profile("a", max_model_len=4096), profile("b"))
    wanted = request(prompt_tokens=prompt, kind=kind)
    if limit is None:
        built.submit(wanted, 0.0)
        assert placed(built.advance(0.0)) == ["r"]
    else:
        error = refusal(built, wanted)
        assert (error.reason, error.limit) == (Reason.CONTEXT_LENGTH, limit)


def test_prompt_beyond_every_kv_cache_is_refused():
    """A prompt that leaves no block for output in any replica's whole cache can never run."""
    error = refusal(scheduler(profile(kv_blocks=10)), request(prompt_tokens=160))
    assert (error.reason, error.limit) == (Reason.CONTEXT_LENGTH, 160)


def test_unknown_context_refuses_nothing():
    """One replica of unknown context is enough to try."""
    built = scheduler(profile(), unknown_profile("b"))
    built.submit(request(prompt_tokens=50_000), 0.0)
    assert placed(built.advance(0.0)) == ["r"]


@pytest.mark.parametrize(
    ("bounds", "changes", "limit"),
    [
        ({"max_requests": 2}, {}, 2),
        ({"max_bytes": 250}, {"body_bytes": 100}, 250),
        ({"max_tokens": 299}, {}, 299),
    ],
)
def test_full_queue_refuses_and_says_when_to_return(bounds: Any, changes: Any, limit: Any):
    """Each bound of the queue refuses the third request, naming itself and a retry time."""
    built = scheduler(queue=bounds)
    built.add_replica(profile(), Lifecycle.STARTING, 0.0)
    for name in ("r1", "r2"):
        built.submit(request(name, **changes), 0.0)
    error = refusal(built, request("r3", **changes))
    assert (error.reason, error.limit) == (Reason.QUEUE_FULL, limit)
    assert error.retry_after_s == 30.0  # nothing was measured: as long as anybody may wait


def test_retry_after_follows_the_measured_drain_rate():
    """Four waiting at about one a second: come back in about four seconds."""
    built = scheduler(profile(max_num_seqs=1), queue={"max_requests": 4})
    built.submit(request("r"), 0.0)
    running = leases(built.advance(0.0))
    for number in range(4):
        built.submit(request(f"r{number}"), 0.0)
    for second in range(1, 31):
        assert built.finish(running[0].id, second, outcome=Outcome.COMPLETED)
        running = leases(built.advance(second))
        built.submit(request(f"s{second}"), second)
    assert refusal(built, request(), 30.0).retry_after_s == pytest.approx(4.0, rel=0.1)


def test_a_cost_tier_nobody_offers_is_refused():
    """A tier constraint counts when looking for somebody to wait for; so does having tried everybody."""
    built = scheduler(profile())
    assert refusal(built, request(cost_tiers=frozenset({CostTier.SPOT}))).reason is Reason.NO_REPLICA
    assert refusal(built, request(avoid=frozenset({A}))).reason is Reason.NO_REPLICA


def test_a_deadline_in_the_past_is_refused():
    """What can no longer be met is not queued."""
    assert refusal(scheduler(profile()), request(deadline_s=1.0), 1.0).reason is Reason.DEADLINE


def test_draining_evicts_what_waits_and_refuses_what_comes():
    """After `drain` the queue is empty for good, and leases go on."""
    built = scheduler(profile(max_num_seqs=1))
    for name in ("r1", "r2"):
        built.submit(request(name), 0.0)
    lease = leases(built.advance(0.0))[0]
    assert evicted(built.drain(1.0)) == [("r2", "draining")]
    assert refusal(built, request(), 1.0).reason is Reason.DRAINING
    assert built.finish(lease.id, 2.0, outcome=Outcome.COMPLETED)
    assert repr(built) == "<Scheduler 1 replicas, 0 queued, 0 leased>"
