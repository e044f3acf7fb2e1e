"""How many replicas an autoscaler is told: what is needed, no more; in the tier where it runs, or where it can be had cheapest."""

from math import ceil, inf

import pytest

from batching.replica import Lifecycle
from batching.request import Outcome, Rejected, ReplicaId, ServiceTier
from batching.scheduler import Scheduler
from config.schema import CostTier
from tests.support.scheduling import leases, profile, request, scheduler

SPOT, ON_DEMAND, RESERVED = CostTier.SPOT, CostTier.ON_DEMAND, CostTier.RESERVED
A = ReplicaId("a")


def told(subject: Scheduler, now: float = 0.0, model: str = "m") -> dict[CostTier, int]:
    return {tier: ceil(parts) for (of, tier), parts in subject.desired.replicas(now).items() if of == model}


def run(subject: Scheduler, count: int, now: float = 0.0, **changes: object) -> None:
    for number in range(count):
        subject.submit(request(f"{now}-{number}", arrived_s=now, **changes), now)
        subject.advance(now)


def test_an_idle_fleet_needs_nothing():
    """Every tier is told, at 0: what is kept all the same is the autoscaler's least."""
    subject = scheduler(profile("a", cost_tier=SPOT), profile("b", cost_tier=ON_DEMAND))
    assert told(subject) == {SPOT: 0, ON_DEMAND: 0}


def test_what_runs_needs_the_replicas_it_fills():
    """Half of its sequences: one; all of them: a second, as a full replica has nothing left for who comes next."""
    subject = scheduler(profile(cost_tier=SPOT, max_num_batched_tokens=100_000))
    run(subject, 4)
    assert told(subject) == {SPOT: 1}
    run(subject, 4, 0.1)
    assert told(subject, 0.1) == {SPOT: 2}


def test_what_waits_needs_room_too():
    """A queue of 24 beside a full replica of 8 sequences at a target of 0.8: five."""
    subject = scheduler(profile(max_num_batched_tokens=100_000))
    run(subject, 8 + 24)
    assert subject.queued == 24
    assert told(subject) == {ON_DEMAND: ceil((1 + 24 / 8) / 0.8)}


def test_few_long_prompts_count_by_their_tokens():
    """Sequences are not all: of 1000 blocks two prompts of 7,000 tokens take 88 %, and two that wait as much again."""
    subject = scheduler(profile(max_num_seqs=256, max_num_batched_tokens=100_000))
    run(subject, 4, prompt_tokens=7000)
    assert subject.queued == 2
    assert told(subject) == {ON_DEMAND: 3}


def test_prompts_that_cannot_be_prefilled_in_time_need_more():
    """Where neither sequences nor KV bind: seconds of prefill over the objective. An L4 computes some 3,800 tokens in its second."""
    subject = scheduler(
        profile(gpu="L4-24G", max_num_seqs=4096, kv_blocks=1_000_000),
        scheduling={"objectives": {"ttft_s": 1.0, "ttft_s_per_prompt_token": 0.0, "tpot_s": 10.0}},
    )
    run(subject, 40, prompt_tokens=1000)
    assert subject.queued >= 35
    assert 8 <= told(subject)[ON_DEMAND] <= 20


def test_what_waits_goes_where_it_is_cheapest():
    """Running work stays where it is; waiting work counts for the tier with the least dollars a sequence that can grow."""
    subject = scheduler(
        profile("a", cost_tier=RESERVED, usd_per_hour=0.1),
        profile("b", cost_tier=ON_DEMAND, usd_per_hour=4.0),
        profile("c", cost_tier=SPOT, usd_per_hour=1.2),
    )
    run(subject, 200)
    found = told(subject)
    assert found[SPOT] > 10
    assert found[RESERVED] <= 2
    assert found[ON_DEMAND] <= 2


def test_reserved_alone_grows_all_the_same():
    """Where a model knows no other tier, the need is told there."""
    subject = scheduler(profile(cost_tier=RESERVED))
    run(subject, 40)
    assert told(subject)[RESERVED] > 4


def test_none_is_ready_and_something_waits():
    """A fleet that starts: one at least, however little waits."""
    subject = scheduler()
    subject.add_replica(profile(cost_tier=SPOT), Lifecycle.STARTING, 0.0)
    assert told(subject) == {SPOT: 0}
    run(subject, 1)
    assert subject.queued == 1
    assert told(subject) == {SPOT: 1}


def test_refused_for_want_of_any_counts_for_a_minute():
    """Scaled to zero nothing is queued, but whoever was refused for it is remembered; then it is forgotten."""
    subject = scheduler(profile(cost_tier=SPOT))
    assert told(subject) == {SPOT: 0}
    subject.set_lifecycle(A, Lifecycle.DOWN, 1.0)
    for removed in (False, True):
        if removed:
            subject.remove_replica(A, 100.0)
        now = 200.0 if removed else 2.0
        with pytest.raises(Rejected):
            subject.submit(request(), now)
        assert told(subject, now + 59) == {SPOT: 1}, "the tier is told though no replica is left to tell of it"
        assert told(subject, now + 61) == {SPOT: 0}


def test_an_unknown_model_asks_for_nothing():
    """Whoever asks for what was never served starts no machine."""
    subject = scheduler(profile())
    with pytest.raises(Rejected):
        subject.submit(request(model="nobody's"), 0.0)
    assert set(subject.desired.replicas(0.0)) == {("m", ON_DEMAND)}


def test_batch_has_time():
    """However much of it waits, it asks for one replica's worth."""
    subject = scheduler(profile(max_num_batched_tokens=100_000))
    run(subject, 500, service_tier=ServiceTier.BATCH)
    assert subject.queued > 400
    assert 1 <= told(subject)[ON_DEMAND] <= 3


def test_models_of_one_replica_share_it():
    """What runs is told by model, and together it is one replica."""
    models = dict.fromkeys(("m", "n"), next(iter(profile().models.values())))
    subject = scheduler(profile(models=models, max_num_batched_tokens=100_000))
    run(subject, 2)
    run(subject, 2, 0.1, model="n")
    parts = subject.desired.replicas(0.1)
    assert parts["m", ON_DEMAND] == pytest.approx(parts["n", ON_DEMAND])
    assert sum(parts.values()) == pytest.approx(0.5 / 0.8)


def test_it_falls_with_the_load():
    """What has ended needs nothing."""
    subject = scheduler(profile(max_num_batched_tokens=100_000))
    for number in range(4):
        subject.submit(request(str(number)), 0.0)
    for lease in leases(subject.advance(0.0)):
        subject.finish(lease.id, 1.0, outcome=Outcome.COMPLETED)
    assert told(subject, 1.0) == {ON_DEMAND: 0}


def test_nothing_known_of_the_engine_is_no_error():
    """No KV size, no price: sequences as they are learned."""
    subject = scheduler(profile(kv_blocks=None, block_size=None, max_num_seqs=None, usd_per_hour=0.0))
    run(subject, 300)
    assert 1 <= told(subject)[ON_DEMAND] < inf
