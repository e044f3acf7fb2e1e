"""Who is placed first, who is passed over, and for how long."""

from batching.replica import EngineLoad
from batching.request import Outcome, ReplicaId, ServiceTier
from batching.scheduler import Scheduler
from config.schema import ModelKind
from tests.support.scheduling import evicted, leases, placed, profile, request, scheduler

BOTH = {"m": ModelKind.CHAT, "n": ModelKind.CHAT}
PATIENT = {"objectives": {"ttft_s": 1000.0}}  # nobody is late


def serve(built: Scheduler, rounds: int, start: float = 1.0):
    """One slot: finishes what runs and returns who came next, round by round."""
    order = []
    running = list(built._fleet.leases)
    for step in range(rounds):
        now = start + step * 0.01
        for lease_id in running:
            built.finish(lease_id, now, outcome=Outcome.COMPLETED)
        decisions = built.advance(now)
        order += placed(decisions)
        running = [lease.id for lease in leases(decisions)]
    return order


def test_better_tiers_go_first_across_models():
    """Tiers are strict, also between models that share a replica."""
    built = scheduler(profile(models=BOTH, max_num_seqs=1))
    for name, model, tier in [("b", "m", 3), ("d", "n", 1), ("f", "m", 2), ("p", "n", 0)]:
        built.submit(request(name, model=model, service_tier=ServiceTier(tier)), 0.0)
    assert placed(built.advance(0.0)) == ["p"]
    assert serve(built, 3) == ["d", "f", "b"]


def test_waiting_lifts_by_one_tier_per_aging_time():
    """A flex request that waited long enough goes before a younger default one, not before a priority one."""
    built = scheduler(profile(max_num_seqs=1), scheduling=PATIENT, queue={"aging_s": 10.0, "max_wait_s": 100.0})
    built.submit(request("first"), 0.0)
    built.advance(0.0)
    built.submit(request("flex", service_tier=ServiceTier.FLEX), 0.0)
    built.submit(request("young"), 9.0)
    built.submit(request("urgent", service_tier=ServiceTier.PRIORITY), 9.0)
    built.advance(9.0)
    assert serve(built, 3, start=11.0) == ["urgent", "flex", "young"]


def test_who_has_waited_long_goes_past_other_tiers_not_past_other_tenants():
    """A tenant with a long, old queue takes turns with one that has just come, as if none were old; each goes before a younger priority request."""
    built = scheduler(profile(max_num_seqs=1), scheduling=PATIENT, queue={"aging_s": 10.0, "max_wait_s": 100.0})
    for number in range(7):
        built.submit(request(f"x{number}", tenant="x"), 0.0)
    assert placed(built.advance(0.0)) == ["x0"]
    for number in range(2):
        built.submit(request(f"y{number}", tenant="y"), 15.0)
    built.advance(15.0)
    assert serve(built, 4, start=15.0) == ["y0", "x1", "y1", "x2"]
    built.submit(request("p0", tenant="p", service_tier=ServiceTier.PRIORITY), 16.0)
    built.submit(request("p1", tenant="p", service_tier=ServiceTier.PRIORITY), 16.0)
    built.advance(16.0)
    assert serve(built, 4, start=16.0) == ["p0", "x3", "p1", "x4"]


def test_waiting_lifts_past_other_models_too():
    """A flex request alone in its model's lane is not starved by default requests of another model on the same replica, nor served before its time."""
    built = scheduler(
        profile(models=BOTH, max_num_seqs=1), scheduling=PATIENT, queue={"aging_s": 10.0, "max_wait_s": 100.0}
    )
    built.submit(request("flex", model="m", service_tier=ServiceTier.FLEX), 0.0)
    for number in range(4):
        built.submit(request(f"young{number}", model="n", deadline_s=90.0), 0.0)
    assert placed(built.advance(0.0)) == ["young0"]
    assert serve(built, 1, start=9.0) == ["young1"]
    built.submit(request("newer", model="n", arrived_s=11.0), 11.0)
    built.advance(11.0)
    order = serve(built, 4, start=21.0)
    assert order.index("flex") < order.index("newer")


def test_aging_lifts_nobody_from_batch_nor_from_the_late():
    """Batch moves by its floor and the late by theirs, however long they wait."""
    built = scheduler(profile(max_num_seqs=1), queue={"aging_s": 1.0, "max_wait_s": 100.0})
    built.submit(request("first"), 0.0)
    built.advance(0.0)
    built.submit(request("bulk", service_tier=ServiceTier.BATCH), 0.0)
    built.submit(request("late"), 0.0)
    built.submit(request("young", service_tier=ServiceTier.FLEX, arrived_s=50.0), 50.0)
    built.advance(50.0)
    assert serve(built, 3, start=50.1) == ["young", "late", "bulk"]


