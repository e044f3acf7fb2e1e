"""For whom a replica is kept, and for how many at a time: heads of different tenants, at most a quarter of the replicas."""

from batching.request import ReplicaId
from batching.scheduler import Scheduler
from tests.support.scheduling import leases, placed, profile, request, scheduler

PATIENT = {"objectives": {"ttft_s": 1000.0}, "head_protection_s": 2.0}  # nobody is late


def busy(replicas: int) -> Scheduler:
    """One small answer runs on each; a prompt of 500 tokens would fit an empty one only, another small one fits."""
    built = scheduler(*(profile(f"a{number}", kv_blocks=40) for number in range(replicas)), scheduling=PATIENT)
    for number in range(replicas):
        built.submit(request(f"r{number}", tenant="greedy"), 0.0)
    assert {lease.replica for lease in leases(built.advance(0.0))} == {f"a{number}" for number in range(replicas)}
    return built


def big(built: Scheduler, tenant: str, name: str = "big") -> None:
    built.submit(request(f"{name}-{tenant}", prompt_tokens=500, tenant=tenant), 0.0)


def small(built: Scheduler, name: str, tenant: str, now: float) -> list[str]:
    built.submit(request(name, prompt_tokens=10, max_output_tokens=10, tenant=tenant), now)
    return placed(built.advance(now))


def kept(built: Scheduler) -> dict[ReplicaId, int]:
    return {live.profile.id: live.offer.protected_for for live in built._fleet if live.offer.protected_for is not None}


def test_passed_by_another_tenant_a_head_gets_a_replica_at_once():
    """Without waiting for `head_protection_s`: it was its turn."""
    built = busy(4)
    big(built, "light")
    assert built.advance(0.0) == []
    assert not kept(built)
    assert small(built, "s0", "greedy", 0.01) == ["s0"]
    small(built, "s1", "greedy", 0.02)
    assert len(kept(built)) == 1


def test_passed_by_its_own_tenant_a_head_waits_for_its_protection():
    """A tenant's small requests pass its big one for a while."""
    built = busy(4)
    big(built, "light")
    assert small(built, "s0", "light", 0.01) == ["s0"]
    small(built, "s1", "light", 1.9)
    assert not kept(built)
    small(built, "s2", "light", 2.1)
    assert len(kept(built)) == 1


def test_heads_of_several_tenants_are_kept_replicas_for():
    """One each, of different tenants, up to a quarter of the replicas."""
    built = busy(8)
    for tenant in ("x", "x", "y", "z"):
        big(built, tenant)
    assert small(built, "s0", "greedy", 0.01) == ["s0"]
    small(built, "s1", "greedy", 0.02)
    tickets = {waiting.ticket.id: waiting.ticket.request.tenant for waiting in built._queue}
    assert sorted(tickets[ticket] for ticket in kept(built).values()) == ["x", "y"]


def test_late_heads_are_kept_one_replica_for():
    """They have their floor; what is kept for them is lost to those that can be in time."""
    built = scheduler(
        *(profile(f"a{number}", kv_blocks=40) for number in range(8)), scheduling={"head_protection_s": 1.0}
    )
    for number in range(8):
        built.submit(request(f"r{number}", tenant="greedy"), 0.0)
    built.advance(0.0)
    for tenant in ("x", "y", "z"):
        big(built, tenant)
    built.advance(20.0)  # late by now
    for step in range(5):
        small(built, f"s{step}", "greedy", 20.0 + step)
    assert len(kept(built)) == 1