def test_tenants_share_by_tokens_served():
    """A tenant with ten waiting does not delay a tenant with two: they take turns."""
    built = scheduler(profile(max_num_seqs=1))
    for number in range(6):
        built.submit(request(f"x{number}", tenant="x"), 0.0)
    for number in range(2):
        built.submit(request(f"y{number}", tenant="y"), 0.0)
    assert placed(built.advance(0.0)) == ["x0"]
    assert serve(built, 4) == ["y0", "x1", "y1", "x2"]


def test_output_tokens_count_double():
    """Output is charged as it comes: a tenant that was served 150 output tokens yields three prompts of 100."""
    built = scheduler(profile(max_num_seqs=1))
    for number in range(4):
        built.submit(request(f"x{number}", tenant="x"), 0.0)
        built.submit(request(f"y{number}", tenant="y"), 0.0)
    lease = leases(built.advance(0.0))[0]
    built.on_tokens(lease.id, 150, 0.5)
    assert serve(built, 5) == ["y0", "y1", "y2", "y3", "x1"]


def test_idling_earns_no_credit():
    """A tenant that comes late starts at the counter last served, not at zero."""
    built = scheduler(profile(max_num_seqs=1))
    for number in range(6):
        built.submit(request(f"x{number}", tenant="x"), 0.0)
    built.advance(0.0)
    assert serve(built, 3) == ["x1", "x2", "x3"]
    for number in range(3):
        built.submit(request(f"y{number}", tenant="y"), 2.0)
    built.advance(2.0)
    assert serve(built, 4, start=3.0) == ["y0", "x4", "y1", "x5"]


def test_inside_a_tenant_the_earliest_deadline_then_arrival():
    """A nearer deadline goes first; without one, first come first served."""
    built = scheduler(profile(max_num_seqs=1))
    for name, deadline in [("r0", None), ("r1", None), ("far", 20.0), ("near", 5.0)]:
        built.submit(request(name, deadline_s=deadline), 0.0)
    assert placed(built.advance(0.0)) == ["near"]
    assert serve(built, 3) == ["far", "r0", "r1"]


def test_inside_a_tenant_the_earliest_first_token_due():
    """A retry that has waited elsewhere goes first, a long prompt may take longer; without deadlines it is arrival that counts."""
    for without, order in (((), ["retry", "short", "long"]), (("deadlines",), ["long", "short", "retry"])):
        built = scheduler(profile(max_num_seqs=1), scheduling={"without": without})
        built.submit(request("first"), 0.0)
        built.advance(0.0)
        built.submit(request("long", prompt_tokens=2000), 0.0)  # due after 2 s
        built.submit(request("short", arrived_s=0.2), 0.2)  # after 1.2
        built.submit(request("retry", arrived_s=-0.1), 0.3)  # after 0.9
        built.advance(0.3)
        assert serve(built, 3, start=0.4) == order


def test_who_waited_as_long_as_allowed_is_evicted():
    """The queue's bound and the request's own deadline both end the wait, at the moment `next_deadline` names."""
    built = scheduler(profile(max_num_seqs=1), scheduling=PATIENT, queue={"max_wait_s": 30.0})
    for name, deadline in [("r0", None), ("slow", 90.0), ("soon", 5.0)]:
        built.submit(request(name, deadline_s=deadline), 0.0)
    built.submit(request("bulk", deadline_s=90.0, service_tier=ServiceTier.BATCH), 0.0)
    assert placed(built.advance(0.0)) == ["soon"]
    assert built.next_deadline() == 30.0
    assert evicted(built.advance(30.0)) == [("r0", "deadline"), ("slow", "deadline")]
    assert built.next_deadline() == 90.0  # batch work that names a deadline has that one alone


def test_a_head_that_fits_nowhere_blocks_nobody():
    """Smaller requests behind it, and other models, use the room that it cannot use."""
    built = scheduler(profile(models=BOTH, kv_blocks=40))
    built.submit(request("r0"), 0.0)
    built.submit(request("big", prompt_tokens=500), 0.0)
    built.submit(request("small"), 0.0)
    built.submit(request("other", model="n"), 0.0)
    assert placed(built.advance(0.0)) == ["r0", "small", "other"]


def test_a_head_passed_over_too_long_gets_a_replica():
    """After `head_protection_s` nobody else is placed where it will fit soonest; when it goes, others may again."""
    built = scheduler(profile(kv_blocks=40), scheduling={"head_protection_s": 2.0})
    built.submit(request("r0"), 0.0)
    first = leases(built.advance(0.0))
    built.submit(request("big", prompt_tokens=500), 0.0)
    built.submit(request("s1"), 0.0)
    second = leases(built.advance(0.0))
    assert second[0].request.id == "s1"
    built.submit(request("s2"), 2.0)  # would fit
    assert built.advance(2.0) == []
    built.finish(first[0].id, 3.0, outcome=Outcome.COMPLETED)
    assert built.advance(3.0) == []
    built.finish(second[0].id, 4.0, outcome=Outcome.COMPLETED)
    assert placed(built.advance(4.0)) == ["big"]
    built.submit(request("tiny", prompt_tokens=10, max_output_tokens=10), 5.0)
    assert placed(built.advance(5.0)) == ["tiny"]


def test_protection_ends_with_its_ticket():
    """When the protected head is cancelled, what waited for the room is placed."""
    built = scheduler(profile(kv_blocks=40), scheduling={"head_protection_s": 2.0})
    built.submit(request("r0"), 0.0)
    built.advance(0.0)
    big = built.submit(request("big", prompt_tokens=500), 0.0)
    built.submit(request("s1"), 0.0)
    built.advance(0.0)
    built.submit(request("s2"), 2.0)
    assert built.advance(2.0) == []
    assert built.cancel(big, 2.5)
    assert not built.cancel(big, 2.5)
    assert placed(built.advance(2.5)) == ["s2"]


def test_the_protected_head_takes_room_elsewhere_if_it_comes_first():
    """Placed on another replica, it frees the one kept for it for those waiting, in the same pass."""
    built = scheduler(profile("a", kv_blocks=40), profile("b", kv_blocks=41), scheduling={"head_protection_s": 2.0})
    for number in range(4):
        built.submit(request(f"r{number}"), 0.0)
    running = leases(built.advance(0.0))
    assert sorted(lease.replica for lease in running) == ["a", "a", "b", "b"]
    built.submit(request("big", prompt_tokens=500), 0.0)
    built.submit(request("s1"), 0.0)
    running += leases(built.advance(0.0))
    built.submit(request("trigger", prompt_tokens=500), 2.0)
    built.advance(2.0)
    kept = next(live.profile.id for live in built._fleet if live.offer.protected_for is not None)
    for lease in running:
        if lease.replica != kept:
            built.finish(lease.id, 3.0, outcome=Outcome.COMPLETED)
    built.submit(request("s2"), 3.0)
    assert set(placed(built.advance(3.0))) >= {"big", "s2"}
    assert all(live.offer.protected_for is None for live in built._fleet)


def test_same_events_give_the_same_decisions():
    """No randomness and no iteration order of sets decides anything."""

    def run():
        built = scheduler(profile("b"), profile("a"), profile("c", gpu="A10-24G", usd_per_hour=0.8))
        log = []
        for number in range(40):
            tier = ServiceTier(number % 4)
            built.submit(request(f"r{number}", tenant=f"t{number % 5}", service_tier=tier), number * 0.1)
            decisions = built.advance(number * 0.1)
            log += [(d.ticket.request.id, d.placement.explain()) for d in decisions if hasattr(d, "placement")]
            if number % 3 == 0 and decisions:
                built.finish(leases(decisions)[0].id, number * 0.1, outcome=Outcome.COMPLETED, output_tokens=20)
            built.observe(ReplicaId("a"), EngineLoad(observed_s=number * 0.1, kv_usage_ratio=0.5), number * 0.1)
        return log

    assert run() == run() != []


def test_room_given_up_by_a_protected_head_reaches_every_model():
    """The head goes elsewhere; another model's request that waited for its replica is placed by the same `advance`."""
    only_m = {"m": ModelKind.CHAT}
    built = scheduler(profile("a", models=BOTH, kv_blocks=40), profile("b", models=only_m, kv_blocks=50))
    built.submit(request("r0", avoid=frozenset({ReplicaId("b")})), 0.0)
    built.submit(request("r1", avoid=frozenset({ReplicaId("a")}), max_output_tokens=300), 0.0)
    running = {lease.replica: lease for lease in leases(built.advance(0.0))}
    built.submit(request("big", prompt_tokens=500), 0.0)
    built.submit(request("s0", avoid=frozenset({ReplicaId("b")})), 0.0)
    assert placed(built.advance(0.0)) == ["s0"]
    built.submit(request("other", model="n"), 2.0)
    built.submit(request("big2", prompt_tokens=500), 2.0)
    assert built.advance(2.0) == []
    assert [live.profile.id for live in built._fleet if live.offer.protected_for is not None] == ["a"]
    built.finish(running[ReplicaId("b")].id, 3.0, outcome=Outcome.COMPLETED)
    assert placed(built.advance(3.0)) == ["big", "other"]


def test_a_smaller_forecast_is_tried_everywhere_again():
    """Learned outputs shrink what a waiting request asks, so it is tested where no room has grown, too."""
    built = scheduler(profile("a", kv_blocks=46), profile("b", kv_blocks=60))
    for number in range(3):
        built.submit(request(f"r{number}", max_output_tokens=None), 0.0)  # 7 + 32 blocks each
    running = {lease.replica: lease for lease in leases(built.advance(0.0))}
    assert len(running) == 2
    for _ in range(20):
        built._estimators.outputs.learn("m", None, 10)
    built.on_first_token(running[ReplicaId("a")].id, 1.0)  # room on a, where 6 blocks are free; it needs 7
    decisions = built.advance(1.0)
    assert [lease.replica for lease in leases(decisions)] == ["b"]
